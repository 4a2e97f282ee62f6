"""Beam search over one text, by the rules of transformers' generation, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Beams:
    """The running and the finished hypotheses of one text.

    A finished hypothesis is rated by its mean log-probability per token, the end token included (length penalty 1).
    The search ends when the best running one, rated so, is below all finished ones (early_stopping = False).

    Args:
        count: how many hypotheses run, and how many finished ones are kept.
        start, end: the tokens that begin and end a hypothesis.
        max_tokens: where every hypothesis ends.
    """

    def __init__(self, count: int, start: int, end: int, max_tokens: int) -> None:
        self._count, self._end, self._max_tokens = count, end, max_tokens
        self._running: list[list[int]] = [[] for _ in range(count)]
        # All hypotheses begin alike: only the first may branch at the first step.
        self._scores = np.full(count, -1e9, np.float32)
        self._scores[0] = 0
        self._finished: list[tuple[float, list[int]]] = []
        self.tokens = np.full(count, start)  # the newest token of each running hypothesis, to be read next
        self.done = max_tokens < 1

    @property
    def best(self) -> list[int]:
        """The best finished hypothesis, without the start token."""
        return max(self._finished, key=lambda found: found[0])[1] if self._finished else []

    def advance(self, log_probs: NDArray[np.float32]) -> NDArray[np.intp]:
        """Take the next token of every hypothesis from log-probabilities (count, vocabulary).

        Returns:
            (count,), the hypothesis that each running one continues.
        """
        vocabulary = log_probs.shape[1]
        totals = (log_probs + self._scores[:, None]).ravel()
        # Twice as many as run: were all the best to end here, as many go on.
        top = np.argpartition(-totals, 2 * self._count - 1)[: 2 * self._count]
        top = top[np.lexsort((top, -totals[top]))]
        parents, tokens = np.divmod(top, vocabulary)
        length = len(self._running[0]) + 1
        last = length >= self._max_tokens
        ends = (tokens == self._end) | last
        for rank in np.flatnonzero(ends[: self._count]):
            hypothesis = [*self._running[parents[rank]], int(tokens[rank])]
            self._finished.append((float(totals[top[rank]]) / length, hypothesis))
        self._finished = sorted(self._finished, key=lambda found: -found[0])[: self._count]
        on = np.flatnonzero(tokens != self._end)[: self._count]
        self._running = [[*self._running[parents[rank]], int(tokens[rank])] for rank in on]
        self._scores, self.tokens = totals[top[on]], tokens[on]
        full = len(self._finished) == self._count
        self.done = last or (full and float(self._scores[0]) / length <= self._finished[-1][0])
        return np.asarray(parents[on])

"""Writing token by token, the same for every engine: greedily, guided, or drawn; rows that have ended are dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reason2decide.method.decoding import guided, plausible
from reason2decide.model.decoding import Decoding, Draws
from reason2decide.model.prompt_encoder import TokenPrompt


class Rows(Protocol):
    """Rows that an engine writes together."""

    @property
    def xp(self) -> Any:
        """The module of its arrays, numpy or torch."""

    @property
    def log_probs(self) -> Any:
        """Finite log-probabilities of the next token of each row, (rows, vocabulary)."""

    @property
    def given(self) -> Sequence[Sequence[int]]:
        """Of each row, the tokens of its lead that it has not read yet."""

    @property
    def dropped_together(self) -> float:
        """The share of rows that must have ended before they are dropped, which copies the others."""

    def read(self, tokens: Sequence[int]) -> None:
        """Read a token in each row."""

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these; return them in their new order."""

    def array(self, values: NDArray[np.float32]) -> Any:
        """Values as an array beside `log_probs`."""


Begin = Callable[[Sequence[TokenPrompt]], Rows]  # rows that have read their prompts, as far as all leads are long


def write_all(
    begin: Begin, prompts: Sequence[TokenPrompt], decoding: Decoding, *, end: int | None, max_tokens: int
) -> list[list[int]]:
    """What is written after each prompt, the end token last where it came within `max_tokens`."""
    written: list[list[int]] = [[] for _ in prompts]
    for numbers in _groups(prompts, decoding):
        own = decoding.of(numbers)
        rows = begin([prompts[number] for number in numbers])
        rivals = begin(own.rivals) if own.rivals is not None and own.guidance else None
        for step in write(rows, rivals, own, end=end, max_tokens=max_tokens):
            for row, token in step:
                written[numbers[row]].append(token)
    return written


def write(
    rows: Rows, rivals: Rows | None, decoding: Decoding, *, end: int | None, max_tokens: int
) -> Iterator[list[tuple[int, int]]]:
    """At each step the tokens that are written, as (row, token), the end token last; rows are numbered as begun.

    Args:
        rivals: what each row is guided away from; a row and its rival have leads of lengths that all others have.
        end: the token that ends a row.
        max_tokens: of a row, the end token included.
    """
    draws = Draws(decoding.seeds) if decoding.seeds is not None else None
    together = [rows] if rivals is None else [rows, rivals]
    numbers = list(range(len(rows.given)))  # of the rows that are still read
    left = dict.fromkeys(numbers, max_tokens)  # tokens that each row may still write
    while True:
        scores = rows.log_probs
        writing = [place for place, rest in enumerate(rows.given) if not rest and numbers[place] in left]
        if rivals is not None:
            scores = guided(rows.xp, scores, rivals.log_probs, decoding.guidance)
        if draws is not None:
            noise = np.zeros(tuple(scores.shape), np.float32)
            noise[writing] = draws.noise([numbers[place] for place in writing], scores.shape[-1])
            scores = plausible(rows.xp, scores) / decoding.temperature + rows.array(noise)
        tokens = [
            rest[0] if rest else token for token, rest in zip(scores.argmax(-1).tolist(), rows.given, strict=True)
        ]
        yield [(numbers[place], tokens[place]) for place in writing]
        for place in writing:
            number = numbers[place]
            left[number] -= 1
            if tokens[place] == end or not left[number]:
                del left[number]
        alive = [place for place, number in enumerate(numbers) if number in left]
        if not alive:
            return
        ended = len(numbers) - len(alive)
        if ended and ended >= rows.dropped_together * len(numbers):
            order, *_ = [some.keep(alive) for some in together]
            numbers, tokens = [numbers[place] for place in order], [tokens[place] for place in order]
        for some in together:
            some.read(tokens)


def _groups(prompts: Sequence[TokenPrompt], decoding: Decoding) -> list[list[int]]:
    """Indices of the prompts that are written together: all of them, but where rivals guide.

    A row and its rival must begin to write at the same step, so their leads must be as long as those of the others.
    """
    if decoding.rivals is None or not decoding.guidance:
        return [list(range(len(prompts)))]
    found: dict[tuple[int, int], list[int]] = {}
    for row, (own, rival) in enumerate(zip(prompts, decoding.rivals, strict=True)):
        found.setdefault((len(own.lead), len(rival.lead)), []).append(row)
    return list(found.values())

"""Writing with torch, token by token: greedily, guided, or drawn; rows that have ended are dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from reason2decide.method.decoding import guided, plausible
from reason2decide.model.architectures import Architecture
from reason2decide.model.architectures.leads import after_leads
from reason2decide.model.architectures.readings import TextReading
from reason2decide.model.decoding import Decoding, Draws
from reason2decide.model.engines import NotFinite
from reason2decide.model.padding import on_device

DROPPED_TOGETHER = 1 / 8  # ours: rows that have ended are dropped once they are this share, as each time all are copied


class Rows:
    """Rows that are written together.

    Attributes:
        log_probs: of the next token of each row, (rows, vocabulary), float32.
        given: of each row, the tokens of its lead that it has not read yet.
    """

    def __init__(self, architecture: Architecture, reading: TextReading, leads: Sequence[Sequence[int]]) -> None:
        self._architecture = architecture
        self.log_probs, self._reading, self.given = after_leads(architecture, reading, leads)

    def read(self, tokens: Sequence[int]) -> None:
        """Read a token in each row."""
        ids = on_device(torch.tensor(tokens), self.log_probs.device)[:, None]
        logits, self._reading = self._architecture.extend(self._reading, ids)
        self.log_probs, self.given = logits[:, -1].float().log_softmax(-1), [rest[1:] for rest in self.given]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._reading = self._reading.rows(on_device(torch.tensor(rows), self.log_probs.device))
        self.given = [self.given[row] for row in rows]


def write(
    rows: Rows, rivals: Rows | None, decoding: Decoding, *, end: int, max_tokens: int
) -> Iterator[list[tuple[int, int]]]:
    """At each step the tokens that are written, as (row, token), the end token last; rows are numbered as begun.

    Args:
        rivals: what each row is guided away from, with leads as long as the rows' own are among themselves.
        end: the token that ends a row.
        max_tokens: of a row, the end token included.

    Raises:
        NotFinite: a log-probability is not a finite number.
    """
    draws = Draws(decoding.seeds) if decoding.seeds is not None else None
    numbers = list(range(len(rows.log_probs)))  # of the rows that are still read
    left = dict.fromkeys(numbers, max_tokens)  # tokens that each row may still write
    while left:
        writing = [place for place, rest in enumerate(rows.given) if not rest and numbers[place] in left]
        scores = rows.log_probs
        if not bool(torch.isfinite(scores).all()):
            raise NotFinite
        if rivals is not None:
            scores = guided(torch, scores, rivals.log_probs, decoding.guidance)
        if draws is not None:
            noise = np.zeros(tuple(scores.shape), np.float32)
            noise[writing] = draws.noise([numbers[place] for place in writing], scores.shape[-1])
            scores = plausible(torch, scores) / decoding.temperature + torch.from_numpy(noise).to(scores.device)
        chosen = [
            rest[0] if rest else token for token, rest in zip(scores.argmax(-1).tolist(), rows.given, strict=True)
        ]
        yield [(numbers[place], chosen[place]) for place in writing]
        for place in writing:
            left[numbers[place]] -= 1
            if chosen[place] == end or not left[numbers[place]]:
                del left[numbers[place]]
        alive = [place for place, number in enumerate(numbers) if number in left]
        if not alive:
            return
        together = [rows] if rivals is None else [rows, rivals]
        if len(alive) <= len(numbers) * (1 - DROPPED_TOGETHER):
            for some in together:
                some.keep(alive)
            numbers, chosen = [numbers[place] for place in alive], [chosen[place] for place in alive]
        for some in together:
            some.read(chosen)

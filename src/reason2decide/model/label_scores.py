"""Exact label probabilities: P(label | text) over the candidates, scored through their trie rather than generated.

A label's score is the total log-probability of its tokens, the end token included, given the "predict" prompt (ours;
the authors generate free text). The text is read once, what next tokens attend to is kept once per text, and a prefix
that several candidates share is scored once. As every candidate ends in the end token, none is a prefix of another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reason2decide.method.prompts import Candidate
from reason2decide.model.architectures import Architecture
from reason2decide.model.architectures.leads import after_leads
from reason2decide.model.architectures.readings import TextReading
from reason2decide.model.padding import on_device, padded

BYTES_PER_FORWARD = 2**28  # ours: limit for the copied caches of one forward pass, whatever the number of labels


@dataclass(frozen=True)
class _Scored:
    """What is scored after a text: the rest of its lead and each of its candidates, as one sequence of tokens each.

    `given` of them are the lead's, and not scored.
    """

    sequences: Sequence[Candidate]
    given: int


@dataclass(frozen=True)
class _Node:
    """A prefix that several candidates of one text share: the row that has read it, and those candidates."""

    text: int
    row: int
    candidates: tuple[int, ...]


@dataclass(frozen=True)
class _Branch:
    """Candidates of one text whose next token is the same, scored from `row` of the reading before that token."""

    text: int
    row: int
    token: int
    candidates: tuple[int, ...]


def score_labels(
    architecture: Architecture,
    reading: TextReading,
    leads: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Candidate]],
) -> list[Tensor]:
    """Total log-probability of each candidate's tokens given each text and lead.

    Gradients and dropout follow the caller's context and the model's mode; no caller takes a gradient.

    Args:
        reading: of the texts of the prompts.
        leads: of the prompts.
        candidates: for each text its candidates, distinct, each ending in the end token.

    Returns:
        For each text a float32 tensor (candidates,) on the model's device, not normalised over the candidates. Nothing
        here waits for the device.
    """
    first = np.cumsum([0, *map(len, candidates)])  # index of each text's first candidate among all
    places: list[int] = []
    parts: list[Tensor] = []  # log-probability of some tokens of the candidate at the same index of `places`
    log_probs, begun, rests = after_leads(architecture, reading, leads)
    texts = [
        _Scored([(*rest, *candidate) for candidate in own], len(rest))
        for rest, own in zip(rests, candidates, strict=True)
    ]
    roots = [_Node(text, text, tuple(range(len(choices)))) for text, choices in enumerate(candidates)]
    scorer = _Scorer(architecture, texts, begun.row_bytes, 4 * log_probs.shape[-1])
    for text, candidate, part in scorer.score(roots, begun, log_probs, 0):
        places.append(int(first[text]) + candidate)
        parts.append(part)
    totals = torch.zeros(int(first[-1]), device=reading.mask.device)
    totals.index_add_(0, on_device(torch.tensor(places), totals.device), torch.stack(parts))
    return list(torch.split(totals, list(map(len, candidates))))


@dataclass(frozen=True)
class _Scorer:
    """Scores the candidates of a fixed set of texts, one token for all rows at a time, or several of a tail."""

    architecture: Architecture
    texts: Sequence[_Scored]
    row_bytes: int  # of a copy of what a row has read
    logits_bytes: int  # of one token

    def score(
        self, nodes: list[_Node], reading: TextReading, log_probs: Tensor, depth: int
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (text, candidate, log-probability of some of its tokens) until all tokens from `depth` on are scored.

        Args:
            log_probs: of the token after each row of the reading, (rows, vocabulary).
        """
        tails, shared = [], []
        for branch in self._branches(nodes, depth):
            if depth >= self.texts[branch.text].given:
                step = log_probs[branch.row, branch.token]
                yield from ((branch.text, candidate, step) for candidate in branch.candidates)
            if len(branch.candidates) > 1:
                shared.append(branch)
            elif len(self._sequence(branch)) > depth + 1:
                tails.append(branch)
        longest = max((len(self._sequence(branch)) for branch in tails), default=depth) - depth
        for part in self._chunks(tails, longest):
            totals = self._tails(part, reading, depth)
            yield from ((branch.text, branch.candidates[0], total) for branch, total in zip(part, totals, strict=True))
        for part in self._chunks(shared, 1):
            rows, tokens = ([getattr(branch, what) for branch in part] for what in ("row", "token"))
            ids = self._tensor(reading, tokens)[:, None]
            logits, grown = self.architecture.extend(reading.rows(self._tensor(reading, rows)), ids)
            onward = [_Node(branch.text, row, branch.candidates) for row, branch in enumerate(part)]
            yield from self.score(onward, grown, logits[:, -1].float().log_softmax(-1), depth + 1)

    def _tails(self, branches: list[_Branch], reading: TextReading, depth: int) -> list[Tensor]:
        """Log-probability of each branch's only candidate after its first token, read in one pass."""
        ids, real = padded([self._sequence(branch)[depth:] for branch in branches], 0, reading.mask.device)
        given = self._tensor(reading, [self.texts[branch.text].given - depth for branch in branches])
        rows = self._tensor(reading, [branch.row for branch in branches])
        logits = self.architecture.extend(reading.rows(rows), ids[:, :-1])[0].float()
        log_probs = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
        places = torch.arange(1, ids.shape[1], device=ids.device)
        scored = (real[:, 1:] == 1) & (places >= given[:, None])
        return list(log_probs.masked_fill(~scored, 0.0).sum(-1).unbind())

    def _sequence(self, branch: _Branch) -> Candidate:
        return self.texts[branch.text].sequences[branch.candidates[0]]

    def _chunks(self, branches: list[_Branch], tokens: int) -> Iterator[list[_Branch]]:
        """The branches cut so that one forward over `tokens` of each stays within the bound of copies and logits."""
        size = max(1, BYTES_PER_FORWARD // max(1, self.row_bytes + tokens * self.logits_bytes))
        for begin in range(0, len(branches), size):
            yield branches[begin : begin + size]

    def _branches(self, nodes: list[_Node], depth: int) -> list[_Branch]:
        branches = []
        for node in nodes:
            by_token: dict[int, list[int]] = defaultdict(list)
            for candidate in node.candidates:
                by_token[self.texts[node.text].sequences[candidate][depth]].append(candidate)
            branches += [_Branch(node.text, node.row, token, tuple(indices)) for token, indices in by_token.items()]
        return branches

    def _tensor(self, reading: TextReading, values: Sequence[int]) -> Tensor:
        return on_device(torch.tensor(values), reading.mask.device)


class Leading(NamedTuple):
    """The two most probable candidates of a text by index, the first of equals, and P(best) among all of them."""

    best: int
    second: int
    confidence: float


def leading_labels(scores: Sequence[Tensor]) -> Callable[[], list[Leading]]:
    """y^ of each text and its runner-up: a function that waits for them.

    Work queued on the device in the meantime is not waited for.

    Args:
        scores: as `score_labels` returns them; of a single candidate, both are that one.
    """
    rows = []
    for values in scores:
        order = values.argsort(descending=True, stable=True)
        rows.append(
            torch.stack(
                [order[0].double(), order[-1 if len(order) < 2 else 1].double(), values.softmax(-1).max().double()]
            )
        )
    found = torch.stack(rows)
    if not found.is_cuda:
        return lambda: _leading(found)
    host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def read() -> list[Leading]:
        done.synchronize()
        return _leading(host)

    return read


def _leading(found: Tensor) -> list[Leading]:
    return [Leading(int(best), int(second), confidence) for best, second, confidence in found.tolist()]

"""Exact label probabilities: P(label | text) over the candidates, scored through their trie rather than generated.

A label's score is the total log-probability of its tokens, the end token included, given the "predict" prompt (ours;
the authors generate free text). The encoder runs once, the cross-attention cache is made once per text, and a prefix
that several candidates share is scored once. As every candidate ends in the end token, none is a prefix of another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from reason2decide.method.prompts import Candidate
from reason2decide.model.padding import on_device, padded

BYTES_PER_FORWARD = 2**28  # ours: limit for the copied caches of one forward pass, whatever the number of labels


@dataclass(frozen=True)
class _Node:
    """A prefix that several candidates of one text share: the row that has read it, and those candidates."""

    text: int
    row: int
    candidates: tuple[int, ...]


@dataclass(frozen=True)
class _Branch:
    """Candidates of one text whose next token is the same, scored from `row` of the cache before that token."""

    text: int
    row: int
    token: int
    candidates: tuple[int, ...]


def score_labels(
    model: Any, encoder_states: Tensor, attention_mask: Tensor, candidates: Sequence[Sequence[Candidate]]
) -> list[Tensor]:
    """Total log-probability of each candidate's tokens given each text.

    Gradients and dropout follow the caller's context and the model's mode; no caller takes a gradient.

    Args:
        model: an encoder-decoder of transformers.
        encoder_states: (texts, length, width), the encoder's output for the "predict" prompts.
        attention_mask: (texts, length), 1 where there is text.
        candidates: for each text its candidates, distinct, each ending in the end token.

    Returns:
        For each text a float32 tensor (candidates,) on the model's device, not normalised over the candidates. Nothing
        here waits for the device.
    """
    first = np.cumsum([0, *map(len, candidates)])  # index of each text's first candidate among all
    places: list[int] = []
    parts: list[Tensor] = []  # log-probability of some tokens of the candidate at the same index of `places`
    decode = _CachedDecoder(model, encoder_states, attention_mask)
    roots = [_Node(text, text, tuple(range(len(choices)))) for text, choices in enumerate(candidates)]
    for text, candidate, part in _score(decode, candidates, roots, *decode.start(), 0):
        places.append(int(first[text]) + candidate)
        parts.append(part)
    totals = torch.zeros(int(first[-1]), device=encoder_states.device)
    totals.index_add_(0, on_device(torch.tensor(places), totals.device), torch.stack(parts))
    return list(torch.split(totals, list(map(len, candidates))))


def _score(
    decode: _CachedDecoder,
    candidates: Sequence[Sequence[Candidate]],
    nodes: list[_Node],
    cache: EncoderDecoderCache,
    log_probs: Tensor,
    depth: int,
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (text, candidate, log-probability of some of its tokens) until all tokens from `depth` on are scored."""
    tails, shared = [], []
    for branch in _branches(nodes, candidates, depth):
        step = log_probs[branch.row, branch.token]
        yield from ((branch.text, candidate, step) for candidate in branch.candidates)
        if len(branch.candidates) > 1:
            shared.append(branch)
        elif len(candidates[branch.text][branch.candidates[0]]) > depth + 1:
            tails.append(branch)
    longest = max((len(candidates[branch.text][branch.candidates[0]]) for branch in tails), default=depth) - depth
    for part in decode.chunks(tails, longest):
        targets = [candidates[branch.text][branch.candidates[0]][depth:] for branch in part]
        rest = decode.tails(cache, [b.row for b in part], [b.text for b in part], targets)
        yield from ((branch.text, branch.candidates[0], total) for branch, total in zip(part, rest, strict=True))
    for part in decode.chunks(shared, 1):
        grown = decode.step(cache, [b.row for b in part], [b.text for b in part], [b.token for b in part])
        onward = [_Node(branch.text, row, branch.candidates) for row, branch in enumerate(part)]
        yield from _score(decode, candidates, onward, *grown, depth + 1)


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


def _branches(nodes: list[_Node], candidates: Sequence[Sequence[Candidate]], depth: int) -> list[_Branch]:
    branches = []
    for node in nodes:
        by_token: dict[int, list[int]] = defaultdict(list)
        for candidate in node.candidates:
            by_token[candidates[node.text][candidate][depth]].append(candidate)
        branches += [_Branch(node.text, node.row, token, tuple(indices)) for token, indices in by_token.items()]
    return branches


class _CachedDecoder:
    """The decoder over a fixed set of encoded texts, moved forward one token for all rows or several for a tail."""

    def __init__(self, model: Any, encoder_states: Tensor, attention_mask: Tensor) -> None:
        self.model, self.states, self.mask = model, encoder_states, attention_mask
        self._copied_bytes = self._logits_bytes = 0  # known after `start`: of a row's cache, of a token's logits

    def start(self) -> tuple[EncoderDecoderCache, Tensor]:
        """Read the start token of every text; return the cache and next-token log-probabilities (texts, vocabulary)."""
        start = torch.full((len(self.states), 1), self.model.config.decoder_start_token_id, device=self.states.device)
        texts = torch.arange(len(self.states), device=self.states.device)
        empty = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits, cache = self._forward(empty, texts, start)
        layers = cache.cross_attention_cache.layers
        self._copied_bytes = sum(layer.keys[0].nbytes + layer.values[0].nbytes for layer in layers)
        self._logits_bytes = 4 * logits.shape[-1]
        return cache, logits[:, -1].log_softmax(-1)

    def step(
        self, cache: EncoderDecoderCache, rows: list[int], texts: list[int], tokens: list[int]
    ) -> tuple[EncoderDecoderCache, Tensor]:
        """Read one token per row from copies of the given cache rows; returns as `start`."""
        device = self.states.device
        grown, token = _rows_of(cache, on_device(torch.tensor(rows), device)), on_device(torch.tensor(tokens), device)
        logits, grown = self._forward(grown, on_device(torch.tensor(texts), device), token[:, None])
        return grown, logits[:, -1].log_softmax(-1)

    def tails(
        self, cache: EncoderDecoderCache, rows: list[int], texts: list[int], targets: list[Candidate]
    ) -> list[Tensor]:
        """Log-probability of each target after its first token, read in one pass.

        Targets are padded on the right: attention is causal, so padding changes nothing before it.
        """
        device = self.states.device
        ids, real = padded(targets, 0, device)
        copy = _rows_of(cache, on_device(torch.tensor(rows), device))
        logits, _ = self._forward(copy, on_device(torch.tensor(texts), device), ids[:, :-1])
        log_probs = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
        return list(log_probs.masked_fill(real[:, 1:] == 0, 0.0).sum(-1).unbind())

    def chunks(self, branches: list[_Branch], tokens: int) -> Iterator[list[_Branch]]:
        """The branches cut so that one forward over `tokens` of each stays within the bound of copies and logits."""
        size = max(1, BYTES_PER_FORWARD // max(1, self._copied_bytes + tokens * self._logits_bytes))
        for begin in range(0, len(branches), size):
            yield branches[begin : begin + size]

    def _forward(
        self, cache: EncoderDecoderCache, texts: Tensor, decoder_input_ids: Tensor
    ) -> tuple[Tensor, EncoderDecoderCache]:
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.states[texts]),
            attention_mask=self.mask[texts],
            decoder_input_ids=decoder_input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits.float(), output.past_key_values


def _rows_of(cache: EncoderDecoderCache, rows: Tensor) -> EncoderDecoderCache:
    """A copy of the given rows of the cache, in their order, repeats allowed."""
    return EncoderDecoderCache(
        *(
            DynamicCache([(layer.keys[rows], layer.values[rows]) for layer in half.layers])
            for half in (cache.self_attention_cache, cache.cross_attention_cache)
        )
    )

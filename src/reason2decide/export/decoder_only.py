"""The two graphs of a model without an encoder, with the inputs and outputs of those of an encoder-decoder.

    encoder.onnx   token ids of one text -> its keys and values in each layer ("cross")
    decoder.onnx   next tokens, what was read of them before ("past"), cross -> log-probabilities, past and these

So the rows of a text share its keys and values here too, without copies, and one engine runs both. A row attends to its
text and to its own tokens in one softmax; positions go on where its text ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from reason2decide.export.caches import GrownLayer, flat
from reason2decide.model.engines.onnx import HIDDEN

ATTENTION = "reason2decide_export_decoder_only"  # the name our attention function has in transformers


@dataclass
class _Seen:
    """What the attention of a graph needs besides its own arguments, while it is traced.

    `texts` has the texts' keys and values by layer; `hidden` (texts, length) is 1 where a text is padded.
    """

    texts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    hidden: Tensor | None = None


_SEEN = _Seen()


@contextmanager
def seen(texts: list[tuple[Tensor, Tensor]], hidden: Tensor | None) -> Iterator[None]:
    """What rows attend to besides their own tokens."""
    _SEEN.texts, _SEEN.hidden = texts, hidden
    try:
        yield
    finally:
        _SEEN.texts, _SEEN.hidden = [], None


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Causal attention to the text that rows share and to their own tokens.

    Args:
        module: the layer, for its number.
        query: (rows, heads, tokens, width).
        key, value: the rows' own, (rows, heads of keys, past and tokens, width); a head of keys serves several.
        attention_mask: unused; what may be seen follows from positions.
        scaling: of the scores; width^-0.5 if None.
        sliding_window: number of positions that a layer sees, its own included; None: all.

    Returns:
        (rows, tokens, heads, width), and no attention weights.
    """
    rows, heads, tokens, width = query.shape
    groups = key.shape[1]
    query = (query * (width**-0.5 if scaling is None else scaling)).reshape(rows, groups, -1, width)
    scores = query @ key.transpose(2, 3)  # (rows, groups, heads of a group x tokens, own)
    asking = torch.arange(tokens)[:, None] + key.shape[2] - tokens  # places among the own tokens
    distance = asking - torch.arange(key.shape[2])[None, :]
    scores = scores + _unseen(distance, sliding_window).repeat(heads // groups, 1)[None, None]
    if not _SEEN.texts:
        return _together(scores.softmax(-1) @ value, rows, heads, tokens), None
    text_keys, text_values = _SEEN.texts[module.layer_idx]
    assert _SEEN.hidden is not None
    texts, length = _SEEN.hidden.shape
    of_text = query.reshape(texts, -1, groups, query.shape[2], width).transpose(1, 2)
    text_scores = of_text.reshape(texts, groups, -1, width) @ text_keys.transpose(2, 3)
    masked = (_SEEN.hidden * HIDDEN)[:, None, None, None, :]
    if sliding_window is not None:
        lengths = length - _SEEN.hidden.sum(1)
        far = lengths[:, None, None] + asking[None] - torch.arange(length)[None, None, :]
        masked = masked + _unseen(far, sliding_window).repeat(1, heads // groups, 1)[:, None, None]
    per_row = text_scores.reshape(texts, groups, -1, query.shape[2], length) + masked
    text_scores = per_row.transpose(1, 2).reshape(rows, groups, query.shape[2], length)
    shares = torch.cat([text_scores, scores], -1).softmax(-1)
    from_text = shares[..., :length].reshape(texts, -1, groups, query.shape[2], length).transpose(1, 2)
    read = from_text.reshape(texts, groups, -1, length) @ text_values
    read = read.reshape(texts, groups, -1, query.shape[2], width).transpose(1, 2)
    read = read.reshape(rows, groups, query.shape[2], width)
    return _together(read + shares[..., length:] @ value, rows, heads, tokens), None


def _unseen(distance: Tensor, sliding_window: int | None) -> Tensor:
    """`HIDDEN` where a position lies ahead, or as far back as a sliding window is wide; else 0."""
    hidden = distance < 0
    if sliding_window is not None:
        hidden = hidden | (distance >= sliding_window)
    return hidden * HIDDEN


def _together(read: Tensor, rows: int, heads: int, tokens: int) -> Tensor:
    return read.reshape(rows, heads, tokens, -1).transpose(1, 2)


class TextGraph(nn.Module):
    """Token ids (1, length) to the keys and values of all layers, each (1, heads of keys, length, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        cache = Cache(layer_class_to_replicate=GrownLayer)
        positions = torch.arange(input_ids.shape[1])[None]
        with seen([], None):
            self.model.base_model(input_ids=input_ids, position_ids=positions, past_key_values=cache, use_cache=True)
        return flat(cache)


class AnswerGraph(nn.Module):
    """Next tokens (rows, tokens) to log-probabilities (rows, tokens, vocabulary) and the grown past.

    `hidden` (texts, length) is 1 where a text is padded. `caches` are keys and values layer by layer, first the past
    ones (rows, heads of keys, past, width), then those of the texts (texts, heads of keys, length, width).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, hidden: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        pairs = list(zip(caches[::2], caches[1::2], strict=True))
        own, texts = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        cache = Cache(layers=[GrownLayer(*pair) for pair in own])
        rows, tokens = input_ids.shape
        lengths = (hidden.shape[1] - hidden.sum(1)).long()
        ends = lengths[:, None].expand(hidden.shape[0], rows // hidden.shape[0]).reshape(-1, 1)
        positions = ends + caches[0].shape[2] + torch.arange(tokens)[None]
        with seen(texts, hidden):
            logits = self.model(
                input_ids=input_ids, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits
        return (logits.log_softmax(-1), *flat(cache))


AttentionInterface.register(ATTENTION, attention)

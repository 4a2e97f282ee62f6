"""What a model has read: the text and the tokens after it, as the states and caches that next tokens attend to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import EncoderDecoderCache


@dataclass(frozen=True)
class TextReading:
    """What some rows have read. Readings are values: what extends one makes another.

    Attributes:
        mask: (rows, tokens), 1 where a row has a token of those that are attended to by this mask.
        states: (rows, tokens, width), the encoder's output; None where there is no encoder.
        cache: keys and values of what was read; None where nothing was kept.
    """

    mask: Tensor
    states: Tensor | None
    cache: Any | None

    def __len__(self) -> int:
        return len(self.mask)

    def rows(self, rows: Tensor) -> TextReading:
        """Copies of the given rows, in their order, repeats allowed."""
        cache = forked(self.cache)
        if cache is not None:
            cache.reorder_cache(rows)
        return TextReading(self.mask[rows], None if self.states is None else self.states[rows], cache)

    def leaf(self) -> TextReading:
        """The same values, cut off from what computed them; gradients arrive at `tensors`."""
        states = None if self.states is None else self.states.detach().requires_grad_()
        cache = forked(self.cache)
        for holder, key, tensor in _places(cache):
            holder[key] = tensor.detach().requires_grad_()
        return replace(self, states=states, cache=cache)

    @property
    def tensors(self) -> list[Tensor]:
        """The states and cached tensors, always in the same order."""
        states = [] if self.states is None else [self.states]
        return [*states, *(tensor for _, _, tensor in _places(self.cache))]

    @property
    def row_bytes(self) -> int:
        """Bytes that a copy of one row takes, but for its states."""
        return sum(tensor[0].nbytes for _, _, tensor in _places(self.cache))


def forked(cache: Any | None) -> Any | None:
    """A cache that may grow while the given one stays as it is."""
    if cache is None:
        return None
    if isinstance(cache, EncoderDecoderCache):
        return EncoderDecoderCache(forked(cache.self_attention_cache), forked(cache.cross_attention_cache))
    fork = copy.copy(cache)
    fork.layers = [_forked_layer(layer) for layer in cache.layers]
    return fork


def _forked_layer(layer: Any) -> Any:
    fork = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # the states of recurrent layers, which the library updates in place
            own = {key: state.clone() if isinstance(state, Tensor) else state for key, state in value.items()}
            setattr(fork, name, own)
    return fork


def _places(cache: Any | None) -> Iterator[tuple[dict[Any, Any], Any, Tensor]]:
    """Where the tensors of a cache are: a mapping, a key, the tensor."""
    if cache is None:
        return
    halves = [cache]
    if isinstance(cache, EncoderDecoderCache):
        halves = [cache.self_attention_cache, cache.cross_attention_cache]
    for layer in (layer for half in halves for layer in half.layers):
        for holder in (vars(layer), *(value for value in vars(layer).values() if isinstance(value, dict))):
            for key, tensor in list(holder.items()):
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
                    yield holder, key, tensor

"""Caches as graphs have them: a layer's keys and values are inputs and outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class GrownLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's cache, empty or with given keys and values (rows, heads, length, width).

    The library's begins with a constant of no size, which ONNX cannot concatenate.
    """

    keys: Tensor
    values: Tensor
    is_initialized: bool

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        if given:
            self.update(*given)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.is_initialized:
            key_states = torch.cat([self.keys, key_states], dim=2)
            value_states = torch.cat([self.values, value_states], dim=2)
        self.keys, self.values = key_states, value_states
        self.is_initialized = True
        return key_states, value_states


def flat(cache: Cache) -> tuple[Tensor, ...]:
    """Keys and values layer by layer."""
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))

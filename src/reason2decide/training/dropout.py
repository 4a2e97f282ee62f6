"""Dropout at a quarter of the library's cost on a CPU, where drawing the masks is a third of a training step.

PyTorch draws one random number per element on one core. Sixteen bits are enough to decide whether an element stays, so
one draw of 64 bits serves four elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LEVELS = 2**16  # a rate is rounded to a multiple of 1 / LEVELS: 0.1 becomes 0.100006


class FastDropout(TorchFunctionMode):
    """Within this context `functional.dropout` of a CPU tensor draws 16 bits per element from the default generator."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), settings: Mapping[str, Any] | None = None
    ) -> Any:
        if function is functional.dropout:
            return _dropout(*arguments, **(settings or {}))
        return function(*arguments, **(settings or {}))


def dropout_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts in which activation checkpointing runs a layer, first and again: a backward pass has no other."""
    return nullcontext(), FastDropout()


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As `functional.dropout`, but never in place."""
    if not training or p == 0 or input.is_cuda:
        return functional.dropout(input, p, training, inplace)
    result: Tensor = _Dropout.apply(input, p)  # type: ignore[no-untyped-call]
    return result


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """Booleans of `shape`, each false with the probability p, rounded to a multiple of 1 / `LEVELS`."""
    count = shape.numel()
    # The whole range of int64: without bounds the sign bit would stay 0.
    noise = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (noise[:count] >= _dropped_levels(p) - LEVELS // 2).view(shape)


def _dropped_levels(p: float) -> int:
    return min(round(p * LEVELS), LEVELS - 1)


class _Dropout(torch.autograd.Function):
    """Inverted dropout that keeps one byte per element for the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        keep = keep_mask(input.shape, p)
        ctx.scale = 1 / (1 - _dropped_levels(p) / LEVELS)
        ctx.save_for_backward(keep)
        return (input * keep.to(input.dtype)).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep.to(gradient.dtype)).mul_(ctx.scale), None

"""Prompts of similar lengths, computed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 32  # ours


def in_batches(lengths: Sequence[int] | NDArray[Any], run: Callable[[Sequence[int]], Sequence[Any]]) -> list[Any]:
    """The results of `run` for prompts of these lengths, in their order.

    `run` gets the indices of `BATCH_SIZE` prompts of similar lengths at a time, and returns a value for each.
    """
    order = np.argsort(lengths, kind="stable").tolist()
    results: dict[int, Any] = {}
    for begin in range(0, len(order), BATCH_SIZE):
        rows = order[begin : begin + BATCH_SIZE]
        results |= zip(rows, run(rows), strict=True)
    return [results[row] for row in range(len(lengths))]

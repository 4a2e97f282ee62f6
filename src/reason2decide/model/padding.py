"""Rows of token ids as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded(
    rows: Sequence[Sequence[int] | NDArray[np.integer]], padding: int, device: torch.device, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows padded on the right, or on the left, on the device, without waiting for work queued on it.

    Returns:
        ids (rows, longest), int64, and mask (rows, longest), int64: 1 where the row has a token.
    """
    ids = pad_sequence(
        [torch.from_numpy(np.asarray(row, np.int64)) for row in rows],
        batch_first=True,
        padding_value=padding,
        padding_side="left" if left else "right",
    )
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    if left:
        mask = mask.flip(1)
    if device.type == "cuda":
        ids, mask = ids.pin_memory(), mask.pin_memory()
    return on_device(ids, device), on_device(mask, device)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for work queued on it."""
    return tensor.to(device, non_blocking=True)

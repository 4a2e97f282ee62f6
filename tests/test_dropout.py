"""Fast dropout against the library's own: the same distribution, gradients and reproducibility."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from reason2decide.training.dropout import LEVELS, FastDropout, keep_mask


@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(0, 7), min_size=1, max_size=3), p=st.floats(0, 1))
def test_any_shape(shape: list[int], p: float) -> None:
    mask = keep_mask(torch.Size(shape), p)
    assert mask.shape == torch.Size(shape) and mask.dtype == torch.bool


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1 / LEVELS])
def test_share_dropped(p: float) -> None:
    """Over four million draws the share is within five standard errors, in each of the four lanes of a 64-bit draw."""
    torch.manual_seed(0)
    kept = keep_mask(torch.Size((4, 1_000_000)), p).double()
    error = 5 * (p * (1 - p) / 1e6) ** 0.5 + 0.5 / LEVELS
    for lane in range(4):
        assert abs(kept.flatten()[lane::4].mean().item() - (1 - p)) < error
    # Neighbouring draws do not hang together.
    pairs = kept.flatten().view(-1, 2)
    both = (pairs[:, 0] * pairs[:, 1]).mean().item()
    assert abs(both - (1 - p) ** 2) < error


def test_values_and_gradients() -> None:
    """What stays is scaled by 1 / (1 - p), with p rounded to sixteen bits; the gradient passes where the value did."""
    torch.manual_seed(0)
    ones = torch.ones(1000, requires_grad=True)
    with FastDropout():
        dropped = functional.dropout(ones, 0.1)
    scale = 1 / (1 - round(0.1 * LEVELS) / LEVELS)
    assert sorted(set(dropped.tolist())) == pytest.approx([0.0, scale])
    dropped.sum().backward()
    assert ones.grad is not None and torch.equal(ones.grad, dropped.detach())


def test_only_training_only_here() -> None:
    value = torch.randn(100)
    with FastDropout():
        assert torch.equal(functional.dropout(value, 0.5, training=False), value)
        assert torch.equal(torch.nn.Dropout(0.0)(value), value)
        torch.manual_seed(1)
        first = torch.nn.Dropout(0.5)(value)
        torch.manual_seed(1)
        assert torch.equal(first, torch.nn.Dropout(0.5)(value))
    torch.manual_seed(1)
    outside = torch.nn.Dropout(0.5)(value)
    torch.manual_seed(1)
    assert torch.equal(outside, functional.dropout(value, 0.5))

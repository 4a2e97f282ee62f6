"""The losses against numbers derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from reason2decide.method.losses import (
    IGNORED,
    joint_loss,
    label_posterior_loss,
    token_log_likelihood,
    token_mean_cross_entropy,
)

# Two rows over a vocabulary of two. Row 1: P(target) = 1/2, then 3/4. Row 2: P = 1/4, then padding.
LOGITS = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]], [[math.log(3), 0.0], [9.0, -9.0]]])
TARGETS = torch.tensor([[0, 1], [1, IGNORED]])
TOTAL = math.log(2) + math.log(4 / 3) + math.log(4)


def test_token_mean_is_over_target_tokens_not_rows() -> None:
    assert token_mean_cross_entropy(LOGITS, TARGETS, 3).item() == pytest.approx(TOTAL / 3)


def test_micro_batches_add_up_to_the_whole() -> None:
    """Each row alone, divided by the tokens of the whole step, adds up to the mean over the whole step."""
    parts = [token_mean_cross_entropy(LOGITS[i : i + 1], TARGETS[i : i + 1], 3) for i in range(2)]
    assert sum(part.item() for part in parts) == pytest.approx(TOTAL / 3)


def test_no_target_tokens_give_zero() -> None:
    nothing = torch.full_like(TARGETS, IGNORED)
    assert token_mean_cross_entropy(LOGITS, nothing, 0).item() == 0.0


def test_likelihoods_of_tokens() -> None:
    """ln(1/2), ln(3/4); ln(1/4), and 0 where there is no target."""
    found = token_log_likelihood(LOGITS, TARGETS)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.75], [0.25, 1.0]]).log())


def test_label_posterior_loss() -> None:
    """P(r*|x,y*) = 0.3, P(r*|x,y-) = 0.1: -ln(0.3 / 0.4). Equal ones: ln 2. Far apart: 0, and the distance."""
    gold, rival = torch.tensor([0.3, 0.2, 1.0, math.exp(-90)]).log(), torch.tensor([0.1, 0.2, math.exp(-90), 1.0]).log()
    expected = [math.log(4 / 3), math.log(2), 0.0, 90.0]
    assert label_posterior_loss(gold, rival).tolist() == pytest.approx(expected)


def test_joint_loss() -> None:
    """0.7 · 2 + 0.3 · 1 = 1.7, and the ends are the single tasks."""
    label, rationale = torch.tensor(2.0), torch.tensor(1.0)
    assert [joint_loss(label, rationale, alpha).item() for alpha in (0.7, 0.0, 1.0)] == pytest.approx([1.7, 1.0, 2.0])

"""The losses: token-mean cross entropy of each task, and their weighted sum."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor
from torch.nn import functional

Loss = TypeVar("Loss", float, Tensor)
IGNORED = -100  # target ids that carry no loss (padding, rows without the task's target)


def token_mean_cross_entropy(logits: Tensor, target_ids: Tensor, num_tokens: int) -> Tensor:
    """-log P(target | prompt), summed over this batch's target tokens and divided by `num_tokens` (paper, "L_pred",
    "L_expl", "Stage 1 loss").

    Args:
        logits: (rows, target length, vocabulary).
        target_ids: (rows, target length), `IGNORED` where there is nothing to learn.
        num_tokens: target tokens of this task in the whole optimizer step, over all its micro-batches and processes,
            so that a step's loss is one mean however the step is split into batches. With none, the loss is 0.
    """
    total = functional.cross_entropy(
        logits.flatten(0, 1).float(), target_ids.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / max(num_tokens, 1)


def token_log_likelihood(logits: Tensor, target_ids: Tensor) -> Tensor:
    """log P(target token | prompt, tokens before it), float32 (rows, target length); 0 where there is no target."""
    return -functional.cross_entropy(
        logits.flatten(0, 1).float(), target_ids.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(target_ids.shape)


def label_posterior_loss(gold: Tensor, rival: Tensor) -> Tensor:
    """-log P(r*|x,y*) / (P(r*|x,y*) + P(r*|x,y-)) of each row, (rows,) (ours).

    It is the cross entropy of telling y* from y- by the gold rationale alone. Nearest published: Masked Label
    Regularization (Veerubhotla et al., Findings of ACL 2023).

    Args:
        gold, rival: log P(r* | x, y*) and log P(r* | x, y-), (rows,).
    """
    return functional.softplus(rival - gold)


def joint_loss(label_loss: Loss, rationale_loss: Loss, alpha: float) -> Loss:
    """alpha_t · L_label + (1 - alpha_t) · L_rationale: the loss of every method here (paper, "Stage 2 loss")."""
    return alpha * label_loss + (1 - alpha) * rationale_loss

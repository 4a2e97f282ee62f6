"""The optimizers that a configuration may name, and gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reason2decide.training.config import Config


def new_optimizer(model: Any, config: Config) -> torch.optim.Optimizer:
    """The optimizer of the weights that train; its learning rate is set at each step.

    Weight decay skips vectors, which are norms and biases (as the Hugging Face Trainer does).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=0.0)
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def clip_gradients(model: Any, max_norm: float) -> Tensor:
    """Clip the gradients to this norm over all weights; return the norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

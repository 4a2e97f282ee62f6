"""Low-rank adapters (Hu et al. 2021) through `peft`: inserted into a model, merged into its weights at the end."""

from __future__ import annotations

from typing import Any

import torch

from reason2decide.errors import ConfigError, require
from reason2decide.training.config import Lora


def add_adapters(model: Any, settings: Lora) -> Any:
    """Freeze the model's weights and add adapters to the `settings.targets`, in place; return what merges them."""
    peft = require("peft", "lora")
    lora = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    return peft.tuners.lora.LoraModel(model, lora, "default")


def require_targets(model: Any, settings: Lora) -> None:
    """Refuse targets that are not layers of the model.

    Raises:
        ConfigError: no layer's name ends in one of the targets.
        MissingExtraError: peft is not installed.
    """
    require("peft", "lora")
    linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    found = {name for name, _ in model.named_modules()}
    for target in settings.targets:
        if not any(name == target or name.endswith(f".{target}") for name in found):
            raise ConfigError(
                f"lora.targets: no layer of the base is named {target!r}; its linear layers are "
                f"{', '.join(sorted(linear))}"
            )


def merge_adapters(adapted: Any) -> Any:
    """The model with its adapters added to its weights and removed; its weights train again."""
    model = adapted.merge_and_unload()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model

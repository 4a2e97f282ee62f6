"""Low-rank adapters (Hu et al. 2021) through `peft`: inserted into a model, merged into its weights at the end."""

from __future__ import annotations

from typing import Any

import torch

from reason2decide.errors import ConfigError, require
from reason2decide.training.config import Lora

# What layers of queries and values are called: T5's; BART's, Llama's, Qwen's and Gemma's; BERT's; Phi-3's, which has
# them in one; ModernBERT's, too.
QUERIES_AND_VALUES = (("q", "v"), ("q_proj", "v_proj"), ("query", "value"), ("qkv_proj",), ("Wqkv",))


def add_adapters(model: Any, settings: Lora) -> Any:
    """Freeze the model's weights and add adapters to the `settings.targets`, in place; return what merges them."""
    peft = require("peft", "lora")
    lora = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(lora_targets(model, settings)),
    )
    return peft.tuners.lora.LoraModel(model, lora, "default")


def lora_targets(model: Any, settings: Lora) -> tuple[str, ...]:
    """The layers to adapt: those that the settings name, else the base's queries and values.

    Raises:
        ConfigError: no layer's name ends in one of the targets, or nothing is named as queries and values are.
        MissingExtraError: peft is not installed.
    """
    require("peft", "lora")
    linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    if settings.targets is None:
        for names in QUERIES_AND_VALUES:
            if linear.issuperset(names):
                return names
        raise ConfigError(
            f"lora.targets must say which layers to adapt: the base's linear layers are {', '.join(sorted(linear))}"
        )
    found = {name for name, _ in model.named_modules()}
    for target in settings.targets:
        if not any(name == target or name.endswith(f".{target}") for name in found):
            raise ConfigError(
                f"lora.targets: no layer of the base is named {target!r}; its linear layers are "
                f"{', '.join(sorted(linear))}"
            )
    return settings.targets


def merge_adapters(adapted: Any) -> Any:
    """The model with its adapters added to its weights and removed; its weights train again."""
    model = adapted.merge_and_unload()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model

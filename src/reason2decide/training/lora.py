"""Low-rank adapters (Hu et al. 2021) through `peft`: inserted into a model, merged into its weights at the end.

The weights beside them are frozen, so they may be held in four bits (Dettmers et al. 2023), through `bitsandbytes`.
"""

from __future__ import annotations

from typing import Any

import torch

from reason2decide.errors import ConfigError, require
from reason2decide.training.config import Lora

# What layers of queries and values are called: T5's; BART's, Llama's, Qwen's and Gemma's; BERT's; Phi-3's, which has
# them in one; ModernBERT's, too.
QUERIES_AND_VALUES = (("q", "v"), ("q_proj", "v_proj"), ("query", "value"), ("qkv_proj",), ("Wqkv",))


def add_adapters(model: Any, settings: Lora, seed: int, compute_dtype: torch.dtype = torch.float32) -> None:
    """Freeze the model's weights, round them if the settings say so, and add adapters to the targets; in place.

    Args:
        seed: of the adapters' first weights.
        compute_dtype: what rounded weights are multiplied in.

    Raises:
        ConfigError, MissingExtraError: as `lora_targets`.
    """
    peft = require("peft", "lora")
    torch.manual_seed(seed)  # peft draws the adapters' weights: the same in every process and every run
    targets = list(lora_targets(model, settings))
    if settings.weights == "nf4":
        _round_to_nf4(model, compute_dtype)
    lora = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale,
        lora_dropout=settings.dropout,
        target_modules=targets,
    )
    peft.tuners.lora.LoraModel(model, lora, "default")


def lora_targets(model: Any, settings: Lora) -> tuple[str, ...]:
    """The layers to adapt: those that the settings name, else the base's queries and values.

    Raises:
        ConfigError: no layer's name ends in one of the targets, or nothing is named as queries and values are.
        MissingExtraError: peft is not installed, or bitsandbytes, which 4-bit weights need.
    """
    require("peft", "lora")
    if settings.weights == "nf4":
        require("bitsandbytes", "qlora", 'lora.weights = "nf4"')
    # What shares its weight with another layer, as a head with the embeddings, would take the other along when merged.
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in embedded
    ]
    linear = {name.split(".")[-1] for name in names}
    if settings.targets is None:
        for usual in QUERIES_AND_VALUES:
            if linear.issuperset(usual):
                return usual
        raise ConfigError(
            f"lora.targets must say which layers to adapt: the base's linear layers are {', '.join(sorted(linear))}"
        )
    for target in settings.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(
                f"lora.targets: no linear layer of the base is named {target!r}; its linear layers are "
                f"{', '.join(sorted(linear))}"
            )
    return settings.targets


def merge_adapters(model: Any) -> None:
    """Add the adapters to the weights that were trained beside, in float32, and remove them; all weights train again.

    `peft` would round the sum to four bits again, and lose what was learnt.
    """
    layer_kind = require("peft", "lora").tuners.lora.LoraLayer
    for name, module in list(model.named_modules()):
        if isinstance(module, layer_kind):
            merged = _in_float32(module.base_layer)
            merged.weight.data += module.get_delta_weight("default")
            model.set_submodule(name, merged)
        elif _is_rounded(module) and not name.endswith(".base_layer"):
            model.set_submodule(name, _in_float32(module))
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _round_to_nf4(model: Any, compute_dtype: torch.dtype) -> None:
    """Hold the weights of all linear layers but the head in four bits; embeddings, norms and biases stay as they are.

    So do layers that the library keeps in float32, such as T5's `wo`, whose weights' type its code asks for.
    The scale of each 64 weights is not rounded itself, so that a rounded weight rounds to itself.
    """
    bitsandbytes = require("bitsandbytes", "qlora")
    head, kept = model.get_output_embeddings(), set(model._keep_in_fp32_modules or ())
    for name, layer in list(model.named_modules()):
        if type(layer) is not torch.nn.Linear or layer is head or not kept.isdisjoint(name.split(".")):
            continue
        rounded = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype,
            quant_type="nf4",
            compress_statistics=False,
            device="meta",
        )
        rounded.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=False, module=rounded
        ).to(layer.weight.device)
        rounded.bias = layer.bias
        # On a CPU that multiplies bfloat16 the library packs weights anew for validation: it computes otherwise then,
        # and fails for layers narrower than its blocks.
        rounded.support_avx512bf16_for_cpu = False
        model.set_submodule(name, rounded)


def _is_rounded(module: torch.nn.Module) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state")


def _in_float32(layer: Any) -> torch.nn.Linear:
    """A linear layer as it is, a rounded one with the weights that it computes with."""
    if not _is_rounded(layer):
        return layer  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight, plain.bias = torch.nn.Parameter(weight), layer.bias
    return plain

"""Which models can be a base: refusals that name what came, what was expected and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from reason2decide.errors import BaseModelError
from reason2decide.model.architectures.thin_decoder import ThinDecoderConfig

KINDS = "T5, mT5, BART, T5Gemma, or a decoder-only model such as Qwen, Gemma, Llama or SmolLM"
OTHER_SENSES = ("vision_config", "audio_config", "vq_config", "speech_config")
ADAPTER = "adapter_config.json"
GIB = 2**30


def require_folder_of_a_model(name: str) -> None:
    """Refuse what people give in a model's place: a GGUF file or a folder of them, an adapter.

    Raises:
        BaseModelError: as said.
    """
    path = Path(name)
    if path.suffix == ".gguf" or (path.is_dir() and not (path / "config.json").is_file() and any(path.glob("*.gguf"))):
        raise BaseModelError(
            f"the base {name!r} is a GGUF file, whose weights are rounded for use; training needs the original: give "
            "its hub name or the folder that it was converted from"
        )
    if (path / ADAPTER).is_file() and not (path / "config.json").is_file():
        raise BaseModelError(
            f"the base {name!r} is an adapter, not a model; merge it into its base with peft (merge_and_unload), save "
            "that, and give its folder"
        )


def require_text_model(config: Any, name: str) -> None:
    """Refuse models of images or speech only, those with rounded weights, and those that need code of their own.

    Raises:
        BaseModelError: as said.
    """
    kind = config.model_type
    if getattr(config, "auto_map", None) and kind not in _known():
        raise BaseModelError(
            f"the base {name!r} needs code from its own folder ({', '.join(sorted(config.auto_map))}), which is never "
            f"run; give a model that transformers has itself: {KINDS}"
        )
    if getattr(config, "quantization_config", None):
        raise BaseModelError(
            f"the weights of the base {name!r} are rounded for use (quantization_config in its config.json); training "
            "needs the original: give its hub name or the folder that it was made from"
        )
    senses = [key.removesuffix("_config") for key in OTHER_SENSES if getattr(config, key, None) is not None]
    if senses and not config.is_encoder_decoder and text_config(config) is None:
        raise BaseModelError(
            f"the base {name!r} is a {kind}, a model of {' and '.join(senses)} without a part that writes text alone; "
            "give a model of text"
        )


def require_kind(config: Any, name: str) -> None:
    """Refuse what is neither an encoder-decoder of text nor a decoder-only model.

    Raises:
        BaseModelError: as said; of an encoder alone it says how to give it.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        if kind not in (*MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, ThinDecoderConfig.model_type):
            raise BaseModelError(f"the base {name!r} is a {kind}, which does not answer text with text; give {KINDS}")
        return
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise BaseModelError(
            f'the base {name!r} is a {kind}, an encoder alone; give it as base = {{encoder = "{name}"}}, and it gets '
            "a decoder"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and text_config(config) is None:
        raise BaseModelError(f"the base {name!r} is a {kind}, which writes no text; give {KINDS}")


def require_memory(parameters: int, bits: int, total: int | None, name: str) -> None:
    """Refuse a model whose weights alone are more than the device has; before they are loaded.

    Args:
        bits: of each weight.
        total: bytes of the device's memory; None if unknown.

    Raises:
        BaseModelError: as said.
    """
    needed = parameters * bits // 8
    if total is not None and needed > total:
        advice = 'take a smaller base, or [lora] with weights = "nf4" on a GPU' if bits > 4 else "take a smaller base"
        raise BaseModelError(
            f"the base {name!r} has {parameters / 1e9:.1f} billion parameters, {needed / GIB:.0f} GiB in {bits} bits "
            f"each, and there are {total / GIB:.0f} GiB; {advice}"
        )


def parameters_of(auto: Any, config: Any) -> int:
    """Number of parameters that a class of the library gives a configuration, counted without memory for them."""
    with torch.device("meta"):
        return int(sum(parameter.numel() for parameter in auto.from_config(config).parameters()))


def text_config(config: Any) -> Any | None:
    """The configuration of the part of a model of text and images that writes text; None if it has no such part."""
    text = config.get_text_config()
    writes = text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return text if writes and config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES else None


def _known() -> set[str]:
    return {
        *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }

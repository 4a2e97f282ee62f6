"""Which architecture a model has, and which class of transformers loads it."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from reason2decide.model.architectures import Architecture
from reason2decide.model.architectures import thin_decoder as thin_decoder  # whose models the library then loads too
from reason2decide.model.architectures.decoder_only import DecoderOnly
from reason2decide.model.architectures.encoder_decoder import EncoderDecoder


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a model of this configuration."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def architecture_of(model: Any, padding: int) -> Architecture:
    """The architecture of a model; `padding` is a token that fills rows, of which nothing depends on."""
    if model.config.is_encoder_decoder:
        return EncoderDecoder(model, padding)
    return DecoderOnly(model, padding)

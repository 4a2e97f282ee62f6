"""Encoder-decoders whose encoder has the weights of an encoder alone: BERT and its like, ModernBERT."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, EncoderDecoderModel, set_seed

from reason2decide.errors import BaseModelError
from reason2decide.model.architectures.thin_decoder import ThinDecoderModel, thin_decoder_config
from reason2decide.model.hub import first_line, require_model
from reason2decide.training.fitness import require_text_model

PAIRED = ("bert", "roberta", "camembert", "xlm-roberta", "electra", "rembert", "big_bird", "ernie")


def from_encoder(name: str, seed: int) -> tuple[Any, Any]:
    """An encoder-decoder warm-started from an encoder, and its tokenizer.

    Of BERT and its like both halves have its weights (Rothe et al. 2020, "BERT2BERT"), and the cross-attention is new.
    Other encoders, ModernBERT among them, get a new thin decoder (`thin_decoder`). The classification token starts the
    decoder, the separator ends it.

    Raises:
        BaseModelError: it cannot be loaded, is no encoder of text, or has no tokenizer with these tokens.
    """
    require_model(name, "base")
    set_seed(seed)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        require_text_model(config, name)
        if config.is_encoder_decoder:
            raise BaseModelError(f"{name!r} has a decoder already; give it as base = {name!r}")
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        start, end, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        if None in (start, end, pad):
            raise BaseModelError(f"the tokenizer of {name!r} has no classification, separator or padding token")
        encoder = _whole_encoder(name)
        if config.model_type in PAIRED:
            model: Any = EncoderDecoderModel.from_encoder_decoder_pretrained(
                None, name, encoder_model=encoder, decoder_dtype=torch.float32
            )
        else:
            model = ThinDecoderModel.around(encoder, thin_decoder_config(encoder.config, start=start, end=end, pad=pad))
    except BaseModelError:
        raise
    except Exception as error:
        raise BaseModelError(
            f"the base {{encoder = {name!r}}} cannot become an encoder-decoder: {first_line(error)}"
        ) from None
    tokenizer.eos_token, tokenizer.clean_up_tokenization_spaces = tokenizer.sep_token, False
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = start, end, pad
    return model, tokenizer


def _whole_encoder(name: str) -> Any:
    """An encoder, all of whose weights are in its files; the pooler, which nothing here uses, may be missing.

    Raises:
        BaseModelError: weights are missing, which the library would fill with random ones.
    """
    encoder, loaded = AutoModel.from_pretrained(
        name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    lacking = sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler."))
    if lacking:
        raise BaseModelError(
            f"the encoder {name!r} lacks {len(lacking)} of its weights, such as {lacking[0]}, which would be random; "
            "give the folder or name of a model that was saved whole, under its own names"
        )
    return encoder

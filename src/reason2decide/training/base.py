"""The models that training starts from: any encoder-decoder by folder or hub name, and a small one from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from reason2decide.errors import BaseModelError
from reason2decide.method.prompts import PREDICT_PREFIX, explain_prefix, join
from reason2decide.model.hub import SCRATCH, first_line, require_model
from reason2decide.training.config import Encoder

TINY_VOCABULARY = 3000  # ours: small enough that embeddings are under half of the parameters
DROPOUT_KEYS = (
    "dropout_rate",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
SENTINELS = 100  # T5's <extra_id_0> ... <extra_id_99>, for span corruption


def load_base(
    base: str | Encoder, *, texts: Callable[[], Iterable[str]], seed: int, dropout: float | None = None
) -> tuple[Any, Any]:
    """The model and tokenizer of a base, weights in float32.

    Args:
        base: `tiny`, a local folder, a hub name, or a BERT-like encoder to warm-start from.
        texts: returns the training texts, read only if a tokenizer must be trained on them (`tiny`).
        seed: for the weights of `tiny`, and for the new decoder weights of an encoder base.
        dropout: replaces the base's own rate.

    Raises:
        BaseModelError: neither a folder nor reachable, of the wrong kind, or without a usable tokenizer.
    """
    if base == SCRATCH:
        tokenizer = train_tokenizer(texts())
        model: Any = new_tiny(tokenizer, seed)
    elif isinstance(base, Encoder):
        model, tokenizer = _from_encoder(base.encoder, seed)
    else:
        model, tokenizer = _pretrained(base)
    if dropout is not None:
        set_dropout(model, dropout)
    return model, tokenizer


def blank_copy(model: Any) -> Any:
    """A model of the same shape and settings, its weights yet to be loaded."""
    return AutoModelForSeq2SeqLM.from_config(model.config)


def new_tiny(tokenizer: Any, seed: int) -> T5ForConditionalGeneration:
    """A small T5 (v1.0 shape, about 1.7 million parameters) with random weights (sizes are ours)."""
    set_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=128,
            d_kv=32,
            d_ff=512,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train_tokenizer(texts: Iterable[str], vocabulary: int = TINY_VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with T5's special tokens, trained on `texts`; what it never saw is encoded as bytes.

    Byte-pair merges keep the whole words of a small, repetitive corpus, which unigram training pruned: 1.2 against 2.0
    tokens per word on synthetic calls.
    """
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    specials = ["<pad>", "</s>", "<unk>", *sentinels]
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    trainer = BpeTrainer(vocab_size=vocabulary - 256, special_tokens=specials, show_progress=False)
    # The words of the prompts precede every text the model will read, so they precede every text here.
    tokenizer.train_from_iterator((join(explain_prefix(PREDICT_PREFIX), text) for text in texts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    learnt = {**model["vocab"], **{f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer.model = BPE(vocab=learnt, merges=merges, unk_token="<unk>", byte_fallback=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=sentinels,
    )


def load_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Load weights that contain tied ones once, as `processes.whole_weights` returns them."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    parameters = {name for name, _ in model.named_parameters()}
    assert not unexpected and parameters.isdisjoint(missing), f"weights of another model: {unexpected} {missing}"


def set_attention(model: Any, implementation: str) -> None:
    """Choose how attention is computed ("eager" or "sdpa") in every layer.

    The library reaches the layers through their models' configurations, but those of an encoder that was joined to a
    decoder hold a copy from before.
    """
    model.set_attn_implementation(implementation)
    for module in model.modules():
        if isinstance(getattr(module, "config", None), PretrainedConfig):
            module.config._attn_implementation = implementation


def has_dropout(model: Any) -> bool:
    """Whether any layer applies dropout in training."""
    return any(
        module.p > 0
        if isinstance(module, torch.nn.Dropout)
        else isinstance(getattr(module, "dropout", None), float) and module.dropout > 0
        for module in model.modules()
    )


def _pretrained(name: str) -> tuple[Any, Any]:
    require_model(name, "base")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if not config.is_encoder_decoder:
            raise BaseModelError(
                f"the base {name!r} is a {config.model_type}, not an encoder-decoder; T5, mT5 and BART are, and a "
                f'BERT-like encoder becomes one with base = {{encoder = "{name}"}}'
            )
        model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except BaseModelError:
        raise
    except Exception as error:  # a damaged or foreign folder can make the library raise anything
        raise BaseModelError(f"the base {name!r} cannot be loaded: {first_line(error)}") from None
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise BaseModelError(f"the tokenizer of {name!r} has no padding or end token; add them and save it again")
    return model, tokenizer


def _from_encoder(name: str, seed: int) -> tuple[Any, Any]:
    """An encoder-decoder whose two halves have the weights of a BERT-like encoder (Rothe et al. 2020, "BERT2BERT").

    Its cross-attention is new. The classification token starts the decoder, the separator ends it.
    """
    require_model(name, "base")
    set_seed(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(
            name, name, encoder_dtype=torch.float32, decoder_dtype=torch.float32
        )
    except Exception as error:
        raise BaseModelError(
            f"the base {{encoder = {name!r}}} cannot become an encoder-decoder: {first_line(error)}"
        ) from None
    start, end, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    if None in (start, end, pad):
        raise BaseModelError(f"the tokenizer of {name!r} has no classification, separator or padding token")
    tokenizer.eos_token = tokenizer.sep_token
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = start, end, pad
    return model, tokenizer


def set_dropout(model: Any, rate: float) -> None:
    """Replace every dropout rate of a model, in its layers and its configuration."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = rate
    # The configurations too, those of encoder and decoder included: copies of the model are made from them.
    for config in (model.config, getattr(model.config, "encoder", None), getattr(model.config, "decoder", None)):
        for key in DROPOUT_KEYS:
            if hasattr(config, key):
                setattr(config, key, rate)

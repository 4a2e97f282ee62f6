"""The models that training starts from: any by folder or hub name, and a small one from scratch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers import PretrainedConfig

from reason2decide.model.hub import SCRATCH
from reason2decide.training.config import Encoder
from reason2decide.training.encoders import from_encoder
from reason2decide.training.pretrained import from_pretrained
from reason2decide.training.tiny import new_tiny, train_tokenizer

DROPOUT_KEYS = (
    "dropout_rate",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


def load_base(
    base: str | Encoder, *, texts: Callable[[], Iterable[str]], seed: int, dropout: float | None = None, bits: int = 32
) -> tuple[Any, Any]:
    """The model and tokenizer of a base, weights in float32.

    Args:
        base: `tiny`, a local folder, a hub name, or an encoder to warm-start from.
        texts: returns the training texts, read only if a tokenizer must be trained on them (`tiny`).
        seed: for the weights of `tiny`, and for the new decoder weights of an encoder base.
        dropout: replaces the base's own rate.
        bits: of each weight in training, for what a GPU can hold.

    Raises:
        BaseModelError: neither a folder nor reachable, of the wrong kind, too large, or without a usable tokenizer.
    """
    if base == SCRATCH:
        tokenizer = train_tokenizer(texts())
        model: Any = new_tiny(tokenizer, seed)
    elif isinstance(base, Encoder):
        model, tokenizer = from_encoder(base.encoder, seed)
    else:
        model, tokenizer = from_pretrained(base, bits=bits)
    if dropout is not None:
        set_dropout(model, dropout)
    return model, tokenizer


def blank_copy(model: Any) -> Any:
    """A model of the same shape and settings, its weights yet to be loaded; layers share what they share in this one.

    The configuration does not say so: of flan-T5 it says that the head shares the embeddings, the library tells by the
    file that it does not.
    """
    blank, own = type(model)._from_config(model.config), dict(model.named_parameters(remove_duplicate=False))
    for name, source in blank.all_tied_weights_keys.items():
        if own[name] is not own[source]:
            holder, _, attribute = name.rpartition(".")
            parameter = getattr(blank.get_submodule(holder), attribute)
            setattr(blank.get_submodule(holder), attribute, torch.nn.Parameter(parameter.detach().clone()))
    return blank


def load_weights(model: Any, weights: Mapping[str, torch.Tensor], *, trained_only: bool = False) -> None:
    """Load weights that contain tied ones once, as `processes.whole_weights` returns them."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    parameters = {name for name, own in model.named_parameters() if own.requires_grad or not trained_only}
    assert not unexpected and parameters.isdisjoint(missing), f"weights of another model: {unexpected} {missing}"


def weights_hash(model: Any) -> str:
    """SHA-256 over the names and values of a model's weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def set_attention(model: Any, implementation: str) -> None:
    """Choose how attention is computed ("eager" or "sdpa") in every layer; "eager" where the model knows no other.

    The library reaches the layers through their models' configurations, but those of an encoder that was joined to a
    decoder hold a copy from before.
    """
    try:
        model.set_attn_implementation(implementation)
    except ValueError:  # T5Gemma's soft-capped scores
        implementation = "eager"
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

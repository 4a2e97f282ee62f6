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
        else any(getattr(module, key) > 0 for key in _dropout_keys(module))
        for module in model.modules()
    )


def set_dropout(model: Any, rate: float) -> None:
    """Replace every dropout rate of a model's configuration, and give its layers those of a model built from that.

    So a model has the same dropout before and after it is copied (`blank_copy`), whatever its architecture makes of the
    rates.
    """
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    for config in configs:
        configs.extend(own for own in vars(config).values() if isinstance(own, PretrainedConfig))
        for key in _dropout_keys(config):
            setattr(config, key, rate)
    with torch.device("meta"):
        built = type(model)._from_config(model.config)
    for name, module in built.named_modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Identity):  # a layer without dropout may have none at all
            model.set_submodule(name, module)
        for key in _dropout_keys(module):
            setattr(model.get_submodule(name), key, getattr(module, key))


def _dropout_keys(holder: Any) -> list[str]:
    """Names of the dropout rates of a configuration or a layer."""
    return [
        key
        for key, value in vars(holder).items()
        if ("dropout" in key or key.endswith("pdrop")) and type(value) in (int, float)
    ]

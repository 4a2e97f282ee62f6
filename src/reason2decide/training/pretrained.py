"""Bases by folder or hub name: encoder-decoders and decoder-only models, as the library has them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)

from reason2decide.console import say
from reason2decide.errors import BaseModelError
from reason2decide.model.architectures.kinds import auto_class
from reason2decide.model.hub import first_line, require_model
from reason2decide.training.fitness import (
    parameters_of,
    require_folder_of_a_model,
    require_kind,
    require_memory,
    require_text_model,
    text_config,
)
from reason2decide.training.memory import total_bytes

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "spiece*", "merges*")


def from_pretrained(name: str, *, bits: int = 32) -> tuple[Any, Any]:
    """The model and tokenizer of a folder or hub name, weights in float32; nothing of it is run.

    Args:
        bits: of each weight on a GPU, which must hold them.

    Raises:
        BaseModelError: it cannot be loaded, is of the wrong kind, too large, or has no usable tokenizer.
    """
    require_folder_of_a_model(name)
    require_model(name, "base")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        require_text_model(config, name)
        require_kind(config, name)
        text = None if config.is_encoder_decoder else text_config(config)
        auto = auto_class(config)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bits = bits if device.type == "cuda" else 32  # rounded where training is, from float32 in the machine's memory
        require_memory(parameters_of(auto, config if text is None else text), bits, total_bytes(device), name)
        tokenizer = _tokenizer(name)
        model, missing = _loaded(auto, name) if text is None else _text_part(name, text)
    except BaseModelError:
        raise
    except Exception as error:  # a damaged or foreign folder can make the library raise anything
        raise BaseModelError(f"the base {name!r} cannot be loaded: {_reason(error)}") from None
    _require_whole(model, missing, name)
    _require_as_in_file(model, name)
    tokenizer.clean_up_tokenization_spaces = False  # what is read back is what was written
    complete_tokenizer(tokenizer, name, has_encoder=config.is_encoder_decoder)
    if config.is_encoder_decoder:
        model.config.decoder_start_token_id = start_token(model, tokenizer, name)
    # A base's own settings of generation (beams, penalties, forced tokens) are not what it is trained and scored with.
    model.generation_config = GenerationConfig()
    return model, tokenizer


def _loaded(auto: Any, name: str) -> tuple[Any, Collection[str]]:
    """A model, and the names of its weights that its files lack."""
    model, loaded = auto.from_pretrained(name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True)
    return model, loaded["missing_keys"]


def _text_part(name: str, config: Any) -> tuple[Any, Collection[str]]:
    """The part of a model of text and images that writes text, as `_loaded`.

    The library's own class for it would find none of the weights under their names in such a file.
    """
    whole, missing = _loaded(AutoModelForImageTextToText, name)
    model = AutoModelForCausalLM.from_config(config).to(torch.float32)
    model.base_model.load_state_dict(whole.get_decoder().state_dict())
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        head.weight.data.copy_(whole.get_output_embeddings().weight.data)
    say(f"of the base {name} only the part that reads and writes text is used")
    return model, missing


def _tokenizer(name: str) -> Any:
    folder = Path(name)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        # The library would make one that knows no word.
        raise BaseModelError(f"the base {name!r} has no tokenizer beside its weights; save its tokenizer there too")
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise BaseModelError(
            f"the base {name!r} has no tokenizer that can be loaded ({_reason(error)}); save its tokenizer beside it"
        ) from None


def _require_whole(model: Any, missing: Collection[str], name: str) -> None:
    """Refuse a base some of whose weights are not in its files, which the library fills with random ones."""
    lacking = sorted(set(missing) - set(model.all_tied_weights_keys))
    if lacking:
        raise BaseModelError(
            f"the base {name!r} lacks {len(lacking)} of its weights, such as {lacking[0]}, which would be random; "
            "give the folder or name of the whole model"
        )


def _require_as_in_file(model: Any, name: str) -> None:
    """Refuse a model whose embeddings, which layers may share, are not those of its files.

    Raises:
        BaseModelError: as said.
    """
    embeddings = [layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    own = {
        key: value
        for key, value in model.named_parameters(remove_duplicate=False)
        if any(value is one for one in embeddings)
    }
    for file in _weight_files(name):
        with safe_open(file, "pt") as tensors:
            for key in own.keys() & set(tensors.keys()):
                if not torch.equal(tensors.get_tensor(key).float(), own[key]):
                    raise BaseModelError(
                        f"the base {name!r} was loaded with other weights for {key} than its file has; its "
                        "configuration and its file disagree on which layers share their weights"
                    )


def _weight_files(name: str) -> list[Path]:
    """The safetensors of a folder or of a hub's model as it was downloaded."""
    if Path(name).is_dir():
        return sorted(Path(name).glob("*.safetensors"))
    found = try_to_load_from_cache(name, "config.json")
    return sorted(Path(found).parent.glob("*.safetensors")) if isinstance(found, str) else []


def complete_tokenizer(tokenizer: Any, name: str, *, has_encoder: bool) -> None:
    """Refuse a tokenizer without an end token; where padding has none of its own, any token serves, as it is masked."""
    if tokenizer.eos_token_id is None:
        raise BaseModelError(f"the tokenizer of {name!r} has no end token; add one and save it again")
    if tokenizer.pad_token_id is None:
        if has_encoder:
            raise BaseModelError(f"the tokenizer of {name!r} has no padding token; add one and save it again")
        tokenizer.pad_token = tokenizer.eos_token


def start_token(model: Any, tokenizer: Any, name: str) -> int:
    """The token that the decoder begins with; some configurations leave it to their generation settings."""
    decoder = getattr(model.config, "decoder", None)
    places = (
        getattr(model.config, "decoder_start_token_id", None),
        getattr(model.generation_config, "decoder_start_token_id", None),
        getattr(decoder, "bos_token_id", None),
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
    )
    for token in places:
        if token is not None:
            return int(token)
    raise BaseModelError(f"the base {name!r} says of no token that its decoder starts with it")


def _reason(error: Exception) -> str:
    """Why the library could not load a model."""
    if "trust_remote_code" in str(error):
        return "it needs code from its own folder, which is never run; give a model that transformers has itself"
    return first_line(error)

"""Models by folder or hub name: check that one exists, and count tokens with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reason2decide.errors import BaseModelError, require

SCRATCH = "tiny"  # a small T5 from scratch, its tokenizer trained on the training split
HUB_TIMEOUT_SECONDS = 5.0  # ours: for checking that the hub is reachable, not for downloads


def silence_transformers() -> None:
    """Silence transformers' progress bars and advice, which would mix with this program's."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def first_line(error: Exception) -> str:
    """The first line of a library's exception, without its advice for programmers."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def require_model(name: str, what: str) -> None:
    """Check within seconds that a folder contains a model, or that a hub name is cached or reachable.

    Args:
        what: the model's role, for the message: "base", "encoder".

    Raises:
        BaseModelError: neither is true.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise BaseModelError(
                f"the folder {name} given as {what} contains no model (no config.json); give one saved by transformers"
            )
    elif name.startswith((".", "/")) or name.count("/") > 1:
        raise BaseModelError(f"the {what} {name!r} is not a folder; give a folder or a hub name")
    else:
        _require_reachable(name, what)


def _require_reachable(name: str, what: str) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT_SECONDS, retry_on_errors=False)
    except Exception as error:
        raise BaseModelError(
            f"the {what} {name!r} is neither a folder here nor reachable on the hub ({type(error).__name__}); "
            "check the name and the connection, or give the folder of a downloaded model"
        ) from None


def load_tokenizer(base: str) -> Any:
    """The tokenizer of a base; nothing is downloaded.

    Raises:
        BaseModelError: the base is neither a folder nor a downloaded model.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", "train")
    require("torch", "train")
    if base == SCRATCH:
        raise BaseModelError(f"the tokenizer of {base!r} is trained on the training split; leave --base out")
    try:
        return transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"the tokenizer of {base!r} is neither a folder nor a downloaded model ({first_line(error)}); "
            "give a folder, download it first, or leave --base out to see words"
        ) from None


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of texts."""

    tokenizer: Any

    def __call__(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []

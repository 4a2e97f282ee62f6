"""A tokenizer without transformers, for prompts and rationales, read from the files of an exported model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reason2decide.errors import BundleError, require
from reason2decide.model.prompt_encoder import special_ids

TOKENIZER, SPECIAL = "tokenizer.json", "special_tokens.json"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of special tokens: all of them, and those of padding, end and unknown words."""

    all: tuple[int, ...]
    pad: int
    end: int
    unknown: int | None


class PlainTokenizer:
    """The part of transformers' tokenizers that `PromptEncoder` and the predictor call, on `tokenizers` alone.

    Raises:
        BundleError: the folder's tokenizer files are missing or damaged.
        MissingExtraError: the package tokenizers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        tokenizers = require("tokenizers", "serve")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
            special = SpecialTokens(**json.loads((folder / SPECIAL).read_text("utf-8")))
        except Exception as error:  # a damaged file can make the library raise anything
            raise BundleError(
                f"the tokenizer of {folder} cannot be loaded ({error}); export the bundle again"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.all_special_ids = list(special.all)
        self.pad_token_id, self.eos_token_id, self.unk_token_id = special.pad, special.end, special.unknown

    def __call__(
        self, texts: str | Sequence[str], *, add_special_tokens: bool = True, verbose: bool = False
    ) -> dict[str, Any]:
        """`input_ids` of a text, or of each of several; `verbose` is accepted for compatibility."""
        if isinstance(texts, str):
            return {"input_ids": self._tokenizer.encode(texts, add_special_tokens=add_special_tokens).ids}
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in encoded]}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text


def save_plain_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files that `PlainTokenizer` reads, from a fast tokenizer of transformers.

    Raises:
        BundleError: it is not a fast tokenizer; only those can be read without transformers.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BundleError(f"the tokenizer is a {type(tokenizer).__name__}, which only transformers can run")
    backend.save(str(folder / TOKENIZER))
    special = SpecialTokens(
        tuple(sorted(special_ids(tokenizer))), tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
    )
    (folder / SPECIAL).write_text(json.dumps(asdict(special)), "utf-8")

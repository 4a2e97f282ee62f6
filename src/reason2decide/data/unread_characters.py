"""Characters of the data that a base cannot read or write: its tokenizer has only an unknown token for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from reason2decide.errors import BaseModelError

SHOWN = 8  # ours: characters that a message names
UNREADABLE = 0.9  # ours: share from which a base is not one for these texts


class UnreadCharacters:
    """Counts the characters of texts that a tokenizer has no token for; white space does not count.

    Example:
        >>> unread = UnreadCharacters(tokenizer)
        >>> unread.add(["SpO2 <90%"])
        >>> unread.in_words()
        "11.1 % of the characters ('<' 1)"
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._found: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        """Count the characters of further texts."""
        for text in texts:
            self._found.update(text)

    def add_counted(self, counts: Mapping[str, int]) -> None:
        """Count characters that were counted elsewhere."""
        self._found.update(counts)

    def counts(self) -> Counter[str]:
        """How often each character that cannot be read occurs."""
        unknown = self._tokenizer.unk_token_id
        characters = [character for character in self._found if not character.isspace()]
        if unknown is None or not characters:
            return Counter()
        encoded = self._tokenizer(characters, add_special_tokens=False, verbose=False)["input_ids"]
        unread = {character for character, ids in zip(characters, encoded, strict=True) if not ids or unknown in ids}
        return Counter({character: self._found[character] for character in unread})

    def share(self) -> float:
        """Their share of all characters."""
        total = sum(count for character, count in self._found.items() if not character.isspace())
        return self.counts().total() / total if total else 0.0

    def in_words(self) -> str:
        """Their share, and the commonest of them with their number."""
        common = ", ".join(f"{character!r} {count}" for character, count in self.counts().most_common(SHOWN))
        return f"{self.share():.1%} of the characters ({common})".replace("%", " %", 1)

    def require_readable(self, base: str) -> None:
        """Refuse a base that reads next to nothing of the texts.

        Raises:
            BaseModelError: as said.
        """
        if self.share() >= UNREADABLE:
            raise BaseModelError(
                f"the base {base!r} cannot read {self.in_words()} of the training texts; take one whose tokenizer "
                "knows this language, such as mT5"
            )

"""Writing greedily with guesses: reasons repeat phrases, so next tokens are guessed from earlier ones and checked.

Tokens are the ones that are written without guesses. A pass over several tokens takes little longer than over one where
reading the weights is what takes time. Phrases come from the reasons written before (ours), and from the text itself
(prompt lookup decoding, Saxena 2023); checking guesses in one pass is speculative decoding (Leviathan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

NGRAM = 3  # ours: tokens that must have come before, for what followed them then to be guessed
GUESSED = 8  # ours: tokens that are checked in one pass, at most
REMEMBERED = 50_000  # ours: places in reasons written before; a few MB


class Checked(Protocol):
    """A single row that reads several tokens at once and forgets the last of them again."""

    @property
    def best(self) -> int:
        """The most probable next token."""

    def check(self, tokens: Sequence[int]) -> list[int]:
        """Read tokens; return the most probable one after each."""

    def forget_last(self, tokens: int) -> None:
        """Forget so many of the tokens read last."""


class PhraseMemory:
    """What followed any `NGRAM` tokens the last time they came, in reasons and texts of this process only."""

    def __init__(self) -> None:
        self._followed: dict[tuple[int, ...], list[int]] = {}

    def learn(self, tokens: Sequence[int]) -> None:
        """Remember the phrases of a sequence, the oldest forgotten first."""
        known = list(tokens)
        for end in range(NGRAM, len(known)):
            key = tuple(known[end - NGRAM : end])
            self._followed.pop(key, None)
            self._followed[key] = known[end : end + GUESSED]
        while len(self._followed) > REMEMBERED:
            del self._followed[next(iter(self._followed))]

    def after(self, tokens: Sequence[int]) -> list[int]:
        """The guess of what follows; nothing if the last tokens never came."""
        return self._followed.get(tuple(tokens[-NGRAM:]), [])


def write_guessing(
    row: Checked, text: Sequence[int], phrases: PhraseMemory, *, end: int, max_tokens: int
) -> Iterator[int]:
    """The greedy tokens of a row, the end token last, at most `max_tokens`; its phrases are learnt when it has ended.

    Args:
        text: the tokens that are likely to be quoted.
    """
    own = PhraseMemory()
    own.learn(text)
    written, token = list[int](), row.best
    while True:
        written.append(token)
        yield token
        left = max_tokens - len(written)
        if token == end or not left:
            break
        guess = (own.after(written) or phrases.after(written))[: left - 1]
        best = row.check([token, *guess])
        right = 0
        while right < len(guess) and guess[right] == best[right] and guess[right] != end:
            right += 1
        row.forget_last(len(guess) - right)
        written += guess[:right]
        yield from guess[:right]
        token = best[right]
    phrases.learn(written)

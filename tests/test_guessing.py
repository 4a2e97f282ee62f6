"""Guesses change how many passes are taken, never what is written."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reason2decide.model import guessing
from reason2decide.model.guessing import GUESSED, NGRAM, PhraseMemory, write_guessing

END = 0


class Habit:
    """A row whose next token follows from the last two by a table, and which counts its passes."""

    def __init__(self, table: Sequence[int]) -> None:
        self.table, self.read, self.passes = table, list[int](), 0

    def _next(self, read: Sequence[int]) -> int:
        return self.table[sum(token * (place + 1) for place, token in enumerate(read[-2:])) % len(self.table)]

    @property
    def best(self) -> int:
        return self._next(self.read)

    def check(self, tokens: Sequence[int]) -> list[int]:
        self.passes += 1
        found = [self._next([*self.read, *tokens[: place + 1]]) for place in range(len(tokens))]
        self.read += tokens
        return found

    def forget_last(self, tokens: int) -> None:
        self.read = self.read[: len(self.read) - tokens]


def greedy(row: Habit, most: int) -> list[int]:
    written: list[int] = []
    while len(written) < most and (not written or written[-1] != END):
        written.append(row._next(written))
    return written


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), max_size=20), st.integers(1, 30)
)
def test_the_same_tokens_as_one_by_one(table: list[int], text: list[int], most: int) -> None:
    """Whether guesses come from the text, from reasons written before, or from this one."""
    phrases = PhraseMemory()
    for _ in range(2):
        row = Habit(table)
        written = list(write_guessing(row, text, phrases, end=END, max_tokens=most))
        assert written == greedy(Habit(table), most)
        assert row.read == written[:-1]  # what was guessed wrong is forgotten, and nothing else
        assert row.passes <= len(written)


@pytest.mark.parametrize("quoted", [True, False])
def test_what_came_before_takes_few_passes(quoted: bool) -> None:
    """In the text or in a reason before: after three tokens all is guessed, and a pass gives as many and one more."""
    table = [7, 11, 2, 9, 4, 8, 3, 10, 6, 5, 1, 12, 13]
    alone, phrases = greedy(Habit(table), 40), PhraseMemory()
    if not quoted:
        phrases.learn(alone)
    row = Habit(table)
    assert list(write_guessing(row, alone if quoted else [], phrases, end=END, max_tokens=40)) == alone
    assert row.passes <= NGRAM + len(alone) // (GUESSED + 1) + 1


def test_a_guess_is_what_followed_the_latest_time() -> None:
    phrases = PhraseMemory()
    phrases.learn([7, 8, 9, 1, 2])
    phrases.learn([7, 8, 9, 3])
    assert phrases.after([0, 7, 8, 9]) == [3] and phrases.after([8, 9, 1]) == [2]
    assert phrases.after([9, 9, 9]) == [] and phrases.after([7]) == [] and phrases.after([]) == []


def test_phrases_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "REMEMBERED", 10)
    phrases = PhraseMemory()
    phrases.learn(range(100))
    assert phrases.after([96, 97, 98]) == [99] and phrases.after([1, 2, 3]) == []

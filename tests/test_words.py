"""Words and sentences of notes and rationales; however odd a text is, its time grows with its length only."""

from __future__ import annotations

import time

import pytest

from reason2decide.data.sources.choices import lift_choices
from reason2decide.data.words import sentences


def test_sentences_by_hand() -> None:
    text = "BP 120/80... no fever! Temp 38.5; pale\n\nCalls at 9 a.m. today?!"
    found = [text[begin:end] for begin, end in sentences(text)]
    assert found == ["BP 120/80...", "no fever!", "Temp 38.5;", "pale", "Calls at 9 a.m.", "today?!"]


@pytest.mark.parametrize(
    "text", ["." * 300_000 + "a", ".a" * 150_000, " " * 300_000, "answer choices" * 20_000, "\n \t" * 100_000]
)
def test_time_grows_with_the_length_only(text: str) -> None:
    """Were it to grow with the square, the longer text would take a hundred times as long, and minutes."""

    def seconds(text: str) -> float:
        started = time.perf_counter()
        sentences(text)
        lift_choices(text)
        return time.perf_counter() - started

    assert seconds(text) < 5

"""Words and sentences of notes and rationales; however odd a text is, its time grows with its length only."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reason2decide.data.sources.choices import lift_choices
from reason2decide.data.words import mask_label_words, named_labels, sentences, stem, unit_spans, units, words_of


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


# --- scripts without spaces between words -----------------------------------------------------------------------------


def test_scripts_without_spaces_by_hand() -> None:
    assert words_of("Fever 39.5 seit 高熱3日") == ["fever", "39", "5", "seit", "高", "熱", "3", "日"]
    assert units("Fever 39.5 seit 高熱三日。咳") == ["fever", "39", "5", "seit", "高熱", "熱三", "三日", "咳"]
    assert len(units("ไข้สูง")) == 5  # six characters, marks among them
    assert units("고열 3일") == ["고열", "3일"]  # Korean has spaces
    assert [t[b:e] for t in ["高熱がある。胸痛はない。"] for b, e in sentences(t)] == ["高熱がある。", "胸痛はない。"]


def test_labels_are_masked_inside_of_unspaced_text() -> None:
    assert mask_label_words("今日中に受診してください", ["受診", "救急車"]) == "今日中に___してください"
    assert mask_label_words("救急車を呼ぶ", ["受診", "救急車"]) == "___を呼ぶ"
    assert mask_label_words("See a doctor, or home care.", ["home care", "see"]) == "___ a doctor, or ___ ___."


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("高熱ไข้ a1_. "), max_size=40))
def test_units_cover_all_words(text: str) -> None:
    covered = {i for start, end in unit_spans(text) for i in range(start, end)}
    assert covered == {i for i, character in enumerate(text) if words_of(character)}
    assert [text[start:end].casefold() for start, end in unit_spans(text)] == units(text)


@pytest.mark.parametrize(
    ("text", "choices", "named"),
    [
        ("rest by home care", ("care", "home care"), {"home care"}),
        ("take care, not home care", ("care", "home care"), {"care", "home care"}),
        ("seeing the doctors", ("see a doctor",), set()),
        ("There is no sign of it.", ("yes", "no", "maybe"), set()),
        ("No, there is no sign of it.", ("yes", "no", "maybe"), {"no"}),
        ("The answer is: no.", ("yes", "no", "maybe"), {"no"}),
        ("The answer is not known.", ("yes", "no", "maybe"), set()),
        ("So the decision should be level 3", ("2", "3"), {"3"}),
        ("since 3 days", ("2", "3"), set()),
        ("Yes, or yes", ("Yes", "yes"), {"Yes", "yes"}),
        ("anything", ("+", "-"), set()),
    ],
)
def test_labels_that_are_named(text, choices, named):
    assert named_labels(text, choices) == named


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("only desks hold paper", {"desk"}),
        ("only a Desk holds it", {"desk"}),
        ("stopping at the school desks", {"school desk", "stop"}),
        ("the desktop", set()),
    ],
)
def test_labels_that_are_named_in_another_form(text, named):
    labels = ("desk", "school desk", "stop")
    assert named_labels(text, labels, stem) == named


def test_labels_of_one_form_are_both_named():
    assert named_labels("they catch fish", ("catch fish", "catching fish"), stem) == {"catch fish", "catching fish"}
    assert named_labels("they catch fish", ("catch fish", "catching fish")) == {"catch fish"}

"""Choices taken out of a text, and the one that a label means."""

from __future__ import annotations

import pytest

from reason2decide.data.sources.choices import lift_choices, match_choice


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why? Answer Choices:\nA. Cold\nB. Flu, e.g. type\nA. x\n", ("Why?", ("Cold", "Flu, e.g. type\nA. x"))),
        ("Why? Answer Choices: A. Cold B. Flu C. Both", ("Why?", ("Cold", "Flu", "Both"))),
        ("Where?\nAnswer Choices:\n(a) bus depot\n(b) beach\n(c) beach", ("Where?", ("bus depot", "beach"))),
        ("Why? answer choices:\nA) Cold\nB) Flu", ("Why?", ("Cold", "Flu"))),
        ('Why? Answer Choices:\nA. Cold\nB. Flu\n"', ("Why?", ("Cold", "Flu"))),
        ("Vitamin A. or B. vitamins?", None),
        ("Why? Answer Choices: cold, flu", None),
        ("Why? Answer Choices:\nA. Cold", None),
    ],
)
def test_choices_are_lifted_out_of_a_text(text: str, expected: tuple[str, tuple[str, ...]] | None) -> None:
    lifted = lift_choices(text)
    assert (lifted and (lifted[0], tuple(dict.fromkeys(lifted[1].values())))) == expected


def test_a_label_means_the_choice_equal_but_for_case_space_and_final_marks() -> None:
    assert match_choice("Flu", ("flu", "Flu")) == "Flu"
    assert match_choice("the  flu", ("The flu.", "A cold.")) == "The flu."
    assert match_choice('A cold\n"', ("The flu.", "A cold")) == "A cold"
    assert match_choice("flu", ("Flu.", "FLU")) is None  # both or neither
    assert match_choice("fever", ("flu", "cold")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why? Options: 1. Cold 2. Flu", ("Why?", ("Cold", "Flu"))),
        ("Why?\n1. Cold\n2. Flu\n3. Both", ("Why?", ("Cold", "Flu", "Both"))),
        ("Why?\nA) Cold\nB) Flu", ("Why?", ("Cold", "Flu"))),
        ("Why?\n(1) Cold\n(2) Flu", ("Why?", ("Cold", "Flu"))),
        ("He takes:\n1. aspirin\n2. iron\nWhy?\n1. Cold\n2. Flu",
         ("He takes:\n1. aspirin\n2. iron\nWhy?", ("Cold", "Flu"))),
        ("1. Cold\n2. Flu", None),  # no question before them
        ("Since 1. May he has 2. fever", None),
    ],
)  # fmt: skip
def test_numbered_choices_are_lifted_too(text: str, expected: tuple[str, tuple[str, ...]] | None) -> None:
    lifted = lift_choices(text)
    assert (lifted and (lifted[0], tuple(dict.fromkeys(lifted[1].values())))) == expected

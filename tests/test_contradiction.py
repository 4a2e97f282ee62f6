"""What a rationale asserts although its note denies it: phrases by hand, and how rationales are counted."""

from __future__ import annotations

import pytest
from rationale_cases import examples, value

from reason2decide.evaluation.metrics.contradiction import CitedContradicted, contradictions


@pytest.mark.parametrize(
    ("text", "rationale", "found"),
    [
        ("Denies chest pain. Has a cough.", "Chest pain and cough need a doctor.", ["Chest pain"]),
        ("Denies chest pain. Has a cough.", "There is no chest pain, but a cough.", []),
        ("Denies chest pain at first, later chest pain.", "Chest pain.", ["Chest pain"]),  # both in one denial
        ("No fever yesterday. Fever now.", "The fever decides.", []),  # asserted somewhere in the note
        ("Her mother had a stroke.", "A stroke is dangerous.", ["stroke"]),
        ("Has chest pain, denies back pain.", "The pain is a warning.", []),  # "pain" alone is asserted
        ("Has chest pain, denies back pain.", "The back pain is a warning.", ["back pain"]),
        ("Seizure last year, gone now.", "Seizure: go at once. It happened last year.", ["Seizure"]),
        ("Denies fever.", "Rest at home.", []),
    ],
)  # fmt: skip
def test_contradictions_by_hand(text, rationale, found):
    assert [rationale[start:end] for start, end in contradictions(text, rationale)] == found


def test_contradicted_rationales_are_counted_once():
    found = examples(
        ("home", "home", "Chest pain. Fever.", {}),
        ("home", "home", "A cough.", {}),
        ("home", "home", "Nothing of it.", {}),
        ("home", "home", None, {}),
        text="Denies chest pain and fever. Coughs: cough for days.",
    )
    assert value(CitedContradicted(), found) == 1 / 2
    assert CitedContradicted().statistics(found).notes == (
        "1 of 4 predictions have no rationale and are left out",
        "1 of 4 rationales assert no phrase of their note and are left out",
    )

"""Sentences that state the decision: found by what training rationales share, and taken out."""

from __future__ import annotations

from pathlib import Path

import pytest

from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.data.sources.synthetic_calls.rules import load_rules
from reason2decide.data.verdicts import Verdicts
from reason2decide.data.words import sentences
from reason2decide.errors import NotComputed

LABELS = LabelSet(("home", "hospital"))
FINDINGS = {"home": ("cough", "rash", "itch"), "hospital": ("blue lips", "seizure", "chest pain")}
VERDICT = {"home": "Rest will do.", "hospital": "An ambulance must come."}


def record(i: int) -> Record:
    label = LABELS.values[i % 2]
    finding = FINDINGS[label][i % 3]
    return Record(f"r{i}", f"pt has {finding} today", label, {"llm": f"There is {finding}. {VERDICT[label]}"})


TRAIN = [record(i) for i in range(60)]


def test_verdicts_go_and_reasons_stay() -> None:
    verdicts = Verdicts.fit(TRAIN, LABELS, "llm")
    assert verdicts.reasons("There is blue lips. An ambulance must come.") == "There is blue lips."
    # Certain too, but from the note: a finding that decides is a reason.
    assert not verdicts.is_verdict("There is seizure.")
    assert verdicts.is_verdict("So an ambulance is needed.") and verdicts.is_verdict("Take some rest")


def test_a_rationale_of_one_sentence_keeps_its_reasons() -> None:
    verdicts = Verdicts.fit(TRAIN, LABELS, "llm")
    assert verdicts.reasons("For blue lips an ambulance must come") == "For blue lips an ___ ___ ___"
    assert verdicts.reasons("") == ""
    assert verdicts.reasons("Seen at the hospital for rash.") == "Seen at the ___ for rash."  # label words go anyway


def test_where_labels_share_their_words_nothing_is_a_verdict() -> None:
    records = [Record(f"r{i}", "t", LABELS.values[i % 2], {"llm": "It depends. We shall see."}) for i in range(40)]
    assert Verdicts.fit(records, LABELS, "llm").markers == frozenset()


@pytest.mark.parametrize(
    ("records", "labels", "reason"),
    [(TRAIN, LabelSet(), "open"), (TRAIN, LABELS, "no training record has a gold rationale of source 'nurse'")],
)
def test_what_cannot_be_learnt_is_said(records: list[Record], labels: LabelSet, reason: str) -> None:
    with pytest.raises(NotComputed, match=reason):
        Verdicts.fit(records, labels, "llm" if labels.is_open else "nurse")


def test_the_verdicts_of_synthetic_calls_are_exactly_those_of_the_rules(tmp_path: Path) -> None:
    dataset = synthesize_calls(tmp_path / "calls", train=1500, validation=1, test=200)
    verdicts, urgency = (
        Verdicts.fit(dataset.split("train"), dataset.info.labels, "llm"),
        load_rules().rationale["urgency"],
    )
    for call in dataset.split("test"):
        rationale = call.rationales["llm"]
        for start, end in sentences(rationale):
            # Four levels up from the lowest is the highest: that says it too.
            tells = rationale[start:end] in urgency or "four levels" in rationale[start:end]
            assert verdicts.is_verdict(rationale[start:end]) == tells

"""The gates that a written rationale passes, and the numbers, labels and shares that they compare."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_server import BAD_RATIONALES
from llm_toy import LABELS
from narrowing import present

from reason2decide.llm.answers import decided_schema, matching_label
from reason2decide.llm.client.structured import InvalidAnswer, strict_schema, validated
from reason2decide.llm.prompt_files import load_prompt
from reason2decide.llm.settling import share
from reason2decide.llm.teach.fidelity import additions, numbers
from reason2decide.llm.teach.gates import GATES, GatedCase, failed_gates, instructions

TEXT = "54F with high fever of 38,5 for three days, BP 120/80, 1,200 ml drunk. Denies chest pain."
CASE = GatedCase(TEXT, "see a doctor", LABELS.values, instructions(load_prompt("rationalize")))


@pytest.mark.parametrize(
    "rationale",
    [
        "High fever of 38.5 for 3 days needs a look.",
        "The fever is high; a doctor should see it.",
        'The caller says "I cannot breathe" since the fever began.',  # no refusal
        "Fever.\n1. It is high.\n2. It lasts.",  # list marks are no numbers
        "Fever: 6) it is high; 7) it lasts.",
        "With a high fever the patient should consult a doctor.",
        "With 1200 ml drunk and fever, see a doctor.",
        "Fever. " + "word " * 149,
    ],
)
def test_good_rationales_pass(rationale):
    assert failed_gates(rationale, CASE) == []


@pytest.mark.parametrize(
    ("rationale", "gate"),
    [
        ("", "empty"),
        (" ...\n-- ", "empty"),
        ("I cannot provide medical advice about fever.", "refusal"),
        ("I\u2019m unable to  determine this from the fever.", "refusal"),
        ("As an AI, I see fever.", "refusal"),
        ("I cannot make a medical decision about this fever.", "refusal"),
        ("I am not a doctor, and the fever is high.", "refusal"),
        ("It would be irresponsible to diagnose this fever.", "refusal"),
        ("I'm sorry, but the fever is not clear.", "refusal"),
        ("Fever. " + "word " * 150, "too_long"),
        ("The fever is why it is [LABEL].", "mask_token"),
        ("The fever is why it is [mask].", "mask_token"),
        ("The fever of ___ decides.", "mask_token"),
        ("The fever in {text} decides.", "mask_token"),
        ("Fever <<<DATA 0123456789abcdef0123456789abcdef", "mask_token"),
        ("Fever: name the findings in the text that lead to it.", "copied_prompt"),
        ("Call an Ambulance: the fever is high.", "another_label"),
        ("The fever is too high for home care.", "another_label"),
        ("A fever of 39 needs a look.", "not_in_text"),
        ("Fever for 4 days.", "not_in_text"),
        ("The broken wrist must be set.", "not_in_text"),
    ],
)
def test_each_gate(rationale, gate):
    assert failed_gates(rationale, CASE)[0] == gate


def test_gates_stand_in_their_order_and_every_one_is_tested_end_to_end():
    assert list(BAD_RATIONALES) == list(GATES)
    assert failed_gates("I cannot help: [LABEL]", CASE) == ["refusal", "mask_token", "not_in_text", "unsupported"]


def test_a_label_within_its_own_is_its_own():
    assert failed_gates("fever, so home care", GatedCase("fever", "home care", ("care", "home care"))) == []
    assert failed_gates("fever, so home care", GatedCase("fever", "care", ("care", "home care"))) == ["another_label"]
    # Numbers of a label may be cited, whatever the text says.
    assert (
        failed_gates("fever, within 24 hours", GatedCase("fever", "see within 24 hours", ("see within 24 hours", "x")))
        == []
    )


def test_numbers_have_one_form():
    assert numbers("38,5 and 1,200 and 007 and 1.50 and 12.3.2024 and 3/7, 5") == {
        "38.5", "1200", "7", "1.5", "12.3.2024", "3", "5",
    }  # fmt: skip


@given(st.text(), st.text())
def test_gates_take_any_text(rationale, text):
    failed = failed_gates(rationale, GatedCase(text, "a b", ("a b", "c")))
    assert set(failed) <= set(GATES) and (bool(rationale.strip()) or "empty" in failed)


def test_what_an_editor_adds():
    known = ("54F, high fever, stopped eating, three days", "fever ++")
    assert additions("The patient reports a high fever for 3 days and has stopped eating.", known) == {}
    assert additions("She stops to eat. Sepsis is likely, in 1 of 40.", known) == {
        "words": ["sepsis"], "numbers": ["1", "40"],
    }  # fmt: skip


# --- held to the label set --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("see a doctor", "see a doctor"),
        (" See  a\nDoctor. ", "see a doctor"),
        ('"home care"', "home care"),
        ("see the doctor", None),
        ("", None),
    ],
)
def test_labels_are_matched_but_for_case_and_white_space(answer, label):
    assert matching_label(answer, LABELS.values) == label
    text = json.dumps({"rationale": "r", "label": answer})
    if label is None:
        with pytest.raises(InvalidAnswer):
            validated(decided_schema(LABELS.values), text)
    else:
        assert validated(decided_schema(LABELS.values), text).label == label


def test_labels_that_differ_in_case_only_are_not_guessed():
    assert matching_label("YES", ("Yes", "yes")) is None and matching_label("yes", ("Yes", "yes")) == "yes"
    schema = strict_schema(decided_schema(("Yes", "yes")))
    assert schema["properties"]["label"]["enum"] == ["Yes", "yes"] and list(schema["properties"]) == [
        "rationale",
        "label",
    ]


def test_shares_by_hand():
    own = share([("a", True), ("a", True), ("b", False), ("c", True)])
    assert own.value == 0.75 and own.n == 4 and 0 <= present(own.low) <= 0.75 <= present(own.high) <= 1
    assert share([]).value is None
    # Ten records of two patients are two draws, not ten: the interval reaches from one end to the other.
    wide = share([(i % 2, i % 2 == 0) for i in range(10)])
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_gates_in_scripts_without_spaces():
    text, label = "患者は三日前から高熱と咳がある。胸痛はない。", "受診"
    case = GatedCase(text, label, ("受診", "救急車"))
    assert failed_gates("三日前からの高熱と咳のため受診が必要。", case) == []
    assert failed_gates("骨折の疑いがあり手術を要する状態である。", case)[-1] == "unsupported"
    assert failed_gates("高熱と咳があるので救急車を呼ぶ。", case) == ["another_label"]
    assert failed_gates("三日前から高熱と咳がある。" * 30, case)[0] == "too_long"

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from serving import SCREENING, TEXT, TRIAGE
from transformers.decision.template_utils import Question

from reason2decide.data.records import LabelSet
from reason2decide.model.decision import Decision
from reason2decide.serve.answers import choice_confidence, score_confidence, score_of
from reason2decide.serve.questions import Asked, Wanted, decisions_asked, systemone_asked, wanted
from reason2decide.serve.replies import Fault, error_body
from reason2decide.serve.texts import input_text, state_text
from reason2decide.serve.wire import DecisionsRequest, InputItem, Refused, SystemOneRequest

HOME, DOCTOR, AMBULANCE = TRIAGE.values
DECISION = Decision(DOCTOR, {HOME: 0.2, DOCTOR: 0.5, AMBULANCE: 0.3}, (DOCTOR, AMBULANCE), True)
NOMINAL = LabelSet(TRIAGE.values)

distributions = st.lists(st.floats(0.001, 1), min_size=1, max_size=8).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


def systemone(question: dict[str, Any], labels: LabelSet) -> Asked:
    request = SystemOneRequest(model="m", state=TEXT, questions={"q": question})
    return systemone_asked(request, labels)[0]


def decisions(question: dict[str, Any], labels: LabelSet) -> Asked:
    request = DecisionsRequest(model="m", input=TEXT, questions=[question])
    return decisions_asked(request, labels)[0]


def refusal(ask: Any, question: dict[str, Any], labels: LabelSet) -> Refused:
    with pytest.raises(Refused) as raised:
        ask(question, labels)
    assert raised.value.status == 422
    return raised.value


# ---- Confidence


def test_confidence_by_hand() -> None:
    assert choice_confidence([0.2, 0.5, 0.3]) == pytest.approx((0.5 - 1 / 3) / (2 / 3))
    # Levels 0, 1, 2 about the most probable, 1: E|level - 1| = 0.5; under a uniform about the middle: 2/3.
    assert score_confidence([0.2, 0.5, 0.3]) == pytest.approx(1 - 0.5 / (2 / 3))
    assert score_of([0.2, 0.5, 0.3]) == pytest.approx(1.1)


def test_confidence_ends() -> None:
    assert choice_confidence([1 / 3] * 3) == pytest.approx(0)
    assert choice_confidence([0, 1, 0]) == score_confidence([0, 1, 0]) == 1
    assert choice_confidence([1.0]) == score_confidence([1.0]) == 1
    assert score_confidence([0.5, 0, 0.5]) == 0  # further from the most probable than a uniform: clipped


@given(distributions)
def test_confidence_is_what_transformers_computes(probabilities: list[float]) -> None:
    options = [str(level) for level in range(len(probabilities))]
    ours = {"choice": choice_confidence(probabilities), "score": score_confidence(probabilities)}
    for kind, confidence in ours.items():
        theirs = Question("q", kind, None, options, options, options).answer(probabilities)
        assert confidence == pytest.approx(theirs["confidence"], abs=1e-9)
    assert score_of(probabilities) == pytest.approx(theirs["score"])


# ---- Choice


@pytest.mark.parametrize(
    "asked",
    [
        systemone({"type": "choice", "criteria": {AMBULANCE: "now", HOME: None, DOCTOR: None}}, NOMINAL),
        decisions({"type": "choice", "choices": [{"value": v} for v in (AMBULANCE, HOME, DOCTOR)]}, NOMINAL),
    ],
)
def test_choice_of_all_labels_in_any_order(asked: Asked) -> None:
    assert asked.distribution(DECISION) == {AMBULANCE: 0.3, HOME: 0.2, DOCTOR: 0.5}
    assert list(asked.distribution(DECISION)) == [AMBULANCE, HOME, DOCTOR]
    assert asked.chosen(DECISION) == DOCTOR and not asked.renormalised(DECISION)


def test_choice_of_some_labels_is_renormalised() -> None:
    asked = systemone({"type": "choice", "criteria": {AMBULANCE: None, HOME: None}}, NOMINAL)
    assert asked.distribution(DECISION) == pytest.approx({AMBULANCE: 0.6, HOME: 0.4})
    assert asked.chosen(DECISION) == AMBULANCE and asked.renormalised(DECISION)


def test_options_of_no_probability_at_all_are_equal() -> None:
    sure = Decision(DOCTOR, {HOME: 0.0, DOCTOR: 1.0, AMBULANCE: 0.0}, (DOCTOR,), False)
    asked = systemone({"type": "choice", "criteria": {AMBULANCE: None, HOME: None}}, NOMINAL)
    assert asked.distribution(sure) == {AMBULANCE: 0.5, HOME: 0.5}


def test_choice_of_other_options_names_the_labels_and_not_the_options() -> None:
    error = refusal(systemone, {"type": "choice", "criteria": {HOME: None, "canary": None}}, NOMINAL)
    assert all(label in str(error) for label in NOMINAL.values) and "canary" not in str(error)
    assert error.location == ("body", "questions", "q", "choice", "criteria")
    error = refusal(decisions, {"type": "choice", "choices": [{"value": HOME}, {"value": True}]}, NOMINAL)
    assert "1 of 2 options" in str(error)
    assert "twice" in str(refusal(decisions, {"type": "choice", "choices": [{"value": HOME}] * 2}, NOMINAL))


# ---- Score


@pytest.mark.parametrize("order", [1, -1])
def test_score_over_the_labels_in_their_order_or_the_reverse(order: int) -> None:
    levels = list(TRIAGE.values)[::order]
    theirs = decisions({"type": "score", "levels": [{"label": label} for label in levels]}, TRIAGE)
    described = systemone({"type": "score", "criteria": [f"{label}: words" for label in levels]}, TRIAGE)
    for asked in (theirs, described, systemone({"type": "score", "criteria": levels}, TRIAGE)):
        assert score_of(list(asked.distribution(DECISION).values())) == pytest.approx(1.1 if order == 1 else 0.9)
    assert described.legend == tuple(f"{label}: words" for label in levels)


def test_score_needs_an_order() -> None:
    question: dict[str, Any] = {"type": "score", "criteria": list(TRIAGE.values)}
    assert "no order" in str(refusal(systemone, question, NOMINAL))
    question["criteria"] = [HOME, AMBULANCE, DOCTOR]
    assert "in their order" in str(refusal(systemone, question, TRIAGE))
    question["criteria"] = [HOME, {"label": DOCTOR}, AMBULANCE]
    assert repr(DOCTOR) in str(refusal(systemone, question, TRIAGE))


# ---- Yes or no


@pytest.mark.parametrize("labels", [("no", "yes"), ("Yes", "No"), ("TRUE", "false")])
def test_yes_or_no_is_the_probability_of_yes(labels: tuple[str, str]) -> None:
    yes = next(label for label in labels if label.casefold() in ("yes", "true"))
    found = Decision(yes, {label: 0.8 if label == yes else 0.2 for label in labels}, (yes,), False)
    for asked in (
        systemone(
            {"type": "noul", "instructions": "?", "criteria": {"true": "it is", "false": None}}, LabelSet(labels)
        ),
        decisions({"type": "predicate", "instructions": "?"}, LabelSet(labels)),
    ):
        assert list(asked.distribution(found).values()) == [0.8, 0.2]


@pytest.mark.parametrize("labels", [TRIAGE, LabelSet(("yes", "no", "maybe")), LabelSet(("yes", "true"))])
def test_other_models_cannot_answer_yes_or_no(labels: LabelSet) -> None:
    for ask, kind in ((systemone, "noul"), (decisions, "predicate")):
        assert "'choice' question" in str(refusal(ask, {"type": kind}, labels))


def test_two_questions_of_one_name() -> None:
    question = {"type": "choice", "name": "q", "choices": [{"value": HOME}, {"value": DOCTOR}]}
    request = DecisionsRequest.model_validate({"model": "m", "input": TEXT, "questions": [question] * 2})
    with pytest.raises(Refused, match="same name"):
        decisions_asked(request, NOMINAL)


@pytest.mark.parametrize("kind", ["box", "Choice", "", None])
def test_unknown_kinds_of_question(kind: str | None) -> None:
    for request, questions in ((SystemOneRequest, {"q": {"type": kind}}), (DecisionsRequest, [{"type": kind}])):
        with pytest.raises(ValidationError):
            request.model_validate({"model": "m", "state": TEXT, "input": TEXT, "questions": questions})


# ---- Include


def test_include() -> None:
    found = wanted(["rationale", f"rationale:{HOME}", "deferral", "prediction_set"], TRIAGE, explains=True)
    assert found == Wanted(True, True, True, (HOME,))
    assert wanted([], TRIAGE, explains=False) == Wanted()


@pytest.mark.parametrize("item", ["rationales", "rationale:canary", "", "rationale:", "Rationale"])
def test_unknown_includes_are_refused_and_not_quoted(item: str) -> None:
    with pytest.raises(Refused) as raised:
        wanted([item], TRIAGE, explains=True)
    assert "canary" not in str(raised.value)


def test_a_model_without_rationales_says_so() -> None:
    with pytest.raises(Refused, match="writes no rationales"):
        wanted(["rationale"], TRIAGE, explains=False)
    assert wanted(["deferral"], TRIAGE, explains=False).deferral


@given(st.lists(st.sampled_from([(HOME,), (HOME, AMBULANCE), TRIAGE.values]), max_size=5), st.booleans(), st.booleans())
def test_rationales_are_written_once_each_and_no_more_than_planned(
    options: list[tuple[str, ...]], own: bool, other: bool
) -> None:
    asked = [Asked(str(index), "choice", labels) for index, labels in enumerate(options)]
    want = Wanted(rationale=own, labels=(HOME,) if other else ())
    labels = want.explained(asked, DECISION)
    assert len(set(labels)) == len(labels) <= want.most_rationales(asked, TRIAGE)
    assert not own or all(question.chosen(DECISION) in labels for question in asked)


# ---- Text


def test_a_state_is_rendered_line_by_line() -> None:
    state = {
        "note": "chest pain",
        "vitals": {"pulse": 96, "fever": False, "weight": None},
        "history": ["MI", {"year": 2019}],
    }
    lines = ["note: chest pain", "vitals pulse: 96", "vitals fever: false", "history: MI", "history year: 2019"]
    assert state_text(state, 10**6) == "\n".join(lines)
    assert state_text([" a ", ["b"], 1.5], 99) == " a \nb\n1.5"
    assert state_text(TEXT, 99) == TEXT


def test_a_state_that_grows_with_its_keys_is_refused_early() -> None:
    """A long key before each of many values would make a hundred megabytes of a body of one."""
    state = {"k" * 50_000: {str(number): number for number in range(9000)}}
    with pytest.raises(Refused, match="longer than 200000 characters") as caught:
        state_text(state, 200_000)
    assert caught.value.status == 413
    nested: Any = 1
    for _ in range(30):
        nested = {"k" * 10_000: nested}
    with pytest.raises(Refused, match="longer than"):
        state_text(nested, 200_000)
    items = [InputItem.model_validate({"role": "user", "content": "a" * 60})] * 4
    with pytest.raises(Refused, match="longer than 200 characters"):
        input_text(items, 200)


def test_a_state_of_too_many_values() -> None:
    with pytest.raises(Refused, match="more than 10000 values"):
        state_text([0] * 10_001, 10**6)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values) | st.lists(json_values))
def test_every_string_of_a_state_is_in_its_text(state: Any) -> None:
    text = state_text(state, 10**6)

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [found for inner in value.values() for found in strings(inner)]
        if isinstance(value, list):
            return [found for inner in value for found in strings(inner)]
        return [value] if isinstance(value, str) else []

    assert all(string in text for string in strings(state))


def test_of_messages_what_was_said_and_returned_is_read() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "chest pain"}, {"type": "input_json", "data": {"pulse": 96}}],
        },
        {"type": "function_call", "name": "lookup", "call_id": "1", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "ECG normal"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "since when?"}]},
        {"role": "user", "content": "an hour"},
    ]
    read = input_text([InputItem.model_validate(item) for item in items], 999)
    assert read == "chest pain\npulse: 96\nECG normal\nsince when?\nan hour"


def test_images_are_refused() -> None:
    item = InputItem.model_validate({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]})
    with pytest.raises(Refused, match="text only"):
        input_text([item], 99)


# ---- Errors


def test_errors_have_the_form_of_their_interface() -> None:
    where = ("body", "questions", 0, "levels")
    wrong, busy = Fault(422, "words", "value_error", where), Fault(503, "words")
    assert error_body("/v1/decisions", [wrong, wrong])["error"] == {
        "message": "words", "type": "invalid_request_error", "param": "questions.0.levels", "code": "value_error"
    }  # fmt: skip
    problem = {"loc": list(where), "msg": "words", "type": "value_error"}
    assert error_body("/v1/systemone", [wrong, wrong]) == {"detail": [problem, problem]}
    assert error_body("/cds-services/triage", [wrong]) == {"detail": [problem]}
    assert error_body("/v1/systemone", [busy]) == error_body("/cds-services/triage", [busy]) == {"detail": "words"}
    assert error_body("/v1/decisions", [busy])["error"]["type"] == "server_error"


@given(distributions)
def test_a_subset_sums_to_one(probabilities: list[float]) -> None:
    labels = [str(index) for index in range(len(probabilities))]
    found = Decision(labels[0], dict(zip(labels, probabilities, strict=True)), (labels[0],), False)
    asked = Asked("q", "choice", tuple(labels[::2]))
    assert math.isclose(sum(asked.distribution(found).values()), 1)
    json.dumps(asked.distribution(found), allow_nan=False)


def test_screening_labels_answer_yes_or_no() -> None:
    assert systemone({"type": "noul"}, SCREENING).labels == ("yes", "no")

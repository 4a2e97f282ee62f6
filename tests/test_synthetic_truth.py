"""What rationales of synthetic calls say against what is true of the call."""

from __future__ import annotations

import pytest
from rationale_cases import LABELS, examples, value

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.errors import NotComputed
from reason2decide.evaluation.citations import citations
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.metrics.synthetic_truth import CitedFalse, CitedTrue, DecidingOmitted, WeighedConsistency

TRUTH = (CitedTrue(), CitedFalse(), DecidingOmitted())


@pytest.mark.parametrize(
    ("rationale", "present", "denied"),
    [
        ("The patient now has chest pain and blue lips, a sign of danger.", {"chest_pain", "blue_lips"}, set()),
        ("There is no sign of chest pain or fainting. It is severe.", set(), {"chest_pain", "fainting"}),
        ("The patient denies high fever, seizure or confusion.", set(), {"high_fever", "seizure", "confusion"}),
        ("Denied: stiff neck. Having diabetes makes this more urgent.", {"diabetes"}, {"stiff_neck"}),
        ("cough, +CP, DM, (-) SOB -> ED", {"chest_pain", "diabetes"}, {"trouble_breathing"}),
        ("cough, (-) SOB, CP", {"chest_pain"}, {"trouble_breathing"}),
        ("+no wt bearing, +rigors, (-) temp 39+", {"no_weight", "shaking_chills"}, {"high_fever"}),
        ("No seizure but chest pain; denies fainting, has DM.", {"chest_pain", "diabetes"}, {"seizure", "fainting"}),
        ("The risk from a blood thinner and age over 75 raises the urgency.", {"blood_thinner", "elderly"}, set()),
        ("No other fact makes this more or less urgent. Present seizure must be taken seriously.", {"seizure"}, set()),
        ("No seizure. Seizure is a warning sign.", {"seizure"}, {"seizure"}),
        ("For fever alone, self-care is enough. Seizures, chestpain and COPDs are other words.", set(), set()),
        ("", set(), set()),
    ],
)  # fmt: skip
def test_citations(rationale, present, denied):
    found = citations(rationale)
    assert (set(found.present), set(found.denied)) == (present, denied)


def call(rationale, present=(), risks=(), facts=(), label="home"):
    fact_list = [{"kind": kind, "id": id, "text": "", "effect": ""} for kind, id in facts]
    record = Record("r", "t", "home", meta={"present": list(present), "risks": list(risks), "facts": fact_list})
    return record, Prediction("r", label, None, rationale)


def test_truth_by_hand():
    records, predictions = zip(
        # Two true, one false (denied by the patient); of three deciding facts one is left out.
        call("Has chest pain, seizure and diabetes.", ("chest_pain", "tiredness"), ("diabetes", "elderly"),
             [("complaint", "cough"), ("red_flags", "chest_pain"), ("risk", "diabetes"), ("risk", "elderly")]),
        # One true that did not decide; nothing deciding; the rest is denied.
        call("Has tiredness. No seizure.", ("tiredness",), (), [("complaint", "cough"), ("severe", "severe")]),
        # A missing rationale leaves its deciding fact out.
        call(None, ("seizure",), (), [("red_flags", "seizure")], NO_ANSWER),
        # What is said to be denied is not cited as present.
        call("The patient denies seizure.", ("seizure",), (), [("red_flags", "seizure")]),
        strict=True,
    )  # fmt: skip
    found = Examples(records, predictions, LABELS)
    assert value(CitedTrue(), found) == 3 / 4
    assert value(CitedFalse(), found) == 1 / 3
    assert value(DecidingOmitted(), found) == 3 / 5
    missing = "1 of 4 predictions have no rationale and cite nothing"
    assert CitedTrue().statistics(found).notes == (
        missing,
        "2 of 4 rationales cite no finding as present and are left out",
    )
    assert CitedFalse().statistics(found).positions.tolist() == [0, 1, 3]
    assert DecidingOmitted().statistics(found).notes == (
        missing,
        "1 of 4 calls have no red flag or risk that decided and are left out",
    )


def test_truth_says_why_it_is_not_computed():
    for metric in TRUTH:
        with pytest.raises(NotComputed, match="r2d data synthesize"):
            metric.statistics(examples(("home", "home", "chest pain", {})))
    record, prediction = call("Nothing is cited.")
    for metric, reason in ((CitedTrue(), "all rationales cite"), (DecidingOmitted(), "all calls have no red flag")):
        with pytest.raises(NotComputed, match=reason):
            metric.statistics(Examples([record], [prediction], LABELS))


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    out = tmp_path_factory.mktemp("calls") / "data"
    return synthesize_calls(out, train=1, validation=1, test=600, label_noise=0.2)


@pytest.mark.parametrize(("source", "omitted"), [("llm", {0.0}), ("nurse", None), ("nurse_refined", None)])
def test_gold_rationales_say_the_truth(calls, source, omitted):
    records = [record for record in calls.split("test") if source in record.rationales]
    predictions = [Prediction(record.id, str(record.label), None, record.rationales[source]) for record in records]
    found = Examples(records, predictions, calls.info.labels)
    assert len(records) > 400
    assert value(CitedTrue(), found) == 1
    assert value(CitedFalse(), found) == 0
    if omitted is not None:
        assert value(DecidingOmitted(), found) in omitted
    else:  # nurses leave out what they do at a rate of 0.15
        assert 0.1 < value(DecidingOmitted(), found) < 0.2
    # Every denied finding that the rationale names is read as denied.
    for record, prediction in zip(records, predictions, strict=True):
        absent = {*record.meta["denied"], *record.meta["not_now_or_not_theirs"]}
        assert citations(prediction.rationale or "").denied <= absent


def test_rationales_of_other_calls_are_caught(calls):
    records = list(calls.split("test"))
    shifted = [*records[1:], records[0]]
    predictions = [
        Prediction(record.id, str(record.label), None, other.rationales["llm"])
        for record, other in zip(records, shifted, strict=True)
    ]
    found = Examples(records, predictions, calls.info.labels)
    assert value(CitedTrue(), found) < 0.3
    assert value(CitedFalse(), found) > 0.3
    assert value(DecidingOmitted(), found) > 0.8


def test_where_weights_lead_is_read_exactly(calls):
    """Gold rationales lead to their own label, noisy or not; those for another one do not, whatever their verdict."""
    records = list(calls.split("test"))
    labels = calls.info.labels.values

    def found(rationale_of, source="llm"):
        predictions = [Prediction(r.id, str(r.label), None, rationale_of(r)) for r in records]
        return WeighedConsistency().statistics(Examples(records, predictions, calls.info.labels, source))

    def adjacent(record):
        place = labels.index(record.label)
        text = record.contrasts["llm"][labels[place - 1 if place else 1]]
        return f"{text} {record.rationales['llm'].split('. ')[-1]}"  # the right verdict at the end

    assert WeighedConsistency().aggregate(found(lambda r: r.rationales["llm"]).total()) == 1
    assert WeighedConsistency().aggregate(found(adjacent).total()) == 0
    half = found(lambda r: r.rationales["llm"] if r.id < records[300].id else None)
    assert (
        WeighedConsistency().aggregate(half.total()) == 0.5
        and "300 of 600 predictions have no rationale" in half.notes[0]
    )
    for source in ("nurse", None):
        with pytest.raises(NotComputed, match="do not say how far each fact moves the urgency"):
            found(lambda r: r.rationales["llm"], source)

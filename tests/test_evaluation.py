"""Evaluation: matching by id, what is refused and how, and results that survive a file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from narrowing import present

from reason2decide.data.predictions import NO_ANSWER, Prediction, read_predictions, write_predictions
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import DataError
from reason2decide.evaluation.examples import group_indices
from reason2decide.evaluation.measure import Origin, evaluate
from reason2decide.evaluation.results import Results
from reason2decide.evaluation.settings import Settings
from reason2decide.model.calibration import Calibration

LABELS = LabelSet(("home", "clinic"))
GOLD = ["home", "home", "clinic", "clinic"]


def records_of(gold=GOLD, **fields):
    return [Record(f"r{i}", "text", label, **fields) for i, label in enumerate(gold)]


def predictions_of(labels=("home", "clinic", "clinic", "clinic"), **fields):
    return [Prediction(f"r{i}", label, **fields) for i, label in enumerate(labels)]


ORIGIN = Origin("calls", "ab" * 32, "test", "ours")


def run(predictions, records, labels=LABELS, *, calibration=None, probes=None, **options):
    settings = Settings(**{"resamples": 200, **options})
    return evaluate(predictions, records, labels, ORIGIN, settings, calibration=calibration, probes=probes).results


def test_values_by_hand_in_the_shape_of_results_json():
    records = records_of(rationales={"nurse": "fever for two days"})
    value = run(predictions_of(rationale="fever for two days"), records, rationale_source="nurse").to_json()
    assert set(value) >= {"metrics", "per_label", "confusion", "signature", "dataset", "split", "notes", "slices"}
    assert {name for name, entry in value["metrics"].items() if entry["value"] is not None} >= {
        "accuracy",
        "macro_f1",
        "micro_f1",
        "weighted_f1",
        "mcc",
        "bleu",
        "chrf",
    }
    accuracy = value["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (0.75, 4)
    assert 0 <= accuracy["low"] <= 0.75 <= accuracy["high"] <= 1
    assert value["metrics"]["macro_f1"]["value"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert value["metrics"]["bleu"]["value"] == pytest.approx(100)
    assert value["per_label"]["home"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert value["confusion"] == {"labels": ["home", "clinic"], "matrix": [[1, 1], [0, 2]], "unanswered": [0, 0]}
    assert (value["dataset"], value["split"]) == ({"name": "calls", "sha256": "ab" * 32}, "test")


def test_order_of_predictions_does_not_matter():
    assert run(predictions_of(), records_of()) == run(predictions_of()[::-1], records_of())


def test_results_survive_json():
    results = run(predictions_of(), records_of())
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "format 1, this program reads 3"),
        ({"results_format": 4}, "format 4, this program reads 3"),
        ({"results_format": 3, "metrics": {"accuracy": {"mean": 1}}}, "is missing or invalid"),
    ],
)
def test_results_of_another_version_or_shape_are_refused(value, message):
    with pytest.raises(DataError, match=f"{message}.*evaluate again"):
        Results.from_json(value)


def test_signature_names_every_setting():
    signature = run(predictions_of(), records_of(), rationale_source="nurse", seed=3).signature
    for part in ("reason2decide:", "dataset:calls@abab", "split:test", "source:nurse", "resamples:200", "seed:3"):
        assert part in signature
    assert "ci:percentile-bootstrap-95" in signature and "unit:record" in signature
    assert "bleu:[nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in signature and "chrf:[nrefs:1" in signature


def test_what_is_not_computed_is_null_with_its_reason():
    results = run(predictions_of(), records_of())
    assert results.to_json()["metrics"]["bleu"] == {"value": None, "low": None, "high": None, "n": 0}
    told = next(note for note in results.notes if note.startswith("bleu, chrf"))
    assert told.endswith("not computed: no rationale source was named to compare with")


def test_records_left_out_are_counted_and_told():
    records = [*records_of(["home"], rationales={"nurse": "fever"}), Record("r1", "text", "clinic")]
    results = run(predictions_of(("home", "clinic"), rationale="fever"), records, rationale_source="nurse")
    assert results.metrics["chrf"].n == 1 and results.metrics["accuracy"].n == 2
    assert any(
        note.startswith("bleu, chrf") and "1 of 2 records have no gold rationale" in note for note in results.notes
    )


def test_open_label_sets_have_accuracy_only():
    records = [Record("r0", "t", "A", choices=("A", "B")), Record("r1", "t", "D", choices=("C", "D"))]
    results = run(predictions_of(("A", "C")), records, LabelSet())
    assert results.metrics["accuracy"].value == 0.5 and results.metrics["macro_f1"].value is None
    assert (results.per_label, results.confusion_labels, results.confusion_matrix) == ({}, (), ())
    told = next(note for note in results.notes if note.startswith("macro_f1, "))
    assert "per_label, confusion: not computed: the label set is open" in told


def test_point_intervals_are_told():
    results = run(predictions_of(GOLD), records_of())
    assert results.metrics["accuracy"].low == results.metrics["accuracy"].high == 1.0
    assert any(note.startswith("accuracy, ") and "all resamples agree" in note for note in results.notes)


def test_groups_are_resampled_whole():
    records = [Record(f"r{i}", "t", "home", group="p" if i < 2 else None) for i in range(4)]
    assert present(group_indices(records)).tolist() == [0, 0, 1, 2]
    assert group_indices(records_of()) is None
    assert "unit:group" in run(predictions_of(), records).signature


@pytest.mark.parametrize("interval", ["percentile", "bca"])
def test_intervals_are_those_of_groups(interval):
    """Of nine records of a patient all are right or all are wrong: as wide as of one record a patient, three times."""
    right = [patient % 3 > 0 for patient in range(40) for _ in range(9)]
    gold = ["home", "clinic"] * 180
    other = {"home": "clinic", "clinic": "home"}
    predictions = predictions_of([label if own else other[label] for label, own in zip(gold, right, strict=True)])

    def widths(group):
        records = [
            Record(f"r{i}", "text", label, group=f"p{i // 9}" if group else None, meta={"ward": "one"})
            for i, label in enumerate(gold)
        ]
        found = run(predictions, records, interval=interval, slices=("ward",), resamples=1000)
        metrics = (found.metrics["accuracy"], found.slices["ward"][0].metrics["accuracy"])
        return [metric.high - metric.low for metric in metrics]

    for grouped, alone in zip(widths(True), widths(False), strict=True):
        assert 2.5 < grouped / alone < 3.5


def test_missing_extra_and_repeated_ids_are_all_told_at_once():
    predictions = [*predictions_of()[:2], Prediction("r1", "home"), Prediction("x", "home")]
    with pytest.raises(DataError) as error:
        run(predictions, records_of())
    assert str(error.value) == (
        "the predictions do not match the 4 records of the split 'test': 1 ids are predicted more than once ('r1'); "
        "2 records have no prediction ('r2', 'r3'); 1 predictions match no record ('x'). "
        "Give one prediction for each record of this split"
    )


def test_only_the_first_missing_ids_are_shown():
    with pytest.raises(DataError, match=r"4 records have no prediction \('r0', 'r1', 'r2', \.\.\.\)"):
        run([], records_of())


@pytest.mark.parametrize(
    ("records", "message"),
    [([], "no records"), (records_of() + records_of(), "4 record ids occur more than once"), ([None], "no label")],
)
def test_unusable_records(records, message):
    records = [Record("r0", "text")] if records == [None] else records
    with pytest.raises(DataError, match=message):
        run(predictions_of(("home",) * 4 if len(records) != 1 else ("home",)), records)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"predicted_label": "hospital"}, "not in its set: 'home', 'clinic'"),
        ({"probabilities": {"home": 1.0}}, "do not match its choices"),
        ({"probabilities": {"home": 0.5, "clinic": 0.4, "x": 0.1}}, "do not match its choices"),
        ({"probabilities": [0.5, 0.5]}, "do not match its choices"),
        ({"probabilities": {"home": 0.5, "clinic": 0.6}}, "sum to 1.1"),
        ({"probabilities": {"home": 1.5, "clinic": -0.5}}, "the probability 1.5"),
        ({"probabilities": {"home": float("nan"), "clinic": 0.5}}, "the probability nan"),
        ({"probabilities": {"home": "1", "clinic": 0.0}}, "the probability '1'"),
        ({"rationale": 7}, "not text"),
    ],
)
def test_unscorable_predictions(fields, message):
    prediction = Prediction(**({"id": "r0", "predicted_label": "home"} | fields))
    with pytest.raises(DataError, match=f"the prediction for 'r0'.*{message}"):
        run([prediction], records_of(["home"]))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ('"rationale": ["a"]', r"rationale is \['a'\]; expected text"),
        ('"tokens": "12"', "tokens is '12'; expected a whole number"),
        ('"prediction_set": 5', "prediction_set is 5; expected a list of labels"),
        ('"probabilities": [1]', r"probabilities is \[1\]; expected an object"),
        ('"deferred": "no"', "deferred is 'no'; expected true or false"),
    ],
)
def test_fields_of_another_kind_are_named_with_their_line(tmp_path, field, message):
    fine = '{"id": "r0", "predicted_label": "home"}\n'
    (tmp_path / "p.jsonl").write_text(fine + '{"id": "r1", "predicted_label": "home", ' + field + "}\n")
    with pytest.raises(DataError, match=f"line 2: {message}"):
        read_predictions(tmp_path / "p.jsonl")


def test_half_an_emoji_in_a_rationale_can_be_written_again(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "r0", "predicted_label": "home", "rationale": "pale \\ud83d"}\n')
    (prediction,) = read_predictions(tmp_path / "p.jsonl")
    assert prediction.rationale == "pale ?"
    write_predictions(tmp_path / "q.jsonl", [prediction])


def test_rounded_probabilities_are_accepted():
    run(predictions_of(("home",), probabilities={"home": 0.6667, "clinic": 0.3329}), records_of(["home"]))


def test_a_system_that_gives_no_answer_is_not_right_and_not_another_label():
    results = run(predictions_of(("home", NO_ANSWER, "clinic", "clinic")), records_of())
    assert results.metrics["accuracy"].value == 0.75 and results.unanswered == (1, 0)
    assert results.confusion_matrix == ((1, 0), (0, 2))
    # home: 2 hits 1 / (gold 2 + predicted 1); clinic: 2 of 2.
    assert results.metrics["macro_f1"].value == pytest.approx((2 / 3 + 1) / 2)
    assert results.metrics["micro_f1"].value == pytest.approx(2 * 3 / (4 + 3))
    assert any("1 of 4 records got no valid answer and count as wrong" in note for note in results.notes)
    everything = run(predictions_of((NO_ANSWER,) * 4), records_of())
    assert everything.metrics["accuracy"].value == everything.metrics["macro_f1"].value == 0


ORDINAL = LabelSet(("home", "clinic"), ordinal=True, urgent="last")


def certain(p):
    return {"home": 1 - p, "clinic": p}


def test_calibration_before_and_after_and_what_was_chosen_on_validation():
    # Validation: 45 of 50 right at 0.9 confidence. Were 30 % wrong, 5 errors or fewer of 50 would be rare (0.0007). At
    # 0.85 come 50 that are wrong.
    calibration = Calibration(
        2.0,
        np.array([0.9] * 50 + [0.85] * 50),
        np.array([1] * 45 + [0] * 55, bool),
        np.array([0.9] * 45 + [0.1] * 5 + [0.15] * 50),
    )
    predictions = [
        Prediction(f"r{i}", label, certain(p))
        for i, (label, p) in enumerate([("home", 0.1), ("clinic", 0.8), ("clinic", 0.95), ("clinic", 0.9)])
    ]
    results = run(predictions, records_of(), ORDINAL, calibration=calibration, error_rate=0.3, miscoverage=0.4)
    found = results.calibration
    assert (found.temperature, found.threshold) == (2.0, pytest.approx(0.9))
    assert found.cutoff == 0.15  # of 101 cases 40 may be missed: the 40th probability from below
    assert results.metrics["selective_error"].value == 0 and results.metrics["deferred"].value == 0.25
    assert results.metrics["conformal_coverage"].value == 1 and results.metrics["conformal_set_size"].value == 1.25
    # Undoing a temperature of 2 squares the odds: 0.9 -> 81/82, 0.8 -> 16/17, 0.95 -> 361/362.
    raw = [81 / 82, 1 - 16 / 17, 361 / 362, 81 / 82]
    assert found.before["log_loss"] == pytest.approx(-np.mean(np.log(raw)))
    assert results.metrics["log_loss"].value == pytest.approx(-np.mean(np.log([0.9, 0.2, 0.95, 0.9])))
    assert results.metrics["under_triage"].value == 0 and results.metrics["over_triage"].value == 0.25
    assert sum(point["n"] for point in results.reliability) == 4
    assert results.risk_coverage[-1] == {"confidence": pytest.approx(0.8), "coverage": 1.0, "risk": 0.25}


def test_a_perfect_system_has_no_gap_between_slices_of_different_labels():
    """Labels that are gold nowhere in a slice are named and left out, instead of counting as F1 = 0."""
    gold = ["home"] * 20 + ["home", "clinic"] * 10
    records = [Record(f"r{i}", "t", label, meta={"sex": "F" if i < 20 else "M"}) for i, label in enumerate(gold)]
    results = run(predictions_of(gold), records, slices=("sex",))
    assert [own.metrics["macro_f1"].value for own in results.slices["sex"]] == [1.0, 1.0]
    assert [own.absent_labels for own in results.slices["sex"]] == [("clinic",), ()]
    assert results.gaps["sex"]["macro_f1"]["gap"] == 0
    assert Results.from_json(results.to_json()) == results
    # A label that is absent costs those that are present, where it is predicted.
    wrong = run(predictions_of(["clinic"] * 5 + gold[5:]), records, slices=("sex",))
    assert wrong.slices["sex"][0].metrics["macro_f1"].value == pytest.approx(2 * 15 / (20 + 15))


def test_slices_hold_every_metric_and_the_largest_gap():
    records = [Record(f"r{i}", "one two", "home", meta={"sex": "F" if i < 20 else "M", "age": i}) for i in range(40)]
    predictions = predictions_of(["home"] * 30 + ["clinic"] * 10)
    results = run(predictions, records, slices=("sex", "age:30", "length"))
    assert [(own.value, own.n) for own in results.slices["sex"]] == [("F", 20), ("M", 20)]
    assert [own.metrics["accuracy"].value for own in results.slices["sex"]] == [1.0, 0.5]
    assert results.gaps["sex"]["accuracy"] == {"gap": 0.5, "least": "M", "most": "F"}
    assert [(own.value, own.n) for own in results.slices["age"]] == [("under 30", 30), ("30 and over", 10)]
    assert [own.value for own in results.slices["length"]] == ["2"] and results.gaps["length"] == {}
    assert results.slices["sex"][1].metrics["accuracy"].low < 0.5 < results.slices["sex"][1].metrics["accuracy"].high


def test_a_perfect_system_stays_perfect_where_a_resample_lacks_a_label():
    gold = ["home"] * 9 + ["clinic"]
    macro = run(predictions_of(gold), records_of(gold), resamples=500).metrics["macro_f1"]
    assert (macro.value, macro.low, macro.high) == (1.0, 1.0, 1.0)
    never = run(predictions_of(["home"] * 10), records_of(["home"] * 10), resamples=50).metrics["macro_f1"]
    assert (never.value, never.low) == (0.5, 0.5)  # a declared label that is nowhere counts as 0, as ever


def test_where_intervals_may_not_hold_it_is_said():
    gold = ["home"] * 40 + ["clinic"] * 20
    for rare in (["home"] * 41 + ["clinic"] * 19, ["clinic"] * 41 + ["home"] * 19):
        few = run(predictions_of(gold), records_of(rare))
        assert any("1 of 2 labels are gold or predicted fewer than 20 times" in note for note in few.notes)
        assert not any(note.startswith("intervals:") for note in few.notes)
    assert any("fewer than 20 times" in note for note in run(predictions_of(["home"] * 60), records_of(gold)).notes)
    enough = run(predictions_of(gold), records_of(gold))
    assert not any("fewer than" in note for note in enough.notes)
    grouped = [replace(record, group=str(i // 2)) for i, record in enumerate(records_of(["home", "clinic"] * 30))]
    (note,) = [note for note in run(predictions_of(["home"] * 60), grouped).notes if note.startswith("intervals:")]
    assert "30 groups of records" in note


def test_bca_is_another_interval_of_the_same_value():
    records, predictions = records_of(["home"] * 200), predictions_of(["home"] * 190 + ["clinic"] * 10)
    percentile, bca = (run(predictions, records, interval=method, resamples=2000) for method in ("percentile", "bca"))
    assert percentile.metrics["accuracy"].value == bca.metrics["accuracy"].value == 0.95
    assert bca.metrics["accuracy"].low < percentile.metrics["accuracy"].low  # skewed: more room below
    assert "ci:bca-bootstrap-95" in bca.signature

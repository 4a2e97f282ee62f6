"""Evaluation: matching by id, what is refused and how, and results that survive a file."""

from __future__ import annotations

import json

import pytest

from reason2decide.errors import DataError
from reason2decide.evaluation import Results, evaluate, group_indices
from reason2decide.predictions import Prediction
from reason2decide.records import LabelSet, Record

LABELS = LabelSet(("home", "clinic"))
GOLD = ["home", "home", "clinic", "clinic"]


def records_of(gold=GOLD, **fields):
    return [Record(f"r{i}", "text", label, **fields) for i, label in enumerate(gold)]


def predictions_of(labels=("home", "clinic", "clinic", "clinic"), **fields):
    return [Prediction(f"r{i}", label, **fields) for i, label in enumerate(labels)]


def run(predictions, records, labels=LABELS, **options):
    settings = {"rationale_source": None, "split": "test", "dataset_name": "calls", "dataset_sha256": "ab" * 32}
    return evaluate(predictions, records, labels, **(settings | {"resamples": 200} | options))


def test_values_by_hand_in_the_shape_of_results_json():
    records = records_of(rationales={"nurse": "fever for two days"})
    value = run(predictions_of(rationale="fever for two days"), records, rationale_source="nurse").to_json()
    assert list(value) == ["metrics", "per_label", "confusion", "signature", "dataset", "split", "notes"]
    assert list(value["metrics"]) == ["accuracy", "macro_f1", "bleu", "chrf"]
    accuracy = value["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (0.75, 4)
    assert 0 <= accuracy["low"] <= 0.75 <= accuracy["high"] <= 1
    assert value["metrics"]["macro_f1"]["value"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert value["metrics"]["bleu"]["value"] == pytest.approx(100)
    assert value["per_label"]["home"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert value["confusion"] == {"labels": ["home", "clinic"], "matrix": [[1, 1], [0, 2]]}
    assert (value["dataset"], value["split"]) == ({"name": "calls", "sha256": "ab" * 32}, "test")


def test_order_of_predictions_does_not_matter():
    assert run(predictions_of(), records_of()) == run(predictions_of()[::-1], records_of())


def test_results_survive_json():
    results = run(predictions_of(), records_of())
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results


@pytest.mark.parametrize("value", [{}, {"metrics": {"accuracy": {"mean": 1}}}, {"metrics": None}])
def test_results_of_another_shape_are_refused(value):
    with pytest.raises(DataError, match="evaluate again"):
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
    assert "bleu, chrf: not computed: no rationale source was named to compare with" in results.notes


def test_records_left_out_are_counted_and_told():
    records = [*records_of(["home"], rationales={"nurse": "fever"}), Record("r1", "text", "clinic")]
    results = run(predictions_of(("home", "clinic"), rationale="fever"), records, rationale_source="nurse")
    assert results.metrics["chrf"].n == 1 and results.metrics["accuracy"].n == 2
    assert any(note.startswith("bleu, chrf: 1 of 2 records have no gold rationale") for note in results.notes)


def test_open_label_sets_have_accuracy_only():
    records = [Record("r0", "t", "A", choices=("A", "B")), Record("r1", "t", "D", choices=("C", "D"))]
    results = run(predictions_of(("A", "C")), records, LabelSet())
    assert results.metrics["accuracy"].value == 0.5 and results.metrics["macro_f1"].value is None
    assert (results.per_label, results.confusion_labels, results.confusion_matrix) == ({}, (), ())
    assert any(note.startswith("macro_f1, per_label, confusion: not computed: the label set") for note in results.notes)


def test_point_intervals_are_told():
    results = run(predictions_of(GOLD), records_of())
    assert results.metrics["accuracy"].low == results.metrics["accuracy"].high == 1.0
    assert any(note.startswith("accuracy: all resamples agree") for note in results.notes)


def test_groups_are_resampled_whole():
    records = [Record(f"r{i}", "t", "home", group="p" if i < 2 else None) for i in range(4)]
    assert group_indices(records).tolist() == [0, 0, 1, 2]
    assert group_indices(records_of()) is None
    assert "unit:group" in run(predictions_of(), records).signature


def test_missing_extra_and_repeated_ids_are_all_told_at_once():
    predictions = [*predictions_of()[:2], Prediction("r1", "home"), Prediction("x", "home")]
    with pytest.raises(DataError) as error:
        run(predictions, records_of())
    assert str(error.value) == (
        "the predictions do not match the 4 records of the split 'test': 1 ids are predicted more than once ('r1'); "
        "2 records have no prediction ('r2', 'r3'); 1 predictions belong to no record ('x'). "
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
        ({"predicted_label": "hospital"}, "outside its set: 'home', 'clinic'"),
        ({"probabilities": {"home": 1.0}}, "do not cover its choices"),
        ({"probabilities": {"home": 0.5, "clinic": 0.4, "x": 0.1}}, "do not cover its choices"),
        ({"probabilities": [0.5, 0.5]}, "do not cover its choices"),
        ({"probabilities": {"home": 0.5, "clinic": 0.6}}, "sum to 1.1"),
        ({"probabilities": {"home": 1.5, "clinic": -0.5}}, "the probability 1.5"),
        ({"probabilities": {"home": float("nan"), "clinic": 0.5}}, "the probability nan"),
        ({"probabilities": {"home": "1", "clinic": 0.0}}, "the probability '1'"),
        ({"rationale": 7}, "no text"),
    ],
)
def test_unscorable_predictions(fields, message):
    prediction = Prediction(**({"id": "r0", "predicted_label": "home"} | fields))
    with pytest.raises(DataError, match=f"the prediction for 'r0'.*{message}"):
        run([prediction], records_of(["home"]))


def test_rounded_probabilities_are_accepted():
    run(predictions_of(("home",), probabilities={"home": 0.6667, "clinic": 0.3329}), records_of(["home"]))

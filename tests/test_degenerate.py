"""A collapsed model does not look good: baselines beside it, warnings first, undefined instead of perfect."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import f1_score

from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.evaluation.baselines import bag_of_words, majority
from reason2decide.evaluation.degenerate import warnings_on
from reason2decide.evaluation.measure import Origin, evaluate
from reason2decide.evaluation.results import Results, read_results
from reason2decide.evaluation.settings import Settings
from reason2decide.workflows.evaluate import evaluate_predictions

LABELS = LabelSet(("yes", "no", "maybe"))
WORDS = {"yes": "it works", "no": "it fails", "maybe": "unclear"}


def records(count: int, first: int = 0) -> list[Record]:
    """Records whose text tells the label; half are yes."""
    labels = ("yes", "no", "yes", "maybe")
    return [
        Record(
            f"r{i}", f"Study {i}: {WORDS[labels[i % 4]]}.", labels[i % 4], {"human": f"In {i}, {WORDS[labels[i % 4]]}."}
        )
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    splits = {"train": records(80), "validation": records(20, 80), "test": records(100, 100)}
    return write_dataset(tmp_path_factory.mktemp("d") / "data", DatasetInfo("q", "t", LABELS, ("human",)), splits)


def evaluated(dataset: DatasetFolder, out: Path, predictions: list[Prediction]) -> Results:
    evaluate_predictions(predictions, dataset.path, out, Settings(resamples=200, probed=0), system="s")
    return read_results(out)


def test_the_majority_and_its_macro_f1_are_those_of_scikit_learn(dataset: DatasetFolder) -> None:
    train, test = list(dataset.split("train")), list(dataset.split("test"))
    dummy = DummyClassifier(strategy="most_frequent").fit([[0]] * 80, [record.label for record in train])
    assert [p.predicted_label for p in majority(train, LABELS, test)] == list(dummy.predict([[0]] * 100))
    assert [p.predicted_label for p in bag_of_words(train, LABELS, test)] == [record.label for record in test]


def test_a_system_that_always_says_yes_is_told_apart(dataset: DatasetFolder, tmp_path: Path) -> None:
    """Accuracy 0.5 and consistent reasons, and nothing learnt."""
    always = [Prediction(record.id, "yes", None, "It works.") for record in dataset.split("test")]
    results = evaluated(dataset, tmp_path / "out", always)
    assert "all 100 records get the label 'yes', whatever their text" in results.warnings
    assert "100 of 100 reasons are the same" in results.warnings
    assert any("worse than a bag of words: 0.222 against 1.000" in warning for warning in results.warnings)
    for name in ("simulated_consistency", "simulated_consistency_no_verdict"):
        assert results.metrics[name].value is None  # any reader that always says yes would agree
        assert any(name in note and "is 'yes' for all 100 records" in note for note in results.notes)
    assert results.metrics["simulated_sufficiency"].value == 0.5
    report = (tmp_path / "out" / "report.html").read_text()
    assert "all 100 records get the label" in report and "always the most frequent label" in report


def test_baselines_stand_beside_the_system_with_paired_differences(dataset: DatasetFolder, tmp_path: Path) -> None:
    test = list(dataset.split("test"))
    good = [
        Prediction(r.id, str(r.label) if i % 10 else "maybe", None, r.rationales["human"]) for i, r in enumerate(test)
    ]
    results = evaluated(dataset, tmp_path / "out", good)
    most, words = results.baselines
    gold = [str(record.label) for record in test]
    expected = f1_score(gold, ["yes"] * 100, average="macro", labels=LABELS.values)
    assert most.metrics["macro_f1"].value == pytest.approx(expected) and words.metrics["macro_f1"].value == 1
    own = results.metrics["macro_f1"].value
    assert own is not None
    gap = most.differences["macro_f1"]
    assert gap.difference == pytest.approx(own - expected) and 0 < gap.low < gap.difference < gap.high
    assert words.differences["macro_f1"].high < 0
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["baselines"]
    assert [entry["name"] for entry in stored] == ["majority", "bag_of_words"]


def warned(predictions: list[Prediction], gold: list[Record]) -> tuple[str, ...]:
    settings = Settings(rationale_source="human", resamples=1)
    found = evaluate(predictions, gold, LABELS, Origin("d", "0", "test"), settings)
    return warnings_on(found.results, found.examples)


def test_a_label_that_is_never_decided_is_named() -> None:
    gold = records(100)
    said = [Prediction(r.id, "no" if r.label == "maybe" else str(r.label)) for r in gold]
    assert warned(said, gold) == ("'maybe' is the gold label of 25 records and is never decided",)


def test_a_system_without_an_answer_has_no_label() -> None:
    gold = records(100)
    assert warned([Prediction(r.id, "") for r in gold], gold) == ("none of the 100 records got a valid answer",)
    half = [Prediction(r.id, "yes" if i % 2 else "") for i, r in enumerate(gold)]
    assert "all 100 records" not in str(warned(half, gold))


@pytest.mark.parametrize("text", ["yes", "Yes.", "4", " 3 ", "...", "a"])
def test_reasons_that_are_only_a_label_are_counted(text: str) -> None:
    gold = records(100)
    said = [Prediction(r.id, str(r.label), None, text if i < 3 else f"{i} because") for i, r in enumerate(gold)]
    assert "3 of 100 reasons are only a label, or have no word" in warned(said, gold)


def test_reasons_as_like_as_the_gold_ones_are_no_sign() -> None:
    gold = [replace(record, rationales={"human": f"Because {record.label}."}) for record in records(100)]
    said = [Prediction(r.id, str(r.label), None, r.rationales["human"]) for r in gold]
    assert warned(said, gold) == ()


def test_own_choices_have_no_baseline_and_say_so(tmp_path: Path) -> None:
    own = [Record(f"q{i}", f"Which {i}?", "abc"[i % 3], choices=("a", "b", "c")) for i in range(60)]
    splits = {"train": own[:20], "validation": own[20:40], "test": own[40:]}
    data = write_dataset(tmp_path / "data", DatasetInfo("q", "t", LabelSet()), splits)
    results = evaluated(data, tmp_path / "out", [Prediction(r.id, str(r.label)) for r in own[40:]])
    assert [baseline.name for baseline in results.baselines] == ["majority", "bag_of_words"]
    assert all("choices of their own" in (baseline.reason or "") for baseline in results.baselines)

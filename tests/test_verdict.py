"""What a comparison says: a sentence for each system, and no metric twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from forks import Forks

from reason2decide.data.dataset_folder import DatasetInfo, write_dataset
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.evaluation.comparison import Comparison, Difference, SystemValue
from reason2decide.evaluation.settings import Settings
from reason2decide.report.verdict import twins, verdicts
from reason2decide.workflows.evaluate import evaluate_predictions


def difference(system: str, metric: str, gap: float, p: float | None) -> Difference:
    return Difference(system, metric, gap, gap - 0.05, gap + 0.05, 100, 0.01, 0.01, p, None)


def value(mean: float) -> SystemValue:
    return SystemValue(mean, mean - 0.1, mean + 0.1, None, (mean,), 100)


def comparison(*differences: Difference, values: dict[str, dict[str, SystemValue]] | None = None) -> Comparison:
    return Comparison("a", "d", "test", ("macro_f1", "under_triage"), values or {"a": {}, "b": {}}, differences)


@pytest.mark.parametrize(
    ("gaps", "sentence"),
    [
        (((0.07, 0.01), (-0.01, 0.4)), "better in Macro-F1 by 0.070 [0.020, 0.120], corrected p 0.010; "
         "no difference seen in Under-triage"),
        (((-0.07, 0.0001), (0.1, 0.02)), "worse in Macro-F1 by 0.070 [0.020, 0.120], corrected p below 0.001 and "
         "Under-triage by 0.100 [0.050, 0.150], corrected p 0.020"),
        (((0.07, 0.01), (0.1, 0.02)), "better in Macro-F1 by 0.070 [0.020, 0.120], corrected p 0.010; worse in "
         "Under-triage by 0.100 [0.050, 0.150], corrected p 0.020"),
        (((0.07, 0.05), (-0.1, 0.9)), "no difference seen in Macro-F1 and Under-triage"),
    ],
)  # fmt: skip
def test_a_sentence_tells_what_was_tested(gaps: tuple[tuple[float, float], ...], sentence: str) -> None:
    (one, p_one), (other, p_other) = gaps
    found = comparison(
        difference("b", "macro_f1", one, p_one),
        difference("b", "under_triage", other, p_other),
        difference("b", "bleu", 5.0, None),  # exploratory
    )
    assert verdicts(found) == {"b": sentence}


def test_nothing_tested_is_said() -> None:
    assert verdicts(comparison(difference("b", "bleu", 5.0, None))) == {"b": "nothing was tested"}


def test_twins_are_shown_once() -> None:
    same = {"accuracy": value(0.5), "micro_f1": value(0.5), "macro_f1": value(0.4), "bleu": value(0.5)}
    other = same | {"micro_f1": value(0.6)}
    assert twins(comparison(values={"a": same, "b": same})) == {"accuracy": ["micro_f1"], "macro_f1": [], "bleu": []}
    assert twins(comparison(values={"a": same, "b": other}))["micro_f1"] == []  # not the same everywhere


def test_compare_prints_a_verdict_and_a_table(tmp_path: Path, forks: Forks) -> None:
    labels = LabelSet(("yes", "no"))
    records = {split: [Record(f"{split}{i}", f"case {i}", ("yn"[i % 2] == "y" and "yes") or "no") for i in range(200)]
               for split in ("train", "validation", "test")}  # fmt: skip
    data = write_dataset(tmp_path / "data", DatasetInfo("q", "t", labels), records)
    for name, wrong in (("good", 10), ("bad", 2)):
        said = [
            Prediction(r.id, str(r.label) if i % wrong else "no" if r.label == "yes" else "yes")
            for i, r in enumerate(records["test"])
        ]
        evaluate_predictions(said, data.path, tmp_path / name, Settings(resamples=300), system=name)
    done = forks.run("compare", tmp_path / "bad", tmp_path / "good", "--out", tmp_path / "c", "--resamples", "300")
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert "better in Macro-F1 by 0." in first and "corrected p" in first
    assert "accuracy ↑" in done.stdout and "(also micro_f1)" in done.stdout
    page = (tmp_path / "c" / "report.html").read_text()
    assert "better in Macro-F1 by" in page and "(the same: Micro-F1)" in page

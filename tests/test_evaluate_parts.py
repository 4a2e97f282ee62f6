"""A folder of parts measured without loading it: the figures of all rows at once, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import exported
from forks import Forks
from hypothesis import given
from hypothesis import strategies as st

from reason2decide.batch.input import InputFile
from reason2decide.batch.job import BatchJob, part_folder
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.id_buckets import IdBuckets
from reason2decide.data.predictions import Prediction, Undecided
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.errors import ConfigError, DataError
from reason2decide.evaluation import pooling
from reason2decide.evaluation.measure import Origin, evaluate, values_of
from reason2decide.evaluation.metrics.base import Examples
from reason2decide.evaluation.metrics.decisions import MacroF1
from reason2decide.evaluation.metrics.overlap import Bleu
from reason2decide.evaluation.pooling import SumPool, unit_of
from reason2decide.evaluation.results import Results, read_results
from reason2decide.evaluation.settings import Settings
from reason2decide.evaluation.slices import Column, Slicing
from reason2decide.workflows import evaluate_parts as workflow
from reason2decide.workflows.evaluate import evaluate_predictions
from reason2decide.workflows.evaluate_parts import evaluate_parts

SETTINGS = Settings(rationale_source="llm", slices=("age_years", "length:30,36"), resamples=400)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    """Synthetic calls, whose texts, rationales and facts every metric can read."""
    return synthesize_calls(tmp_path_factory.mktemp("calls") / "calls", train=60, validation=20, test=400)


def decided(records: Sequence[Record], labels: LabelSet) -> list[Prediction]:
    """Decisions that are right in seven of ten, and explain with the reason of another call in one of three."""
    rng, values = np.random.default_rng(0), labels.values
    found = []
    for i, record in enumerate(records):
        p = rng.dirichlet(np.ones(len(values)))
        label = str(record.label) if rng.random() < 0.7 else values[int(rng.integers(len(values)))]
        reason = (records[i - 1] if i % 3 == 0 else record).rationales["llm"]
        found.append(Prediction(record.id, label, dict(zip(values, p.tolist(), strict=True)), reason, tokens=40))
    return found


def write_parts(folder: Path, outcomes: Sequence[Prediction | Undecided], size: int = 30, format: str = "jsonl") -> str:
    """A finished folder of parts of these rows."""
    folder.mkdir(parents=True)
    settings = {"format": format, "rows_per_part": size}
    job = BatchJob("0", "a model", settings, [InputFile("cases.jsonl", "0", len(outcomes))])
    job.write(folder)
    for number in job.parts:
        part_folder(folder, job).write(number, outcomes[number * size : (number + 1) * size])
    return str(folder)


def close(one: Results, other: Results, name: str) -> None:
    """The same value of the same number of records, in an interval that differs by the noise of resampling."""
    own, theirs = one.metrics[name], other.metrics[name]
    assert (own.value is None) == (theirs.value is None), name
    if own.value is None or theirs.value is None:
        return
    assert own.value == pytest.approx(theirs.value, abs=1e-9) and own.n == theirs.n, name
    if theirs.low is not None and theirs.high is not None:
        width = theirs.high - theirs.low
        assert own.low == pytest.approx(theirs.low, abs=0.25 * width + 1e-9), name
        assert own.high == pytest.approx(theirs.high, abs=0.25 * width + 1e-9), name


def test_parts_have_the_figures_of_all_rows_at_once(
    calls: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In buckets of fifty, in another order than the records; by one process and by two, with the same bytes."""
    predictions = decided(list(calls.split("test")), calls.info.labels)
    parts = write_parts(tmp_path / "parts", predictions[::-1])
    whole = evaluate_predictions(predictions, calls.path, tmp_path / "whole", SETTINGS, system="s")
    monkeypatch.setattr(workflow, "AT_ONCE", 50)
    found = evaluate_parts(parts, calls.path, tmp_path / "one", SETTINGS, system="s")
    evaluate_parts(parts, calls.path, tmp_path / "two", SETTINGS, system="s", workers=2)
    assert (tmp_path / "one/results.json").read_bytes() == (tmp_path / "two/results.json").read_bytes()
    computed = {name for name, value in whole.metrics.items() if value.value is not None}
    assert computed > {"macro_f1", "aurc", "under_triage", "bleu", "simulated_consistency_no_verdict", "cited_false"}
    assert found.metrics.keys() == whole.metrics.keys()
    for name in whole.metrics:
        close(found, whole, name)
    assert found.confusion_matrix == whole.confusion_matrix and found.per_label == whole.per_label
    assert np.allclose([list(p.values()) for p in found.reliability], [list(p.values()) for p in whole.reliability])
    assert np.allclose([list(p.values()) for p in found.risk_coverage], [list(p.values()) for p in whole.risk_coverage])
    for column, slices in whole.slices.items():
        assert [(part.value, part.n, part.absent_labels) for part in found.slices[column]] == [
            (part.value, part.n, part.absent_labels) for part in slices
        ]
        for own, theirs in zip(found.slices[column], slices, strict=True):
            for name, value in theirs.metrics.items():
                assert own.metrics[name].value == pytest.approx(value.value, abs=1e-9), (column, theirs.value, name)
    assert "|unit:1024 random groups|" in found.signature
    assert any("random groups of records are resampled" in note for note in found.notes)
    report = (tmp_path / "one/report.html").read_text()
    assert "Decisions on 400 records" in report
    assert (tmp_path / "whole/predictions.jsonl").exists() and not (tmp_path / "one/predictions.jsonl").exists()


def test_two_systems_in_parts_can_be_compared(forks: Forks, calls: DatasetFolder, tmp_path: Path) -> None:
    records = list(calls.split("test"))
    right = [Prediction(record.id, str(record.label)) for record in records]
    for name, predictions in (("right", right), ("other", decided(records, calls.info.labels))):
        parts = write_parts(tmp_path / name / "parts", predictions, format="parquet")
        ended = forks.run("evaluate", calls.path, "--parts", parts, "--out", tmp_path / name / "results")
        assert ended.returncode == 0, ended.stderr
    results = [tmp_path / name / "results" for name in ("other", "right")]
    ended = forks.run("compare", *results, "--out", tmp_path / "compared", "--primary", "accuracy")
    assert ended.returncode == 0, ended.stderr
    comparison = json.loads((tmp_path / "compared/comparison.json").read_text())
    (found,) = [gap for gap in comparison["differences"] if gap["metric"] == "accuracy"]
    assert 0.1 < found["low"] < found["difference"] < found["high"] < 0.5
    # Records are counted, not the random groups; McNemar's test would take these for records.
    assert (
        found["n"] == comparison["systems"][str(results[1])]["accuracy"]["n"] == len(records)
        and found["p_mcnemar"] is None
    )
    # Sums of groups match no record of results that were measured at once.
    evaluate_predictions(right, calls.path, tmp_path / "whole", system="whole")
    ended = forks.run("compare", results[0], tmp_path / "whole", "--out", tmp_path / "mixed")
    assert ended.returncode == 2 and "evaluate both with --parts, or neither" in ended.stderr


def test_a_bundle_and_the_parts_it_decided(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    """From the model to its card, with the calibration that it learnt on validation."""
    parts, out = tmp_path / "parts", tmp_path / "results"
    ended = forks.run("predict", exported(), dataset.path / "test.jsonl", "--out", parts, "--rows-per-part", 5)
    assert ended.returncode == 0, ended.stderr
    ended = forks.run(
        "evaluate", dataset.path, "--model", exported(), "--parts", parts, "--out", out, "--resamples", 50
    )
    assert ended.returncode == 0, ended.stderr
    results = read_results(out)
    assert results.calibration is not None and set(results.calibration.before) >= {"log_loss", "brier", "ece"}
    assert results.metrics["conformal_coverage"].value is not None and (out / "model_card.md").is_file()
    whole = tmp_path / "whole"
    ended = forks.run("evaluate", exported(), dataset.path, "--out", whole, "--resamples", 50, "--probed", 0)
    assert ended.returncode == 0, ended.stderr
    for name in ("accuracy", "log_loss", "bleu", "conformal_set_size"):
        assert results.metrics[name].value == pytest.approx(read_results(whole).metrics[name].value), name
    assert results.calibration.before == pytest.approx(getattr(read_results(whole).calibration, "before", None))
    assert results.system == read_results(whole).system


def test_rows_that_failed_count_as_unanswered(calls: DatasetFolder, tmp_path: Path) -> None:
    records = list(calls.split("test"))
    outcomes: list[Prediction | Undecided] = [Prediction(record.id, str(record.label)) for record in records]
    outcomes[7] = Undecided(records[7].id, "the text is empty")
    found = evaluate_parts(write_parts(tmp_path / "p", outcomes), calls.path, tmp_path / "out", Settings(resamples=1))
    assert found.metrics["accuracy"].value == 399 / 400 and sum(found.unanswered) == 1
    assert any(note.startswith("1 of 400 rows failed, and count as records without an answer") for note in found.notes)


# ---- What is refused


def broken(parts: Path, name: str) -> None:
    """Damage a finished folder of parts."""
    if name == "missing":
        (parts / "part-000001.jsonl").unlink()
    elif name == "damaged":
        path = parts / "part-000001.jsonl"
        path.write_text(path.read_text().replace('{"id"', '{"id', 1))
    elif name == "manifest":
        (parts / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "has 13 of 14 parts; finish it first"),
        ("damaged", "part-000001.jsonl is damaged; remove it"),
        ("manifest", "has no manifest.json of parts"),
    ],
)
def test_parts_that_are_not_whole(forks: Forks, calls: DatasetFolder, tmp_path: Path, name: str, message: str) -> None:
    outcomes = [Prediction(record.id, str(record.label)) for record in calls.split("test")]
    parts = Path(write_parts(tmp_path / "parts", outcomes))
    broken(parts, name)
    ended = forks.run("evaluate", calls.path, "--parts", parts, "--out", tmp_path / "out")
    assert ended.returncode == 2 and message in " ".join(ended.stderr.split()), ended.stderr
    assert not (tmp_path / "out").exists()


def test_ids_that_do_not_match_are_counted_over_all_parts(
    calls: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "AT_ONCE", 20)
    outcomes = [Prediction(record.id, str(record.label)) for record in calls.split("test")]
    outcomes[:100] = [replace(own, id=f"other {own.id}") for own in outcomes[:100]]
    outcomes[200] = outcomes[201]
    with pytest.raises(DataError) as refused:
        evaluate_parts(write_parts(tmp_path / "p", outcomes), calls.path, tmp_path / "out")
    for complaint in (
        "do not match the 400 records of the split 'test'",
        "101 records have no prediction",
        "100 predictions match no record",
        "1 ids are predicted more than once",
    ):
        assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("{data}", "--parts", "{parts}", "--predictions", "{parts}"), "give one of them"),
        (("--parts", "{parts}", "{data}", "{data}", "{data}"), "expected DATASET and --parts FOLDER"),
        (("{data}", "--parts", "{parts}", "--model", "{model}"), "was decided by another model"),
        (("{data}", "--parts", "{parts}", "--bertscore-idf"), "leave it out with --parts"),
        (("{data}", "--parts", "{parts}", "--slice", "ward"), "no record has a column 'ward'"),
        (("{data}", "--parts", "nowhere"), "nowhere"),
        (("{model}", "{data}", "--model", "{model}"), "go with --parts"),
        (("{data}", "--predictions", "{parts}/part-000000.jsonl", "--workers", "2"), "go with --parts"),
        (("{data}", "--parts", "s4://bucket/parts"), "s4"),
        (
            ("{data}", "--parts", "{parts}", "--best-of", "4", "--probed", "9"),
            "--best-of, --probed: decisions made before",
        ),
        (("{data}", "--predictions", "{parts}", "--card-answers", "a.toml"), "goes with a bundle, or with --parts"),
    ],
)
def test_what_does_not_go_together(
    forks: Forks, calls: DatasetFolder, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    outcomes = [Prediction(record.id, str(record.label)) for record in calls.split("test")]
    names: dict[str, Any] = {"data": calls.path, "model": exported(), "parts": write_parts(tmp_path / "p", outcomes)}
    ended = forks.run("evaluate", *(text.format(**names) for text in given), "--out", tmp_path / "out")
    assert ended.returncode == 2 and message in " ".join(ended.stderr.split()), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_setting_that_needs_all_records_at_once(calls: DatasetFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--bertscore-idf weighs words by all records at once"):
        evaluate_parts("nowhere", calls.path, tmp_path / "out", Settings(bertscore_idf=True))


# ---- Pools


LABELS = LabelSet(("a", "b"))


def test_a_group_is_resampled_as_a_whole() -> None:
    """Its records fall into one random group; those without one are spread over all."""
    grouped = [Record(f"{i}", "t", "a", group=f"patient {i % 3}") for i in range(60)]
    assert len(set(unit_of(grouped).tolist())) == 3
    alone = unit_of([replace(record, group=None) for record in grouped])
    assert len(set(alone.tolist())) > 50 and alone.max() < pooling.UNITS


def test_pooled_intervals_hold_as_those_of_single_records() -> None:
    """Of many more records than random groups: the width of the interval is that of the usual bootstrap."""
    rng = np.random.default_rng(3)
    records = [Record(f"r{i}", "t", "ab"[i % 2]) for i in range(6000)]
    predictions = [
        Prediction(r.id, str(r.label) if rng.random() < 0.8 else "ab"[int(rng.integers(2))]) for r in records
    ]
    settings = Settings(resamples=2000)
    whole = evaluate(predictions, records, LABELS, Origin("d", "0", "test"), settings)
    pool = SumPool([MacroF1()], (), None)
    for start in range(0, 6000, 1500):
        part = slice(start, start + 1500)
        pool.add(replace(whole.examples, records=records[part], predictions=predictions[part]))
    sums = pool.sums()
    assert sums.units > 1000
    own, theirs = (
        values_of([MacroF1()], sums.statistics, None, settings)["macro_f1"],
        whole.results.metrics["macro_f1"],
    )
    assert own.value == pytest.approx(theirs.value) and own.n == 6000
    assert own.low is not None and own.high is not None and theirs.low is not None and theirs.high is not None
    assert (own.high - own.low) == pytest.approx(theirs.high - theirs.low, rel=0.12)


def test_bleu_cuts_all_texts_as_the_first_ones() -> None:
    """Counts of characters and of words must not be added."""
    records = [Record(f"{i}", "t", "a", {"s": text}) for i, text in enumerate(["高熱三日咳嗽", "chest pain now"])]
    predictions = [Prediction(record.id, "a", None, record.rationales["s"]) for record in records]
    pool = SumPool([Bleu()], (), None)
    for record, prediction in zip(records, predictions, strict=True):
        pool.add(Examples([record], [prediction], LABELS, "s"))
    (bleu,) = pool.metrics
    assert "tok:char" in bleu.signature()
    letters = len("高熱三日咳嗽") + len("chest pain now".replace(" ", ""))
    assert pool.sums().statistics["bleu"].total()[0] == letters


def test_what_is_undefined_for_some_records_is_undefined() -> None:
    """Labels outside the declared set in one part leave no confusion matrix of the others."""
    records = [Record(f"{i}", "t", "a" if i < 8 else "c", choices=None if i < 8 else ("a", "c")) for i in range(10)]
    predictions = [Prediction(record.id, str(record.label)) for record in records]
    whole = evaluate(predictions[:8], records[:8], LABELS, Origin("d", "0", "test"), Settings(resamples=1))
    pool = SumPool([MacroF1()], (), None)
    pool.add(whole.examples)
    assert pool.sums().statistics.keys() == {"macro_f1"}
    pool.add(replace(whole.examples, records=records[8:], predictions=predictions[8:]))
    sums = pool.sums()
    assert not sums.statistics and "2 of 2 records" in str(sums.undefined["macro_f1"])


@given(st.lists(st.tuples(st.text(min_size=1), st.integers(0, 9)), max_size=60), st.integers(1, 7))
def test_lines_of_one_id_meet_in_one_bucket(tmp_path_factory: pytest.TempPathFactory, added: Any, count: int) -> None:
    buckets = IdBuckets(tmp_path_factory.mktemp("buckets") / "b", count)
    for id_, number in added:
        buckets.add(id_, json.dumps((id_, number)))
        if number == 0:
            buckets.flush()
    buckets.flush()
    found = [[tuple(json.loads(line)) for line in buckets.read(bucket)] for bucket in range(count)]
    assert sorted(row for bucket in found for row in bucket) == sorted(added)
    homes = {id_: {i for i, bucket in enumerate(found) if any(id_ == own for own, _ in bucket)} for id_, _ in added}
    assert all(len(home) == 1 for home in homes.values())
    for id_ in homes:  # in the order in which they came
        (home,) = homes[id_]
        assert [n for own, n in found[home] if own == id_] == [n for own, n in added if own == id_]


def test_a_column_with_too_many_values_asks_for_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reason2decide.evaluation.slices.MAX_COUNTED", 100)
    records = [Record(f"{i}", "t", "a", meta={"lactate": i / 7}) for i in range(200)]
    with pytest.raises(DataError, match=r"more than 100 different values.*as in --slice lactate:10,20"):
        Slicing.fit(records, Column("lactate"))
    assert [
        int(mask.sum()) for mask in Slicing.fit(records, Column.parse("lactate:10,20")).masks(records).values()
    ] == [
        70,
        70,
        60,
    ]


@given(st.lists(st.floats(-1e6, 1e6) | st.integers(-9, 9), min_size=12, max_size=80))
def test_bands_of_counted_values_are_those_of_all_values(values: list[float]) -> None:
    """The edges are numpy's quantiles of the whole column."""
    if len(set(values)) <= 10:
        return
    records = [Record(f"{i}", "t", "a", meta={"x": value}) for i, value in enumerate(values)]
    edges = np.quantile(np.array(values, float), [0.25, 0.5, 0.75], method="higher")
    expected = sorted({float(edge) for edge in edges if edge > min(values)})
    # Where most have the lowest value, it gets a band of its own.
    assert list(Slicing.fit(records, Column("x")).edges) == (expected or [sorted(set(values))[1]])

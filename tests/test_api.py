"""The Python API: its examples run, what goes in comes out, and mistakes are told."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy import LABELS, record, run

import reason2decide as r2d
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.errors import BaseModelError, CheckpointError, ConfigError, DataError, OutputError

TEXT = "21 yo with mild rash since 2 days"


@pytest.fixture(scope="module")
def folder(dataset: DatasetFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the examples are about: data/, run/bundle and notes.csv."""
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        r2d.Dataset(dataset.path).save("data")
        run(dataset, Path("run"), steps=4)
        rows = [
            {"note": own.text, "disposition": own.label, "reason": own.rationales.get("llm"), "patient": own.id}
            for own in map(record, range(60))
        ]
        pd.DataFrame(rows).to_csv("notes.csv", index=False)
        yield folder


@pytest.fixture
def model(folder: Path) -> r2d.Model:
    return r2d.load("run/bundle")


@pytest.mark.parametrize("name", ["models", "datasets", "training", "evaluating"])
def test_the_examples_of_the_docstrings_run(name: str, folder: Path) -> None:
    module = importlib.import_module(f"reason2decide.api.{name}")
    outcome = doctest.testmod(module)
    assert outcome.attempted >= 3 and not outcome.failed


def test_importing_costs_nothing() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pandas', 'pydantic', 'rich', 'jinja2'}"
    code = f"import sys, reason2decide; assert not {heavy} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_list_is_answered_in_its_order(model: r2d.Model) -> None:
    texts = [f"{'chest pain ' * (1 + index % 3)}since {index} days" for index in range(7)]
    answers = model.decide(texts)
    assert [own.id for own in answers] == [str(index) for index in range(7)]
    for text, answer in zip(texts, answers, strict=True):
        alone = model.decide(text)
        assert isinstance(alone, r2d.Answer)
        assert (alone.label, alone.rationale) == (answer.label, answer.rationale)
        assert answer.label == max(answer.probabilities, key=answer.probabilities.__getitem__)
        assert answer.probability == answer.probabilities[answer.label]
        assert sum(answer.probabilities.values()) == pytest.approx(1)
        assert answer.label == answer.prediction_set[0]
    frame = answers.to_pandas()
    assert list(frame["label"]) == [own.label for own in answers]
    assert list(frame.columns[-3:]) == [f"P({label})" for label in LABELS.values]
    assert model.decide([]) == []


def test_records_keep_their_id_and_deferral_follows_the_error_rate(folder: Path) -> None:
    cautious, bold = (r2d.load("run/bundle", error_rate=rate) for rate in (0.0, 1.0))
    case = r2d.Record("call 7", TEXT)
    assert cautious.decide(case).id == "call 7"
    threshold = cautious.predictor.bundle.calibration.threshold(0.0)
    answer = cautious.decide(case)
    assert answer.deferred == (threshold is None or answer.probability < threshold)
    assert not bold.decide(case).deferred


def test_why_and_why_not(model: r2d.Model) -> None:
    answer = model.decide(TEXT)
    assert model.explain(TEXT) == answer.rationale
    own = [r2d.Record("0", TEXT)]
    for label in LABELS.values:
        assert model.explain(TEXT, label) == model.predictor.rationales(own, [label])[0]
    with pytest.raises(DataError, match="'flu' is not a label of this case; choose one of 'home care'"):
        model.explain(TEXT, label="flu")
    with pytest.raises(DataError, match="the text of case '1' is empty"):
        model.decide([TEXT, " "])


@pytest.mark.parametrize(
    ("method", "expected"), [("sft", "writes no rationales"), ("dss", "do not depend on a label; leave `label` out")]
)
def test_methods_without_conditioned_rationales(
    method: str, expected: str, dataset: DatasetFolder, tmp_path: Path
) -> None:
    model = r2d.load(run(dataset, tmp_path / "run", method=method, steps=1))
    with pytest.raises(ConfigError, match=expected):
        model.explain(TEXT, label="home care")


def test_answers_and_results_show_as_escaped_tables(folder: Path, model: r2d.Model) -> None:
    answer = r2d.Answer("<i>", "<b>", {"<b>": 0.75, "c": 0.25}, "<script>", True, ("<b>",), 9, 9)
    for html in (answer._repr_html_(), r2d.Answers([answer])._repr_html_()):
        assert "<script>" not in html and "&lt;script&gt;" in html and "75.0%" in html and "defer" in html
    results = r2d.evaluate(model, "data", resamples=20, probed=0)
    html, value = results._repr_html_(), results.macro_f1.value
    assert value is not None and f"<td>macro_f1</td><td>{value:.4f}</td>" in html
    assert f"macro_f1 {'':<23} {value:.4f}" in repr(results)
    assert "<td>train</td><td>48</td>" in r2d.Dataset("data")._repr_html_()


def test_data_goes_in_and_out(folder: Path) -> None:
    columns: dict[str, Any] = {"text": "note", "label": "disposition", "rationales": {"nurse": "reason"}}
    frame = pd.read_csv("notes.csv")
    data = r2d.Dataset.from_pandas(frame, **columns, id="patient", meta=["patient"], labels=LABELS.values)
    assert data.labels.values == LABELS.values and data.check().ok
    back = data.to_pandas()
    assert sorted(back["id"]) == sorted(frame["patient"]) and set(back["split"]) == {"train", "validation", "test"}
    merged = back.merge(frame, left_on="id", right_on="patient")
    assert list(merged["text"]) == list(merged["note"]) and list(merged["label"]) == list(merged["disposition"])
    # A cell without a rationale is a record without one, not the word "nan".
    assert merged["rationale_nurse"].isna().equals(merged["reason"].isna())
    through_datasets = data.to_datasets()
    assert {split: len(part) for split, part in through_datasets.items()} == {s: len(data[s]) for s in data.splits}
    again = r2d.Dataset.from_datasets(
        through_datasets, text="text", label="label", rationales={"nurse": "rationale_nurse"}, id="id"
    )
    assert {split: again.to_list(split) for split in again.splits} == {
        split: [{key: value for key, value in row.items() if key != "patient"} for row in data.to_list(split)]
        for split in data.splits
    }


def test_temporary_data_goes_with_its_object_unless_saved(tmp_path: Path) -> None:
    rows = [{"t": f"case {n}", "l": "ab"[n % 2], "s": ("train", "val", "test")[n % 3]} for n in range(24)]
    data = r2d.Dataset.from_list(rows, text="t", label="l", split="s")
    assert data.is_temporary and [len(data[split]) for split in data.splits] == [8, 8, 8]
    kept, temporary = data.save(tmp_path / "kept"), data.path
    with pytest.raises(OutputError, match="exists"):
        data.save(tmp_path / "kept")
    del data
    assert not temporary.exists() and not kept.is_temporary and len(kept["test"]) == 8
    with pytest.raises(DataError, match=r"rows has no column 'label'; it has 't', 'l', 's'"):
        r2d.Dataset.from_list(rows, text="t", label="label")


def test_lists_in_a_frame_are_read_as_lists(folder: Path) -> None:
    """`pandas.read_parquet` gives them as arrays."""
    frame = pd.read_csv("notes.csv")
    notes: Any = [np.array([f"Cough for {i} days.", "No fever."]) for i in range(len(frame))]
    sentences = frame.assign(note=notes)
    listed = r2d.Dataset.from_pandas(sentences, text="note", label="disposition", rationales={"nurse": "reason"})
    texts = {record.text for split in ("train", "validation", "test") for record in listed[split]}
    assert "Cough for 1 days. No fever." in texts


def test_a_run_on_data_in_memory_repeats_itself(folder: Path, tmp_path: Path) -> None:
    """The run folder holds the data; RUN/config.toml trains again as it stands, from any folder, to the same model."""
    frame = pd.read_csv("notes.csv")
    data = r2d.Dataset.from_pandas(frame, text="note", label="disposition", rationales={"nurse": "reason"})
    settings: dict[str, Any] = {"steps": 2, "batch_size": 8, "rationale_source": "nurse"}
    first = r2d.train(method="r2d", base="tiny", dataset=data, out=tmp_path / "run", **settings)
    assert (tmp_path / "run" / "dataset" / "dataset.toml").is_file()
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = r2d.Dataset.from_pandas(
        frame[::-1], text="note", label="disposition", rationales={"nurse": "reason"}, seed=1
    )
    for change, error, message in (
        ({}, OutputError, "already exists"),
        ({"force": True, "base": "nobody/nothing"}, BaseModelError, "neither a folder here nor reachable"),
        ({"force": True, "stepps": 3}, ConfigError, "did you mean 'steps'"),
    ):
        with pytest.raises(error, match=message):
            r2d.train(
                **{"method": "r2d", "base": "tiny", "dataset": other, "out": tmp_path / "run", **settings, **change}
            )
    with pytest.raises(CheckpointError):  # resumed with other data
        r2d.train(method="r2d", base="tiny", dataset=other, out=tmp_path / "run", resume="auto", **settings)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == kept
    # By whatever path the folder is named, the data in it stay when the run is made anew.
    (tmp_path / "link").symlink_to(tmp_path)
    through = tmp_path / "link" / "run"
    anew: list[Any] = [
        sys.executable,
        "-m",
        "reason2decide",
        "train",
        through / "config.toml",
        "--out",
        through,
        "--force",
    ]
    assert subprocess.run(anew, capture_output=True).returncode == 0
    assert (tmp_path / "run" / "dataset" / "train.jsonl").is_file()
    with pytest.raises(OutputError, match="contains files but not a run"):
        r2d.train(method="r2d", base="tiny", dataset=data, out=folder, **settings)
    assert not (folder / "dataset").exists()
    done = subprocess.run(
        [sys.executable, "-m", "reason2decide", "train", tmp_path / "run" / "config.toml", "--out", tmp_path / "again"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    weights = [path / "bundle" / "model" / "model.safetensors" for path in (first.path, tmp_path / "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = r2d.train(method="r2d", base="tiny", dataset=data, out=tmp_path / "run", force=True, **settings)
    assert again.model.decide(TEXT) == first.model.decide(TEXT)
    assert len(first.log_to_pandas()) == len(first.log) > 4


def test_a_folder_is_evaluated_as_asked_and_a_loaded_model_as_loaded(folder: Path, tmp_path: Path) -> None:
    """What the signature tells is what was done."""
    costs = tmp_path / "costs.csv"
    labels = r2d.load("run/bundle").labels.values
    costs.write_text("\n".join([",".join(["", *labels]), *(",".join([own, *"012"]) for own in labels)]))
    asked: dict[str, Any] = {"best_of": 2, "error_rate": 0.4, "input_tokens": 20, "costs": str(costs)}
    found = r2d.evaluate("run/bundle", "data", resamples=20, probed=0, **asked)
    assert "|input_tokens:20|guidance:0|best_of:2" in found.results.signature
    assert found.expected_cost.value is not None
    model = r2d.load("run/bundle", input_tokens=20, best_of=2, error_rate=0.4)
    same = r2d.evaluate(model, "data", resamples=20, probed=0, costs=costs)
    assert same.results.signature == found.results.signature
    assert same.predictions == found.predictions
    assert found.predictions != r2d.evaluate("run/bundle", "data", resamples=20, probed=0).predictions
    with pytest.raises(ConfigError, match="guidance, error_rate: a loaded model decides and explains as it was loaded"):
        r2d.evaluate(model, "data", guidance=1, error_rate=0.1)


def test_results_of_anybody_are_compared_and_kept(folder: Path, model: r2d.Model, tmp_path: Path) -> None:
    ours = r2d.evaluate(model, "data", system="ours", resamples=30, probed=2, out=tmp_path / "ours")
    assert (tmp_path / "ours" / "report.html").is_file() and "|probed:2|" in ours.results.signature
    gold = [r2d.Prediction(own.id, own.label or "") for own in r2d.Dataset("data")["test"]]
    theirs = r2d.evaluate(gold, "data", resamples=30)
    assert theirs.accuracy.value == 1 and theirs.results.system == "predictions"
    assert theirs.to_pandas().loc["accuracy", "n"] == 12
    assert len(ours.predictions_to_pandas()) == 12
    compared = r2d.compare([ours, theirs], resamples=30)
    rows = compared.to_pandas().set_index("metric")
    assert rows.loc["accuracy", "difference"] == pytest.approx(1 - (ours.accuracy.value or 0))
    assert "<td>predictions</td><td>accuracy</td>" in compared._repr_html_()
    assert (compared.save(tmp_path / "compared") / "comparison.json").is_file()
    with pytest.raises(DataError, match="at least two systems with different names"):
        r2d.compare([ours, ours])
    assert r2d.compare([ours, ours.renamed("twin")], resamples=20).comparison.differences[0].difference == 0
    with pytest.raises(AttributeError, match="there is no metric 'f2'"):
        ours.f2  # noqa: B018
    with pytest.raises(ConfigError, match="error_rate = 2"):
        r2d.evaluate(gold, "data", error_rate=2)
    with pytest.raises(ConfigError, match="there is no key 'sead'; did you mean 'seed'"):
        r2d.evaluate(gold, "data", sead=2)
    with pytest.raises(ConfigError, match="best_of, probed: decisions made before"):
        r2d.evaluate(gold, "data", best_of=4, probed=2)

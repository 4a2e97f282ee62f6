"""`r2d evaluate` as a user runs it: a bundle, anybody's predictions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from toy import LABELS
from toy import run as train_toy

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.evaluation.probes import read_probes
from reason2decide.evaluation.results import load_statistics, read_results

QUICK = ("--resamples", 50)
FILES = {"predictions.jsonl", "results.json", "statistics.npz", "report.html", "plots", "tables"}


@pytest.fixture(scope="module")
def bundle(dataset: DatasetFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Long enough that it writes words, the same ones mostly.
    return train_toy(dataset, tmp_path_factory.mktemp("evaluate") / "run", steps=60, dropout=0.0)


def predicted(dataset: DatasetFolder, split: str, **fields: Any) -> str:
    """Predictions of a system that is always right and quite sure."""
    lines = []
    for record in dataset.split(split):
        p = {label: 0.8 if label == record.label else 0.1 for label in LABELS.values}
        line = {
            "id": record.id,
            "predicted_label": record.label,
            "probabilities": p,
            "rationale": "Chest pain decides.",
        }
        lines.append(json.dumps({**line, **fields}))
    return "\n".join(lines) + "\n"


def test_a_bundle(forks: Forks, bundle: Path, dataset: DatasetFolder, tmp_path: Path) -> None:
    out = tmp_path / "results"
    options = ("--slice", "length", "--bertscore-encoder", "minilm", "--probed", 5, "--interval", "bca")
    ended = forks.run("evaluate", bundle, dataset.path, "--out", out, *QUICK, *options)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in out.iterdir()} == FILES | {"probes.jsonl", "model_card.md"}
    results = read_results(out)
    computed = {name for name, value in results.metrics.items() if value.value is not None}
    assert computed >= {
        "accuracy", "macro_f1", "mcc", "log_loss", "brier", "ece", "aurc", "bleu", "chrf", "rouge_l", "bertscore_f1",
        "consistency", "sufficiency", "consistency_masked", "simulated_sufficiency", "rq", "las", "swap_change",
        "conformal_coverage",
    }  # fmt: skip
    # The toy's labels are not ordinal, and nobody gave costs or findings: each is told with its reason.
    told = "\n".join(results.notes)
    for reason in ("not declared ordinal", "no cost matrix was given", "cited_true"):
        assert reason in told
    assert results.calibration is not None and set(results.calibration.before) >= {"log_loss", "brier", "ece"}
    probes = read_probes(out / "probes.jsonl")
    assert len(probes) == 12 and sum(probe.swapped_rationale is not None for probe in probes) <= 5
    assert set(load_statistics(out / "statistics.npz")[0]) == computed
    assert "ci:bca-bootstrap-95" in results.signature and "bertscore_f1:[encoder:" in results.signature
    # The same predictions, measured again without the model, give the same numbers.
    again = tmp_path / "again"
    file = out / "predictions.jsonl"
    ended = forks.run("evaluate", "--predictions", file, dataset.path, "--out", again, *QUICK, *options[:4])
    assert ended.returncode == 0, ended.stderr
    for name, value in read_results(again).metrics.items():
        if value.value is not None:
            assert value.value == pytest.approx(results.metrics[name].value), name
    assert read_results(again).metrics["selective_error"].value is None


def test_anybodys_predictions_calibrated_by_their_validation(
    forks: Forks, dataset: DatasetFolder, tmp_path: Path
) -> None:
    for split in ("validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(predicted(dataset, split))
    arguments = ("--predictions", tmp_path / "test.jsonl", dataset.path, *QUICK)
    raw, calibrated = tmp_path / "raw", tmp_path / "calibrated"
    assert forks.run("evaluate", *arguments, "--out", raw, "--system", "somebody's").returncode == 0
    assert read_results(raw).system == "somebody's" and read_results(raw).calibration is None
    ended = forks.run(
        "evaluate", *arguments, "--out", calibrated, "--validation-predictions", tmp_path / "validation.jsonl"
    )
    assert ended.returncode == 0, ended.stderr
    found = read_results(calibrated)
    # Twelve validation records cannot show that a threshold keeps one error in ten.
    assert found.calibration is not None and found.calibration.threshold is None
    assert found.metrics["deferred"].value == 1
    assert any("all cases are deferred, so no decision is left to be wrong" in note for note in found.notes)
    assert found.calibration.temperature == pytest.approx(1 / 20)
    assert found.calibration.before["brier"] == pytest.approx(0.2**2 + 2 * 0.1**2)
    assert found.metrics["brier"].value == pytest.approx(0, abs=1e-6)
    ended = forks.run(
        "evaluate", *arguments, "--out", calibrated, "--validation-predictions", tmp_path / "validation.jsonl",
        "--error-rate", 1, "--force",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = read_results(calibrated)
    assert found.metrics["selective_error"].value == 0 and found.metrics["deferred"].value == 0


def test_costs_slices_and_error_rates(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(predicted(dataset, "test"))
    names = ",".join(LABELS.values)
    rows = "\n".join(
        f"{name}," + ",".join("0" if name == other else "5" for other in LABELS.values) for name in LABELS.values
    )
    (tmp_path / "costs.csv").write_text(f"gold,{names}\n{rows}\n")
    out = tmp_path / "out"
    ended = forks.run(
        "evaluate", "--predictions", tmp_path / "p.jsonl", dataset.path, "--out", out, *QUICK,
        "--costs", tmp_path / "costs.csv", "--slice", "length:5,9",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert read_results(out).metrics["expected_cost"].value == 0
    assert sum(own.n for own in read_results(out).slices["length"]) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{data}"], "1 paths were given"),
        (["{bundle}", "{data}", "--predictions", "{p}"], "expected DATASET and --predictions FILE"),
        (["{bundle}", "{data}", "--system", "x"], "goes with --predictions"),
        (["{data}", "--predictions", "{p}", "--slice", "ward"], "no record has a column 'ward' to slice by"),
        (["{data}", "--predictions", "{p}", "--slice", "length:x"], "no record has a column 'length:x'"),
        (["{data}", "--predictions", "{p}", "--interval", "normal"], "'normal'"),
        (["{data}", "--predictions", "{p}", "--costs", "{none}"], "expected a CSV of costs"),
        (["{data}", "--predictions", "{none}"], "expected a predictions.jsonl"),
        (["{data}", "--predictions", "{p}", "--split", "dev"], "has no split 'dev'"),
        (["{data}", "--predictions", "{p}", "--split", "validation"], "do not match the 12 records"),
        (["{data}", "--predictions", "{outside}"], "has the label 'go home', which is not in its set"),
        (
            ["{data}", "--predictions", "{p}", "--rationale-source", "nurse"],
            "has no rationales of source 'nurse'",
        ),
        (["{data}", "--predictions", "{p}", "--validation-predictions", "{p}"], "do not match the 12 records"),
        (["{data}", "--predictions", "{p}", "--bertscore-baseline", "{p}"], "baseline"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_nothing(
    arguments: list[str], message: str, forks: Forks, bundle: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(predicted(dataset, "test"))
    (tmp_path / "outside.jsonl").write_text(predicted(dataset, "test", predicted_label="go home"))
    places = {
        "data": dataset.path, "bundle": bundle, "p": tmp_path / "p.jsonl", "outside": tmp_path / "outside.jsonl",
        "none": tmp_path / "none",
    }  # fmt: skip
    out = tmp_path / "out"
    ended = forks.run("evaluate", *(text.format(**places) for text in arguments), "--out", out, *QUICK)
    assert ended.returncode == 2 and message in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr and not out.exists()


@pytest.mark.parametrize("option", ["--costs", "--bertscore-baseline"])
def test_what_settings_name_is_read_before_anything_is_decided(
    option: str, forks: Forks, bundle: Path, dataset: DatasetFolder, tmp_path: Path
) -> None:
    ended = forks.run("evaluate", bundle, dataset.path, "--out", tmp_path / "out", option, tmp_path / "none")
    assert ended.returncode == 2 and str(tmp_path / "none") in ended.stderr
    assert "asking" not in ended.stderr and "probing" not in ended.stderr and not (tmp_path / "out").exists()


def test_a_missing_encoder_is_told_and_the_rest_goes_on(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(predicted(dataset, "test"))
    arguments = ("--predictions", tmp_path / "p.jsonl", dataset.path, "--out", tmp_path / "out", *QUICK)
    ended = forks.run("evaluate", *arguments, "--bertscore-encoder", tmp_path / "nowhere")
    assert ended.returncode == 0, ended.stderr
    results = read_results(tmp_path / "out")
    assert results.metrics["bertscore_f1"].value is None and results.metrics["bleu"].value is not None
    assert any(note.startswith("bertscore_f1: not computed") for note in results.notes)
    assert "accuracy" in ended.stdout


def test_no_answers_and_no_rationales(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    ids = [record.id for record in dataset.split("test")]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"id": i, "predicted_label": ""}) + "\n" for i in ids))
    ended = forks.run(
        "evaluate", "--predictions", tmp_path / "p.jsonl", dataset.path, "--out", tmp_path / "out", *QUICK
    )
    assert ended.returncode == 0, ended.stderr
    results = read_results(tmp_path / "out")
    assert results.metrics["accuracy"].value == results.metrics["macro_f1"].value == 0
    assert sum(results.unanswered) == 12 and results.metrics["bleu"].value is None

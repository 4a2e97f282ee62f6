"""Training from a configuration to a bundle: the draws, the choice of checkpoint, every method and architecture."""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, save
from toy import CUES, LABELS, record, run, settings, write_contrasted, write_toy

from reason2decide import console
from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import BaseModelError, ConfigError, DataError, OutputError, UserError
from reason2decide.method.methods import METHODS
from reason2decide.method.schedules import takes_predicted_label
from reason2decide.model.bundle import load_bundle, read_training_log
from reason2decide.model.manifest import read_manifest
from reason2decide.model.predictor import Predictor
from reason2decide.training.config_file import parse_config
from reason2decide.training.features import Example
from reason2decide.training.shown_labels import LabelChooser
from reason2decide.training.stage_plan import drawn_records
from reason2decide.training.validation import decision_and_reason


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_bundle_that_decides(method: str, tmp_path: Path) -> None:
    dataset = write_contrasted(tmp_path / "data")
    bundle = run(dataset, tmp_path / "run", method=method)
    predictor = Predictor.load(bundle)
    records = dataset.split("test")
    predictions = list(predictor.predict(records))
    assert [prediction.id for prediction in predictions] == [record.id for record in records]
    for prediction in predictions:
        assert prediction.probabilities is not None
        assert tuple(prediction.probabilities) == LABELS.values
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.predicted_label == max(prediction.probabilities, key=prediction.probabilities.__getitem__)
        assert (prediction.rationale is None) == (method == "sft")
    rows = read_training_log(bundle)
    assert [row["stage"] for row in rows if row["event"] == "validation"][-1] == METHODS[method].stages[-1].name
    assert all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES[:-1])  # an encoder made into one has a test of its own
def test_every_architecture_trains_from_a_folder(architecture: str, dataset: DatasetFolder, tmp_path: Path) -> None:
    base = save(architecture, tmp_path / "base")
    bundle = run(dataset, tmp_path / "run", base=str(base))
    assert load_bundle(bundle).model.config.model_type == json.loads((base / "config.json").read_text())["model_type"]
    assert len(list(Predictor.load(bundle).predict(dataset.split("test")))) == 12


def test_a_cue_is_learnt(dataset: DatasetFolder, tmp_path: Path) -> None:
    """Not only does it run: on a task of one cue the labels become right and the rationales say the cue."""
    steps = {"stage1": 150, "stage2": 150}
    bundle = run(dataset, tmp_path / "run", steps=steps, learning_rate=3e-3, dropout=0.0, evaluate_every=50)
    records = dataset.split("test")
    predictions = list(Predictor.load(bundle).predict(records))
    right = sum(p.predicted_label == r.label for p, r in zip(predictions, records, strict=True))
    said = sum(CUES[p.predicted_label] in (p.rationale or "") for p in predictions)
    assert right >= 11 and said >= 11


def test_a_long_validation_says_how_far_it_is(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_EVERY_SECONDS", 0.0)
    run(dataset, tmp_path / "run", method="sft", steps=2)
    said = capsys.readouterr().err
    assert re.search(r"sft: 2/2 steps, [\d.]+/s, 0 s left · validating, 0%\n", said)
    assert "calibrating on validation: 12/12 records" in said


def test_same_seed_same_weights(dataset: DatasetFolder, tmp_path: Path) -> None:
    models = [load_bundle(run(dataset, tmp_path / name)).model.state_dict() for name in ("a", "b")]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())
    other = load_bundle(run(dataset, tmp_path / "c", seed=1)).model.state_dict()
    assert any(not torch.equal(value, other[key]) for key, value in models[0].items())


def conditioning_labels(
    dataset: DatasetFolder, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> dict[tuple[int, str], bool]:
    """Which records were drawn at which step, as the trainer itself decides it while it trains."""
    seen: dict[tuple[int, str], bool] = {}
    original = LabelChooser.ask

    def spy(self: LabelChooser, examples: list[Example], step: int, *rest: Any) -> Any:
        shown = original(self, examples, step, *rest)()
        seen.update({(step, e.id): row in shown.drawn for row, e in enumerate(examples) if len(e.rationale)})
        return lambda: shown

    monkeypatch.setattr(LabelChooser, "ask", spy)
    run(dataset, out, method="r2d-no-stage1", steps=6, warmup_share=0.0, ramp_share=0.5, **changes)
    return seen


def test_draws_do_not_depend_on_batch_size_or_order(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two layouts meet the same record at the same step, it is drawn in both or in neither."""
    whole = conditioning_labels(dataset, tmp_path / "a", monkeypatch, batch_size=24)
    split = conditioning_labels(dataset, tmp_path / "b", monkeypatch, batch_size=6, gradient_accumulation=4)
    common = whole.keys() & split.keys()
    assert len(common) > 30 and any(whole.values()) and not all(whole.values())
    assert {key: whole[key] for key in common} == {key: split[key] for key in common}
    # And both are the pure function of (seed, step, record id): pi is 0, 1/3, 2/3, then 0.9.
    pi = [0.0, 1 / 3, 2 / 3, 0.9, 0.9, 0.9]
    assert whole == {(step, id): takes_predicted_label(pi[step], 0, step, id) for step, id in whole}


def test_few_rationales_are_enough_for_stage1(tmp_path: Path) -> None:
    """Batches of two of which most would hold no rationale: Stage 1 sees the records that have one, and only those."""
    few = [replace(record(i), rationales={"llm": "so it is"} if i % 9 == 0 else {}) for i in range(36)]
    info = DatasetInfo("few", "triage", LABELS, ("llm",))
    others = [replace(one, id=f"v{one.id}") for one in few]
    dataset = write_dataset(tmp_path / "few", info, {"train": few, "validation": others})
    bundle = run(dataset, tmp_path / "run", batch_size=2, steps=6)
    rows = [row for row in read_training_log(bundle) if row["event"] == "train" and row["stage"] == "stage1"]
    assert len(rows) == 6 and all(row["rationale_loss"] > 0 for row in rows)


def test_the_longest_record_may_have_no_rationale(tmp_path: Path) -> None:
    """The memory of a step is measured on it; L_post has nothing to contrast there."""
    toy = write_toy(tmp_path / "toy")
    splits = {
        name: [
            own if own.rationales else replace(own, text=f"{own.text} and a cough for a very long time")
            for own in toy.split(name)
        ]
        for name in toy.hashes
    }
    dataset = write_dataset(tmp_path / "longer", toy.info, splits)
    assert run(dataset, tmp_path / "run", method="r2d-posterior").is_dir()


def test_a_draw_without_any_rationale_is_refused(dataset: DatasetFolder, tmp_path: Path) -> None:
    seed = next(seed for seed in range(99) if all(not record(int(i)).rationales for i in drawn_records(48, 2, seed)))
    with pytest.raises(ConfigError, match="none of the train_records = 2 records drawn has a rationale for stage1"):
        run(dataset, tmp_path / "run", train_records=2, seed=seed)


def test_accumulation_is_exact(dataset: DatasetFolder, tmp_path: Path) -> None:
    """One batch of 24 and four of 6 take the same steps: each loss is a mean over the step's tokens."""
    losses, logged = [], []
    for name, size, accumulation in (("a", 24, 1), ("b", 6, 4)):
        bundle = run(dataset, tmp_path / name, batch_size=size, gradient_accumulation=accumulation, dropout=0.0)
        rows = [row for row in read_training_log(bundle) if row["event"] == "validation"]
        losses.append([row["loss"] for row in rows])
        logged.append([row for row in read_training_log(bundle) if row["event"] == "train"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    for whole, split in zip(*logged, strict=True):
        for key in ("loss", "rationale_loss", *(["label_loss"] if whole["stage"] == "stage2" else [])):
            assert whole[key] == pytest.approx(split[key], rel=1e-3), (key, whole, split)


def test_best_checkpoint_is_from_after_the_ramp(dataset: DatasetFolder, tmp_path: Path) -> None:
    bundle = run(dataset, tmp_path / "run", steps=20, evaluate_every=1, patience=2)
    training = read_manifest(bundle).training
    # Warm-up ends at step 1 (5 % of 20), the ramp at step 13 (60 % more); patience 2 is counted from there.
    assert training["stage2"]["best_step"] >= 13
    assert training["stage2"]["steps"] >= 15
    log = [row for row in read_training_log(bundle) if row["event"] == "validation" and row["stage"] == "stage2"]
    after = {row["step"]: row["macro_f1"] for row in log if row["step"] >= 13}
    assert training["stage2"]["best_value"] == max(after.values())
    stage1 = [row for row in read_training_log(bundle) if row["event"] == "validation" and row["stage"] == "stage1"]
    assert training["stage1"]["best_value"] == min(row["rationale_loss"] for row in stage1)


def test_run_folder_holds_what_repeats_it(dataset: DatasetFolder, tmp_path: Path) -> None:
    bundle = run(dataset, tmp_path / "run", steps=2)
    config = parse_config(tomllib.loads((tmp_path / "run" / "config.toml").read_text()), "again")
    assert config == parse_config(settings(dataset, steps=2), "test")
    started = json.loads((tmp_path / "run" / "run.json").read_text())
    assert started["dataset"]["sha256"] == dict(dataset.hashes)
    assert {"torch", "transformers", "reason2decide"} <= set(started["versions"])
    assert read_manifest(bundle).dataset["sha256"] == dict(dataset.hashes)
    with pytest.raises(OutputError, match="already exists"):
        run(dataset, tmp_path / "run", steps=2)


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"rationale_source": "nurse"}, DataError, "has no rationales of source 'nurse'"),
        ({"base": "no/such/folder"}, BaseModelError, "not a folder"),
        ({"base": "nobody/nothing"}, BaseModelError, "neither a folder here nor reachable"),
        ({"dataset": "no-dataset"}, DataError, "not a folder"),
        ({"lengths": {"label": 2}}, DataError, "set lengths.label = 4"),
    ],
)
def test_mistakes_leave_nothing_behind(
    change: dict[str, Any], error: type[UserError], expected: str, dataset: DatasetFolder, tmp_path: Path
) -> None:
    with pytest.raises(error, match=expected):
        run(dataset, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_own_choices_of_each_record(tmp_path: Path) -> None:
    """Open label sets: a record is decided between its own choices, as many as it has."""
    records = [
        Record(f"q{i}", f"Which is it? {i}", f"choice {i}", {"llm": "so it is"}, (f"choice {i}", "other", f"third {i}"))
        for i in range(12)
    ]
    dataset = write_dataset(
        tmp_path / "open",
        DatasetInfo("open", "choice", LabelSet(), ("llm",)),
        {"train": records[:8], "validation": records[8:]},
    )
    bundle = run(dataset, tmp_path / "run")
    asked = [Record("x", "Which?", None, {}, ("a", "b")), Record("y", "Which?", None, {}, ("c", "d", "e", "f"))]
    found = list(Predictor.load(bundle).predict(asked))
    assert [len(prediction.probabilities or {}) for prediction in found] == [2, 4]
    assert found[1].predicted_label in "cdef"
    with pytest.raises(DataError, match="no choices"):
        list(Predictor.load(bundle).predict([Record("z", "Which?")]))


def test_decisions_and_reasons_together_by_hand() -> None:
    """sqrt(0.64 · e^-0.5); without reasons, the decisions alone; without macro-F1, accuracy in its place."""
    metrics = {"macro_f1": 0.64, "accuracy": 0.9, "rationale_loss": 0.5}
    assert decision_and_reason(metrics) == pytest.approx(0.8 * math.exp(-0.25))
    assert decision_and_reason({"macro_f1": 0.64, "accuracy": 0.9}) == 0.64
    assert decision_and_reason({"accuracy": 0.81, "rationale_loss": 0.0}) == pytest.approx(0.9)


def test_the_checkpoint_is_picked_by_what_the_stage_says(dataset: DatasetFolder, tmp_path: Path) -> None:
    for selection in ("decision_and_reason", "macro_f1", "rationale_loss"):
        out = tmp_path / selection
        bundle = run(dataset, out, method="dss", steps=12, evaluate_every=1, patience=50, selection=selection)
        rows = [json.loads(line) for line in (out / "log.jsonl").open()]
        values = {row["step"]: row[selection] for row in rows if row["event"] == "validation" and row["step"] >= 7}
        best = (min if selection == "rationale_loss" else max)(values, key=lambda step: values[step])
        chosen = read_manifest(bundle).training["dss"]
        assert (chosen["selection"], chosen["best_step"]) == (selection, best)
        assert chosen["best_value"] == pytest.approx(values[best])

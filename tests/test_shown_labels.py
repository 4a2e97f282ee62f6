"""Which label is shown: windows of confidence by hand, and what adaptive sampling shows in real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from forks import Forks
from toy import LABELS, run, settings

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.method.methods import METHODS
from reason2decide.method.schedules import confidence_gate, gate_threshold, takes_predicted_label
from reason2decide.model.label_scores import leading_labels
from reason2decide.training.features import Example
from reason2decide.training.shown_labels import BIN_CENTRES, BINS, ConfidenceWindow, LabelChooser, rival_of


def histogram(**counts: int) -> Any:
    """Confidences as counts by bin, `at_70=3` for three of 0.70 to 0.71."""
    bins = np.zeros(BINS)
    for name, count in counts.items():
        bins[int(name.removeprefix("at_"))] = count
    return bins


def test_leaders_by_hand() -> None:
    """softmax of 0, ln 3, ln 2 is 1/6, 1/2, 1/3; of equals the first; a single candidate is its own runner-up."""
    found = leading_labels([torch.tensor([1.0, 3.0, 2.0]).log(), torch.zeros(2), torch.zeros(1)])()
    assert [(own.best, own.second) for own in found] == [(1, 2), (0, 1), (0, 0)]
    assert [own.confidence for own in found] == pytest.approx([0.5, 0.5, 1.0])


def test_the_rival_is_the_wrong_label_or_the_second_choice() -> None:
    assert rival_of("home", "home", "doctor") == "doctor"
    assert rival_of("home", "doctor", "home") == "doctor"
    assert rival_of("home", "doctor", "clinic") == "doctor"


def test_the_gate_is_set_by_the_last_whole_window() -> None:
    """60 steps have windows of two steps; the second window's gate comes from the first alone."""
    window = ConfidenceWindow(60)
    assert window.length == 2 and [step for step in range(5) if window.begins(step)] == [0, 2, 4]
    assert window.share_of(0, 0.5) is None and window.share_of(2, 0.5) is None
    window.add(0, histogram(at_20=1))
    window.add(1, histogram(at_80=1))
    assert window.share_of(1, 0.5) is None  # its own window has not ended
    window.add(2, histogram(at_99=100))
    share = window.share_of(3, 0.5)
    threshold = gate_threshold(0.5, BIN_CENTRES, histogram(at_20=1, at_80=1))
    assert share is not None and threshold == pytest.approx(0.505)
    assert [share(c) for c in (0.2, 0.8)] == pytest.approx([float(confidence_gate(c, 0.505)) for c in (0.2, 0.8)])
    assert (share(0.205) + share(0.805)) / 2 == pytest.approx(0.5)
    kept = ConfidenceWindow(60)
    kept.restore(json.loads(json.dumps(window.to_json())))
    again = kept.share_of(3, 0.5)
    assert again is not None and again(0.3) == share(0.3)
    window.add(4, histogram(at_10=1))
    assert set(window.windows) == {1, 2}


def test_confident_predictions_are_shown_more_often_at_the_intended_share(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real run: each record is shown y^ exactly if its draw is under the gate of the last window."""
    seen: list[tuple[int, str, bool, float | None]] = []
    original = LabelChooser.ask

    def spy(self: LabelChooser, examples: list[Example], step: int, *rest: Any) -> Any:
        shown = original(self, examples, step, *rest)()
        assert self.window is not None
        gate = self.window.share_of(step, self.sampling_probability(step))
        for row, example in enumerate(examples):
            if len(example.rationale):
                seen.append((step, example.id, row in shown.drawn, None if gate is None else gate(0.5)))
        assert shown.confidences.sum() == sum(len(e.rationale) > 0 for e in examples) or gate is None
        return lambda: shown

    monkeypatch.setattr(LabelChooser, "ask", spy)
    run(
        dataset,
        tmp_path / "run",
        method="r2d-no-stage1",
        adaptive_sampling=True,
        steps=60,
        batch_size=24,
        warmup_share=0.0,
        ramp_share=0.0,
        sampling_cap=0.6,
    )
    first = [(step, id, drawn) for step, id, drawn, gate in seen if gate is None]
    assert {step for step, *_ in first} == {0, 1}  # before a window has ended: plain scheduled sampling
    assert all(drawn == takes_predicted_label(0.6, 0, step, id) for step, id, drawn in first)
    share = np.mean([drawn for _, _, drawn, gate in seen if gate is not None])
    assert abs(share - 0.6) < 0.06  # of about 1,000 draws, though confidences change within a window


def test_an_adaptive_run_is_resumed_to_the_bit(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    """From a checkpoint in the middle of a window, whose histogram it keeps; dropout and the cycle's noise are on."""
    config = tmp_path / "train.toml"
    changes = {"method": "r2d-c", "steps": {"stage1": 2, "stage2": 40}, "checkpoint_every": 7, "keep_checkpoints": 9}
    config.write_text(tomli_w.dumps(settings(dataset, ramp_share=0.1, **changes)))
    assert forks.run("train", config, "--out", tmp_path / "run").returncode == 0
    whole = (tmp_path / "run" / "bundle" / "model" / "model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert all(
        row["cycle_loss"] > 0
        for row in rows
        if row["event"] == "train" and row["step"] > 10 and row["stage"] == "stage2"
    )
    resumed = forks.run("train", config, "--out", tmp_path / "run", "--resume", tmp_path / "run/stage2/checkpoint-21")
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "run" / "bundle" / "model" / "model.safetensors").read_bytes() == whole


def test_only_stages_that_show_a_label_ask_for_labels() -> None:
    asking = {name for name, method in METHODS.items() if method.stages[-1].needs_labels_shown}
    assert asking == set(METHODS) - {"sft", "dss", "r2d-no-sampling"}
    assert len(LABELS.values) == 3

"""A step learns from its whole batch however much of it fits into memory at a time; validation keeps to its share."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from toy import run, settings

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.model.bundle import load_bundle, read_training_log
from reason2decide.training import memory
from reason2decide.training.config_file import parse_config
from reason2decide.training.run import train
from reason2decide.training.stage_plan import VALIDATION_SHARE

PLAIN = {"steps": 6, "dropout": 0.0, "batch_size": 16}


def test_a_cut_batch_takes_the_same_step(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(dataset, tmp_path / "whole", **PLAIN)
    assert "computed at a time" not in capsys.readouterr().err
    monkeypatch.setattr(memory, "CPU_PASS_TOKENS", 150)
    cut = run(dataset, tmp_path / "cut", **PLAIN)
    told = re.search(
        r"batches of 16 records, of which (\d+) of the longest are computed at a time", capsys.readouterr().err
    )
    assert told is not None and 1 < int(told[1]) < 8
    rows = [[row for row in read_training_log(bundle) if row["event"] == "train"] for bundle in (whole, cut)]
    for one, other in zip(*rows, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert other["drawn_share"] == one["drawn_share"] if "drawn_share" in one else True
    after, before = load_bundle(cut).model.state_dict(), load_bundle(whole).model.state_dict()
    for name, weight in before.items():
        # Where a gradient is almost 0, Adam's first steps depend on its sign, and so on the rounding.
        assert (torch.abs(after[name] - weight) > 1e-4).float().mean() < 2e-3, name


def test_the_same_device_takes_the_same_passes(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise, with dropout: the cut follows from the device and the model, not from what is free at the moment."""
    monkeypatch.setattr(memory, "CPU_PASS_TOKENS", 150)
    models = [load_bundle(run(dataset, tmp_path / name, steps=3)).model.state_dict() for name in ("a", "b")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", (str(limit), str(tmp_path / "absent")))
    whole = memory.total_bytes(torch.device("cpu"))
    limit.write_text("max\n")
    assert memory.total_bytes(torch.device("cpu")) == whole
    limit.write_text(f"{2**30}\n")
    assert memory.total_bytes(torch.device("cpu")) == 2**30


def test_a_small_device_gets_small_passes(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "total_bytes", lambda device: 50 * 2**20)
    run(dataset, tmp_path / "run", steps=1, batch_size=48)
    told = capsys.readouterr().err
    assert "computed at a time" in told and "that is more than the 0 GiB there are" in told


def test_validation_takes_a_tenth_of_the_time_unless_configured(dataset: DatasetFolder, tmp_path: Path) -> None:
    """12 records of validation after steps of 8, each worth three passes: every fifth step, not every second."""
    plain = settings(dataset, method="sft", steps=40)
    del plain["evaluate_every"]
    bundle = train(parse_config(plain, "test"), tmp_path / "run")
    found = [row["step"] for row in read_training_log(bundle) if row["event"] == "validation"]
    expected = math.ceil(12 / (VALIDATION_SHARE * 3 * 8))
    assert expected == 5 and len(found) > 4 and found == list(range(5, found[-1] + 1, 5))

"""Several processes, several layouts: the same training, through the real program and the real launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from forks import Forks, Group
from safetensors.numpy import load_file, save_file
from tiny_models import save
from toy import settings

from reason2decide.data.dataset_folder import DatasetFolder

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(launcher: list[str], *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, "-m", "reason2decide", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def train(launcher: list[str], *arguments: object) -> str:
    process = start(launcher, *arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def rows(run: Path, event: str) -> list[dict[str, float]]:
    return [row for row in map(json.loads, (run / "log.jsonl").open()) if row["event"] == event]


@pytest.mark.parametrize("method", ["sft", "dss", "r2d", "r2d-posterior"])
def test_layouts_and_processes_take_the_same_steps(
    method: str, group: Group, dataset: DatasetFolder, tmp_path: Path
) -> None:
    """1 x 8, 8 x 1, 2 x 4, and two processes x 4: one trajectory, to float32 rounding."""
    layouts = {"8x1": (8, 1), "1x8": (1, 8), "2x4": (2, 4), "processes": (4, 1)}
    for name, (size, accumulation) in layouts.items():
        config = tmp_path / f"{name}.toml"
        layout = {"batch_size": size, "gradient_accumulation": accumulation}
        changes = {"method": method, "steps": 6, "dropout": 0.0, "evaluate_every": 3, "ramp_share": 0.3}
        changes |= {"learning_rate": 1e-4}
        config.write_text(tomli_w.dumps({**settings(dataset), **changes, **layout}))
        runner = group.run if name == "processes" else group.members[0].run
        ended = runner("train", config, "--out", tmp_path / name)
        for one in ended if isinstance(ended, list) else [ended]:
            assert one.returncode == 0, one.stderr
    expected = rows(tmp_path / "8x1", "train")
    assert len(expected) == 6 * (2 if method.startswith("r2d") else 1)
    compared = {
        "label_loss",
        "rationale_loss",
        "posterior_loss",
        "loss",
        "grad_norm",
        "drawn_share",
        "drawn_wrong_share",
        "alpha",
    }
    for name in layouts:
        found = rows(tmp_path / name, "train")
        assert [(row["stage"], row["step"]) for row in found] == [(row["stage"], row["step"]) for row in expected]
        for row, other in zip(found, expected, strict=True):
            # Adam divides by the gradient's size, so that rounding grows from step to step.
            rounding = 1e-5 if row["step"] == 1 and row["stage"] != "stage2" else 5e-4
            for key in compared & other.keys():
                assert row[key] == pytest.approx(other[key], rel=rounding, abs=1e-6), (name, key, row["step"])
        for row, other in zip(rows(tmp_path / name, "validation"), rows(tmp_path / "8x1", "validation"), strict=True):
            numbers = [{key: value for key, value in one.items() if isinstance(value, float)} for one in (row, other)]
            assert numbers[0] == pytest.approx(numbers[1], rel=5e-4) and "loss" in numbers[0]
    if method.startswith("r2d"):
        assert any(row["drawn_share"] > 0 for row in expected if row["stage"] == "stage2")


def weights(run: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = load_file(run / "bundle" / "model" / "model.safetensors")
    return found


def test_sharded_weights_give_the_bundle_of_one_process(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    changes = {"steps": 6, "dropout": 0.0, "evaluate_every": 3, "ramp_share": 0.3, "learning_rate": 1e-4}
    config.write_text(tomli_w.dumps(settings(dataset, **changes)))
    assert forks.run("train", config, "--out", tmp_path / "one").returncode == 0
    train(TORCHRUN, config, "--out", tmp_path / "two", "--set", "batch_size=4", "--set", "fsdp=true")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=2e-5, err_msg=name)
    assert rows(tmp_path / "two", "train")[-1]["loss"] == pytest.approx(rows(tmp_path / "one", "train")[-1]["loss"])


def test_a_run_of_two_processes_is_resumed_exactly(group: Group, dataset: DatasetFolder, tmp_path: Path) -> None:
    """Stopped by SIGTERM to both, with sharded weights and dropout on, and gone on with."""
    config = tmp_path / "train.toml"
    changes = {"steps": {"stage1": 24, "stage2": 10}, "checkpoint_every": 4, "evaluate_every": 5, "fsdp": True}
    config.write_text(tomli_w.dumps(settings(dataset, batch_size=4, **changes)))
    assert all(one.returncode == 0 for one in group.run("train", config, "--out", tmp_path / "whole"))
    run = tmp_path / "run"
    stopped = group.run("train", config, "--out", run, send=signal.SIGTERM, when=run / "stage1" / "checkpoint-4")
    assert [one.returncode for one in stopped] == [143, 143], stopped
    assert "--resume auto" in stopped[0].stderr and not (run / "bundle").exists()
    resumed = group.run("train", config, "--out", run, "--resume", "auto")
    assert all(one.returncode == 0 for one in resumed) and "resuming from" in resumed[0].stderr
    expected, found = weights(tmp_path / "whole"), weights(run)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    one = group.members[0].run("train", config, "--out", tmp_path / "whole", "--resume", "auto")
    assert one.returncode == 2 and "processes was 2, now 1" in one.stderr


def test_a_process_that_dies_ends_the_run(dataset: DatasetFolder, tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(tomli_w.dumps(settings(dataset, steps=100_000, batch_size=4)))
    process = start(TORCHRUN, config, "--out", tmp_path / "run")
    while not list(tmp_path.glob("run/log.jsonl")):
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    killed = time.monotonic()
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert f"(pid: {children[-1]})" in errors and "SIGKILL" in errors


@pytest.mark.parametrize("kind", ["t5", "qwen3"])
def test_two_processes_train_a_base_sharded_or_not(
    kind: str, group: Group, dataset: DatasetFolder, tmp_path: Path
) -> None:
    """In one pass, in which tasks share what was read of a text: the same weights, to rounding."""
    found, base = [], save(kind, tmp_path / "base")
    for fsdp in (True, False):
        config, run = tmp_path / f"{fsdp}.toml", tmp_path / str(fsdp)
        own = {"base": str(base), "layout": "one-pass", "method": "r2d-posterior", "dropout": 0.0, "fsdp": fsdp}
        config.write_text(tomli_w.dumps(settings(dataset, **own, ramp_share=0.1)))
        ended = group.run("train", config, "--out", run)
        assert [one.returncode for one in ended] == [0, 0], ended[0].stderr + ended[1].stderr
        found.append(load_file(run / "bundle" / "model" / "model.safetensors"))
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], atol=1e-4)


def test_what_one_process_finds_wrong_with_a_base_all_say(group: Group, dataset: DatasetFolder, tmp_path: Path) -> None:
    """A base that is tried by the main process only: all end as for a user's mistake, none in a traceback."""
    base = save("qwen3", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = np.nan
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    (tmp_path / "c.toml").write_text(tomli_w.dumps(settings(dataset, base=str(base))))
    for one in group.run("train", tmp_path / "c.toml", "--out", tmp_path / "run"):
        assert one.returncode == 2 and "was tried before training" in one.stderr and "Traceback" not in one.stderr

"""Experiments: cells and families as data, and the runs of them through the real program."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from forks import Ended, Forks
from toy import settings

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.errors import ConfigError
from reason2decide.model.manifest import read_manifest
from reason2decide.workflows.cells import next_to_start
from reason2decide.workflows.experiment import load_experiment, parse_experiment

TRAINING: dict[str, Any] = {
    "method": "r2d",
    "base": "tiny",
    "dataset": "data",
    "rationale_source": "llm",
    "steps": {"stage1": 5, "stage2": 6, "sft": 7},
}


def experiment(grid: dict[str, Any], reference: Any, **training: Any) -> Any:
    content = {"name": "x", "reference": reference, "training": {**TRAINING, **training}, "grid": grid}
    return parse_experiment(content, "x.toml")


def test_the_product_of_the_axes() -> None:
    found = experiment({"method": ["sft", "r2d"], "seed": [0, 1]}, {"method": "sft"})
    assert [cell.name for cell in found.cells] == ["sft-seed-0", "r2d-seed-0", "sft-seed-1", "r2d-seed-1"]
    sft, r2d, _, second = (cell.config for cell in found.cells)
    # A table by stage names the stages of all methods; each takes its own.
    assert sft.of("steps", "sft") == 7 and sft.rationale_source == {}
    assert (r2d.of("steps", "stage1"), r2d.of("steps", "stage2"), second.seed) == (5, 6, 1)
    (family,) = found.families
    assert (family.name, family.reference) == ("", "sft")
    assert {name: len(cells) for name, cells in family.systems.items()} == {"sft": 2, "r2d": 2}


def test_others_are_compared_all_else_being_equal() -> None:
    grid = {"method": ["sft", "r2d"], "train_records": [10, 20]}
    found = experiment(grid, {"method": "sft"})
    assert [(own.name, own.reference, list(own.systems)) for own in found.families] == [
        ("n=10", "sft n=10", ["sft n=10", "r2d n=10"]),
        ("n=20", "sft n=20", ["sft n=20", "r2d n=20"]),
    ]
    assert [own.reference for own in experiment(grid, "r2d n=20").families] == ["r2d n=20"]


def test_cells_wait_for_a_stage_only_while_nobody_has_it() -> None:
    found = experiment({"method": ["r2d", "r2d-no-sampling", "r2d-c", "sft"]}, "sft")
    r2d, second, third, sft = found.cells
    assert next_to_start(found.cells, found.cells, [], []) == (r2d, None)
    assert next_to_start(found.cells, [second, third, sft], [r2d], []) == (sft, None)  # theirs is being trained
    assert next_to_start(found.cells, [second, third], [r2d, sft], []) is None
    assert next_to_start(found.cells, [second, third], [], [r2d, sft]) == (second, r2d)
    assert next_to_start(found.cells, [third], [second], [r2d, sft]) == (third, r2d)  # trained already


def test_sources_by_stage_have_names_of_one_word() -> None:
    sources = [{"stage1": "llm", "stage2": "llm"}, {"stage1": "llm", "stage2": "nurse"}]
    found = experiment({"rationale_source": sources}, {"rationale_source": sources[0]})
    assert [cell.system for cell in found.cells] == ["llm>llm", "llm>nurse"]
    assert found.families[0].reference == "llm>llm"


@pytest.mark.parametrize(
    ("grid", "reference", "message"),
    [
        ({"methods": ["sft"]}, "sft", "grid.methods is not an axis; did you mean 'method'"),
        ({"method": []}, "sft", "expected different values, at least one"),
        ({"seed": [1, 1]}, "1", "expected different values"),
        ({"method": ["sft", "r2d"]}, "ssft", "reference = 'ssft' is not one of the systems; choose one of"),
        ({"method": ["sft", "r2d"]}, {"method": "dss"}, "reference.method = 'dss' is not in grid.method"),
        ({"method": ["sft", "tfs"]}, "sft", "there is no method 'tfs'; choose one of r2d, sft"),
        ({"base": ["a/m", "b/m"]}, "m", "two cells are named 'm'"),
    ],
)
def test_mistakes_are_named(grid: dict[str, Any], reference: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(grid, reference)


def test_unknown_keys_and_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected an experiment in TOML"):
        load_experiment(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = [")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_experiment(tmp_path / "bad.toml")
    (tmp_path / "keys.toml").write_text('name = "x"\nreferense = "y"\n[evaluation]\nslice = ["a"]\n')
    with pytest.raises(ConfigError, match=r"reference: field required(.|\n)*no key 'slice'; did you mean 'slices'"):
        load_experiment(tmp_path / "keys.toml")


@pytest.mark.parametrize(
    "content",
    [
        "[[grid]]\nseed = [1]",
        "results = 5",
        "results = [5]",
        "[grid]\nbase = 3",
        "[[results]]\nname = 'a'\nfolders = [1]",
    ],
)
def test_tables_of_another_shape_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"  - (grid|results)"):
        load_experiment(tmp_path / "e.toml")


def test_a_primary_metric_that_is_none_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    ready = Path(__file__).resolve().parents[1] / "experiments" / "methods.toml"
    (tmp_path / "e.toml").write_text('primary = ["macro_f1", "macrof1"]\n' + ready.read_text("utf-8"))
    with pytest.raises(ConfigError, match="primary: 'macrof1' is not a metric; did you mean 'macro_f1'"):
        load_experiment(tmp_path / "e.toml")
    (tmp_path / "e.toml").write_text('primary = ["macro_f1"]\n' + ready.read_text("utf-8"))
    assert load_experiment(tmp_path / "e.toml").primary == ("macro_f1",)


def test_the_ready_experiments_are_experiments() -> None:
    folder = Path(__file__).resolve().parents[1] / "experiments"
    found = {file.stem: load_experiment(file) for file in folder.glob("*.toml")}
    assert {name: len(own.cells) for name, own in found.items()} == {
        "methods": 27,
        "one_pass": 6,
        "one_pass_esnli": 6,
        "ablations": 9,
        "commonsenseqa": 21,
        "esnli": 15,
        "follows": 35,
        "pretrained": 4,
        "rationale_sources": 9,
    }
    assert [family.name for family in found["methods"].families] == [f"flan-t5-{s}" for s in ("small", "base", "large")]


# ---- through the program


@pytest.fixture(scope="module")
def file(dataset: DatasetFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = settings(dataset, steps={"stage1": 3, "stage2": 3, "sft": 3})
    del training["method"]
    content = {
        "name": "toy",
        "reference": {"method": "r2d"},
        "training": training,
        "grid": {"method": ["r2d", "r2d-no-sampling"], "seed": [0, 1]},
        "evaluation": {"resamples": 50, "probed": 4, "slices": ["length"]},
    }
    path = tmp_path_factory.mktemp("experiment") / "toy.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def cells(out: Path) -> list[Path]:
    return sorted((out / "cells").iterdir())


@pytest.fixture(scope="module")
def done(forks: Forks, file: Path) -> tuple[Path, Ended]:
    """The whole experiment, run once."""
    out = file.parent / "out"
    ended = forks.run("compare", file, "--out", out, "--jobs", 2, "--resamples", 50)
    assert ended.returncode == 0, ended.stderr
    return out, ended


def test_an_experiment_from_nothing_to_its_report(done: tuple[Path, Ended]) -> None:
    out, ended = done
    assert {path.name for path in cells(out)} == {
        f"{method}-seed-{seed}" for method in ("r2d", "r2d-no-sampling") for seed in (0, 1)
    }
    for path in cells(out):
        assert (path / "run" / "bundle" / "manifest.json").is_file() and (path / "run" / "log.jsonl").is_file()
        assert (path / "results" / "report.html").is_file() and (path / "results" / "probes.jsonl").is_file()
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["reference"] == "r2d" and set(comparison["systems"]) == {"r2d", "r2d-no-sampling"}
    assert len(comparison["systems"]["r2d"]["macro_f1"]["seeds"]) == 2
    assert {own["system"] for own in comparison["differences"]} == {"r2d-no-sampling"}
    assert "r2d-no-sampling: " in ended.stdout and "(against r2d)" in ended.stdout and " ±" in ended.stdout
    assert "<html" in (out / "report.html").read_text()[:200] and list((out / "tables").glob("*.csv"))


def test_stage_1_is_shared_and_nothing_is_lost_by_it(done: tuple[Path, Ended], forks: Forks, tmp_path: Path) -> None:
    out, ended = done
    assert "r2d-no-sampling-seed-0: started, with Stage 1 of r2d-seed-0" in ended.stderr
    cell = out / "cells" / "r2d-no-sampling-seed-1"
    alone = forks.run("train", cell / "train.toml", "--out", tmp_path / "alone")
    assert alone.returncode == 0
    weights = "bundle/model/model.safetensors"
    assert (cell / "run" / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()
    ours, theirs = read_manifest(cell / "run" / "bundle"), read_manifest(tmp_path / "alone" / "bundle")
    assert ours.training == theirs.training


def test_what_is_done_is_not_done_again(done: tuple[Path, Ended], forks: Forks, file: Path) -> None:
    out, _ = done
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()}
    plan = forks.run("compare", file, "--out", out, "--dry-run")
    assert plan.returncode == 0 and plan.stdout.count("; done") == 4
    again = forks.run("compare", file, "--out", out, "--resamples", 50)
    assert again.returncode == 0 and "4 cells, 4 of them done" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()} == before
    changed = forks.run("compare", file, "--out", out, "--set", "training.learning_rate=0.5")
    assert changed.returncode == 2 and "differs from the configuration of this experiment" in changed.stderr
    more = forks.run("compare", file, "--out", out, "--dry-run", "--set", "grid.seed=[0, 1, 2]")
    assert more.stdout.count("; about ") == 2 and more.stdout.count("; done") == 4


def test_a_failed_cell_does_not_stop_the_others(forks: Forks, file: Path, tmp_path: Path) -> None:
    """A folder stands where one cell wants to write its run."""
    out = tmp_path / "out"
    broken = out / "cells" / "r2d-seed-0"
    (broken / "run").mkdir(parents=True)
    (broken / "run" / "notes.txt").write_text("not a run")
    grid = ["--set", 'grid={method = ["sft", "r2d", "r2d-no-sampling"], seed = [0]}', "--set", "reference.method=sft"]
    ended = forks.run("compare", file, "--out", out, "--resamples", 50, *grid)
    assert (
        ended.returncode == 1
        and "1 of 3 cells failed" in ended.stderr
        and "contains files but not a run" in ended.stderr
    )
    assert "Traceback" not in ended.stderr
    assert set(json.loads((out / "comparison.json").read_text())["systems"]) == {"sft", "r2d-no-sampling"}
    assert not (out / "cells" / "sft-seed-0" / "results" / "probes.jsonl").exists()  # it writes no reasons to probe
    (broken / "run" / "notes.txt").unlink()
    resumed = [*grid, "--set", "evaluation.probed=3"]
    refused = forks.run("compare", file, "--out", out, "--resamples", 50, *resumed)
    assert refused.returncode == 2 and "sft-seed-0 was evaluated with other settings" in refused.stderr
    for evaluated in (out / "cells").glob("*/results"):
        shutil.rmtree(evaluated)
    # A cell is evaluated as asked now, not as when it was begun.
    assert forks.run("compare", file, "--out", out, "--resamples", 50, *resumed).returncode == 0
    assert "|probed:3|" in json.loads((broken / "results" / "results.json").read_text())["signature"]
    assert set(json.loads((out / "comparison.json").read_text())["systems"]) == {"sft", "r2d", "r2d-no-sampling"}


def test_an_interrupted_experiment_saves_and_goes_on(file: Path, forks: Forks, tmp_path: Path) -> None:
    out, grid = tmp_path / "out", ["--set", 'grid={method = ["r2d", "sft"], seed = [0]}']
    long = [*grid, "--set", "training.steps={stage1=120, stage2=3, sft=3}", "--set", "training.checkpoint_every=20"]
    command = [sys.executable, "-m", "reason2decide", "compare", str(file), "--out", str(out), *long]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/r2d-seed-0/run/stage1/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "interrupted; saved stage1 at step" in (out / "cells/r2d-seed-0/log.txt").read_text()
    assert forks.run("compare", file, "--out", out, *long, "--resamples", 50).returncode == 0
    assert "resuming from" in (out / "cells/r2d-seed-0/log.txt").read_text()


def test_results_from_elsewhere_and_folders(done: tuple[Path, Ended], forks: Forks, tmp_path: Path) -> None:
    out, _ = done
    folders = [out / "cells" / name / "results" for name in ("r2d-seed-0", "r2d-no-sampling-seed-0")]
    ended = forks.run("compare", *folders, "--out", tmp_path / "pair", "--resamples", 50)
    assert ended.returncode == 0
    pair = json.loads((tmp_path / "pair" / "comparison.json").read_text())
    assert pair["reference"] == str(folders[0]) and pair["differences"][0]["p_mcnemar"] is not None
    for arguments, message in (
        ([folders[0]], "at least two systems"),
        ([*folders, "--dry-run"], "go with an experiment file"),
        ([folders[0], tmp_path], "has no results.json"),
        ([*folders, "--reference", "x"], "the reference 'x' is not one of the systems"),
    ):
        refused = forks.run("compare", *arguments, "--out", tmp_path / "no")
        assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr


def test_keys_by_method() -> None:
    """What differs for one method replaces the common key; a method that is not in the experiment is named."""
    content: dict[str, Any] = {
        "name": "x",
        "reference": "sft",
        "training": TRAINING,
        "grid": {"method": ["sft", "r2d"]},
        "by_method": {"r2d": {"batch_size": 4}},
    }
    found = parse_experiment(content, "x.toml")
    assert [cell.config.of("batch_size", cell.config.stages()[-1].name) for cell in found.cells] == [16, 4]
    content["by_method"] = {"dss": {"batch_size": 4}}
    with pytest.raises(ConfigError, match=r"by_method.dss: the experiment has no such method; it has \['sft', 'r2d'\]"):
        parse_experiment(content, "x.toml")

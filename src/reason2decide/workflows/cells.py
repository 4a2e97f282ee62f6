"""Runs an experiment cell by cell, each in its own processes, and compares the results.

    OUT/cells/CELL/train.toml, evaluation.toml   the configuration and evaluation settings of a cell
    OUT/cells/CELL/run/, results/               what `r2d train` and `r2d evaluate` wrote
    OUT/cells/CELL/log.txt                      what they printed
    OUT/comparison.json, report.html            the comparison; tables/, plots/ (a folder per family if several)

A cell with results is not run again, an interrupted one resumes from its newest checkpoint, and cells with the same
Stage 1 take it over from the first of them that has finished.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reason2decide.console import say, warn
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.errors import ConfigError, DataError, Interrupted, Reason2DecideError
from reason2decide.evaluation.comparison import Comparison, System, compare, load_system
from reason2decide.evaluation.results import RESULTS
from reason2decide.evaluation.settings import RESAMPLES, Settings
from reason2decide.files import new_file
from reason2decide.signals import StopSignals
from reason2decide.training.config_file import load_config
from reason2decide.workflows.compare import write_comparison
from reason2decide.workflows.experiment import Cell, Experiment, slug

POLL_SECONDS = 0.2
LAST_LINES = 5  # ours: lines shown of a failed cell's log


class CellsFailed(Reason2DecideError):
    """Some cells of an experiment failed; the others were compared."""


@dataclass
class _Running:
    """A running cell: its process, the commands that come after it, the steps it trains."""

    cell: Cell
    process: subprocess.Popen[bytes]
    commands: list[list[str]]
    steps: int
    started: float
    device: str | None


@dataclass
class _State:
    waiting: list[Cell]
    running: list[_Running] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def describe(experiment: Experiment, out: Path) -> str:
    """Describe what a run would do: its cells, which of them are done, and their time as far as it is known."""
    known = _seconds_by_base(experiment, out)
    lines, total, unknown = [], 0.0, 0
    for cell in experiment.cells:
        stages = ", ".join(
            f"{stage.name} {cell.config.of('steps', stage.name)} steps of "
            f"{cell.config.of('batch_size', stage.name) * cell.config.of('gradient_accumulation', stage.name)}"
            for stage in cell.config.stages()
        )
        leader = first_with_same_stage(experiment.cells, cell)
        shared = "" if leader is cell else f"; takes {cell.config.stages()[0].name} over from {leader.name}"
        if is_complete(out, cell):
            cost = "done"
        elif (per_step := known.get(cell.config.base_name)) is None:
            cost, unknown = "time unknown until a cell of this base is done", unknown + 1
        else:
            taken = cell.config.stages() if leader is cell else cell.config.stages()[1:]
            seconds = per_step * sum(cell.config.of("steps", stage.name) for stage in taken)
            cost, total = f"about {seconds / 60:.1f} minutes", total + seconds
        lines.append(f"{cell.name}: {stages}{shared}; {cost}")
    rest = f" and {unknown} cells of unknown time" if unknown else ""
    return "\n".join([*lines, f"{len(lines)} cells, at most about {total / 60:.1f} minutes to train{rest}"])


def _seconds_by_base(experiment: Experiment, out: Path) -> dict[str, float]:
    """Mean seconds per step of finished cells, by base."""
    sums: dict[str, list[float]] = {}
    for cell in experiment.cells:
        file = _folder(out, cell) / "seconds.json"
        if file.is_file():
            content = json.loads(file.read_text("utf-8"))
            totals = sums.setdefault(cell.config.base_name, [0.0, 0.0])
            totals[0] += content["seconds"]
            totals[1] += content["steps"]
    return {base: seconds / steps for base, (seconds, steps) in sums.items() if steps}


def run_experiment(experiment: Experiment, out: Path, *, jobs: int = 1, resamples: int = RESAMPLES) -> list[Comparison]:
    """Run every cell that is not done, then compare the systems of each family and write the comparison into `out`.

    Args:
        jobs: cells to run at the same time; with several devices in CUDA_VISIBLE_DEVICES they take these in turn.

    Raises:
        CellsFailed: some cells failed; the rest were compared, if possible.
        Interrupted: a signal asked to stop; running cells have saved.
        ConfigError: `out` contains cells of an experiment with another configuration.
    """
    for path in {cell.config.dataset for cell in experiment.cells}:
        DatasetFolder.open(path).verify()
    for cell in experiment.cells:
        _prepare(out, cell, experiment.evaluation)
    state = _State([cell for cell in experiment.cells if not is_complete(out, cell)])
    finished = len(experiment.cells) - len(state.waiting)
    say(f"{experiment.name}: {len(experiment.cells)} cells, {finished} of them done")
    with StopSignals() as signals:
        try:
            while state.waiting or state.running:
                _start_ready(experiment, out, state, jobs)
                time.sleep(POLL_SECONDS)
                _collect(out, state, jobs)
                if signals.received is not None:
                    raise Interrupted(signals.received, "running cells have saved; the same command resumes them")
        finally:
            _stop(state)
    comparisons = _compare(experiment, out, state, resamples)
    if state.failed:
        shown = "\n".join(f"{name}:\n{tail}" for name, tail in state.failed.items())
        raise CellsFailed(
            f"{len(state.failed)} of {len(experiment.cells)} cells failed; run the same command again to resume "
            f"them. Their logs are in {out / 'cells'}/CELL/log.txt and end in:\n{shown}"
        )
    return comparisons


def is_complete(out: Path, cell: Cell) -> bool:
    """Whether a cell has results."""
    return (_folder(out, cell) / "results" / RESULTS).is_file()


def first_with_same_stage(cells: Sequence[Cell], cell: Cell) -> Cell:
    """The first cell (perhaps `cell`) whose first stage equals that of `cell` and is followed by another stage."""
    if len(cell.config.stages()) < 2:
        return cell
    return next(other for other in cells if len(other.config.stages()) > 1 and _stage_key(other) == _stage_key(cell))


def _stage_key(cell: Cell) -> str:
    identity = cell.config.identity()
    first = cell.config.stages()[0].name
    return json.dumps([str(cell.config.dataset), identity["common"], identity["stages"][first]], sort_keys=True)


def _folder(out: Path, cell: Cell) -> Path:
    return out / "cells" / cell.name


def _prepare(out: Path, cell: Cell, settings: Settings) -> None:
    """Write a cell's evaluation settings and its configuration, which must not differ from one that is there."""
    file = _folder(out, cell) / "train.toml"
    if file.is_file() and load_config(file) != cell.config:
        raise ConfigError(
            f"{file} differs from the configuration of this experiment; give another --out, or remove that cell"
        )
    asked = file.with_name("evaluation.toml")
    if is_complete(out, cell) and asked.is_file() and asked.read_text("utf-8") != settings.to_toml():
        raise ConfigError(
            f"{cell.name} was evaluated with other settings than [evaluation] has now; to evaluate it again, remove "
            f"{_folder(out, cell) / 'results'} (and those of the other cells), or give another --out"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    for path, content in ((asked, settings.to_toml()), (file, cell.config.to_toml())):
        if not path.is_file() or path.read_text("utf-8") != content:
            with new_file(path, force=True) as partial:
                partial.write_text(content, "utf-8")


def _start_ready(experiment: Experiment, out: Path, state: _State, jobs: int) -> None:
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if jobs > 1 else []
    finished = [cell for cell in experiment.cells if is_complete(out, cell)]
    while len(state.running) < jobs:
        running = [own.cell for own in state.running]
        if (following := next_to_start(experiment.cells, state.waiting, running, finished)) is None:
            return
        cell, source = following
        state.waiting.remove(cell)
        taken = [running.device for running in state.running]
        device = min(filter(None, devices), key=taken.count, default=None)
        say(f"{cell.name}: started" + (f", with Stage 1 of {source.name}" if source else ""))
        first, *rest = _commands(experiment, out, cell, source)
        process = _start(out, cell, first, jobs, device)
        trained = cell.config.stages()[1 if source else 0 :]
        steps = sum(cell.config.of("steps", stage.name) for stage in trained)
        state.running.append(_Running(cell, process, rest, steps, time.monotonic(), device))


def next_to_start(
    cells: Sequence[Cell], waiting: Sequence[Cell], running: Sequence[Cell], finished: Sequence[Cell]
) -> tuple[Cell, Cell | None] | None:
    """The first waiting cell that can start, and the finished cell whose Stage 1 it takes over, if there is one.

    While another cell trains the same Stage 1, it is better to wait for it than to train it twice.
    """
    for cell in waiting:
        same = [other for other in cells if other is not cell and _same_first_stage(other, cell)]
        source = next((other for other in same if other in finished), None)
        if source is not None or not any(other in running for other in same):
            return cell, source
    return None


def _same_first_stage(one: Cell, other: Cell) -> bool:
    several = len(one.config.stages()) > 1 and len(other.config.stages()) > 1
    return several and _stage_key(one) == _stage_key(other)


def _commands(experiment: Experiment, out: Path, cell: Cell, source: Cell | None) -> list[list[str]]:
    folder = _folder(out, cell)
    train = ["train", str(folder / "train.toml"), "--out", str(folder / "run"), "--resume", "auto"]
    if source is not None:
        train += ["--first-stage-of", str(_folder(out, source) / "run")]
    measure = ["evaluate", str(folder / "run" / "bundle"), str(cell.config.dataset), "--out", str(folder / "results")]
    return [train, [*measure, "--settings", str(folder / "evaluation.toml")]]


def _start(out: Path, cell: Cell, command: Sequence[str], jobs: int, device: str | None) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if jobs > 1 and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with (_folder(out, cell) / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "reason2decide", *command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which lets the cells save
        )


def _collect(out: Path, state: _State, jobs: int) -> None:
    for running in list(state.running):
        code = running.process.poll()
        if code is None:
            continue
        folder = _folder(out, running.cell)
        if code == 0 and running.commands:
            seconds = {"seconds": time.monotonic() - running.started, "steps": running.steps}
            (folder / "seconds.json").write_text(json.dumps(seconds), "utf-8")
            running.process = _start(out, running.cell, running.commands.pop(0), jobs, running.device)
            continue
        state.running.remove(running)
        if code == 0:
            say(f"{running.cell.name}: done after {(time.monotonic() - running.started) / 60:.1f} minutes")
        else:
            warn(f"{running.cell.name}: failed with code {code}; the others continue")
            lines = (folder / "log.txt").read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
            state.failed[running.cell.name] = "\n".join(f"    {line}" for line in lines)


def _stop(state: _State) -> None:
    """Let running cells save and end; there are some only if this process was interrupted."""
    for running in state.running:
        running.process.send_signal(signal.SIGTERM)
    for running in state.running:
        running.process.wait()


def _compare(experiment: Experiment, out: Path, state: _State, resamples: int) -> list[Comparison]:
    """Compare each family, as far as its cells are complete."""
    others = [load_system(other.name, other.folders) for other in experiment.others]
    comparisons = []
    for family in experiment.families:
        systems: list[System] = []
        for name, cells in family.systems.items():
            folders = [_folder(out, cell) / "results" for cell in cells if is_complete(out, cell)]
            if folders:
                systems.append(load_system(name, folders))
        folder = out / slug(family.name) if family.name else out
        title = f"{experiment.name}: {family.name}" if family.name else experiment.name
        try:
            found = compare([*systems, *others], family.reference, primary=experiment.primary, resamples=resamples)
        except DataError:
            if not state.failed:
                raise
            continue  # too few cells are left; their failure is what is reported
        write_comparison(found, folder, title)
        comparisons.append(found)
    return comparisons

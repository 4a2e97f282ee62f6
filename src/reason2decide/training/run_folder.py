"""The folder of a run: its lock, the checkpoint to resume from, its description.

RUN/
  run.json                   versions, data hashes, when the run was started and resumed
  config.toml                the configuration, defaults included
  log.jsonl                  every step's losses, schedules and speed, and every validation
  STAGE/best.safetensors     the best weights of each stage
  STAGE/checkpoint-STEP/     where to resume from (`checkpoints.py`)
  bundle/                    the result
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from reason2decide.console import say, warn
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.errors import CheckpointError, OutputError
from reason2decide.files import link_or_copy, locked, new_file, new_folder, remove_folder, remove_leftovers
from reason2decide.training.checkpoints import (
    MANIFEST,
    Checkpoint,
    newest_checkpoint,
    read_checkpoint,
    require_same_run,
    steps_of,
)
from reason2decide.training.config import Config
from reason2decide.training.processes import Processes
from reason2decide.training.run_log import keep_rows
from reason2decide.version import __version__

AUTO = "auto"  # resume from the newest intact checkpoint, or start if there is none
LOCK = ".lock"
BUNDLE, CONFIG, LOG, RUN = "bundle", "config.toml", "log.jsonl", "run.json"


def require_free(out: Path, *, resuming: bool, force: bool) -> None:
    """Refuse a path that contains anything but a run, and a run that is to be neither resumed nor replaced."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give the path of a folder for the run")
    if not out.exists() or all(path.name == LOCK for path in out.iterdir()):
        return
    if not (out / RUN).exists():
        raise OutputError(f"{out} contains files but not a run (it has no run.json); give another path")
    if not (resuming or force):
        hint = "is complete" if (out / BUNDLE).exists() else "was interrupted: --resume auto continues it"
        raise OutputError(f"the run {out} already exists and {hint}; give another path, or --force to replace it")


def require_checkpoint_of(run: Path, path: Path) -> None:
    if path.resolve().parent.parent != run.resolve():
        raise CheckpointError(
            f"{path} is not a checkpoint of the run {run}; expected {run / 'STAGE' / 'checkpoint-STEP'}, or auto"
        )
    read_checkpoint(path)


@contextlib.contextmanager
def run_folder(out: Path, dataset: Path, *, force: bool) -> Iterator[None]:
    """Lock the run folder for this training; with `force`, empty it of all but the dataset to train on.

    The folder says from the first moment that it is a run's, so that one killed at any time can be resumed or replaced.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {out}: {error.strerror}") from None
    with locked(out / LOCK, f"another training is running in {out}; wait for its end, or give another path"):
        if force:
            for path in out.iterdir():
                if path.name not in (LOCK, RUN) and not dataset.resolve().is_relative_to(path.resolve()):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in (out, *(path for path in out.iterdir() if path.is_dir())):
            remove_leftovers(folder)
        if force or not (out / RUN).exists():
            _write_json(out / RUN, {})
        yield


def chosen_checkpoint(config: Config, run: Path, resume: str | None, processes: Processes) -> Checkpoint | None:
    """The checkpoint to resume from, chosen by the main process, read by each."""
    if resume is None:
        return None
    found: Path | None = Path(resume)
    if resume == AUTO:
        found = None
        if processes.is_main:
            checkpoint, passed_over = newest_checkpoint(run, [stage.name for stage in config.stages()])
            for problem in passed_over:
                warn(f"skipped: {problem}")
            found = checkpoint.path if checkpoint else None
            say(f"resuming from {found}" if found else f"no checkpoint in {run} to resume from: starting afresh")
        found = processes.gather(found)[0]
    return read_checkpoint(found) if found is not None else None


def has_begun(run: Path) -> bool:
    """Whether a run has a checkpoint of its own to go on from."""
    return next(run.glob("*/checkpoint-*"), None) is not None


def first_stage(other: Path, config: Config, run: Path, identity: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with which another run has finished this run's first stage.

    Raises:
        CheckpointError: that stage has not finished, or differs from this run's; or the other run is this one.
    """
    first = config.stages()[0].name
    if other.resolve() == run.resolve():
        raise CheckpointError(f"{other} is this run itself; --resume auto continues it")
    checkpoint, _ = newest_checkpoint(other, [first])
    if checkpoint is None or not _has_ended(config, checkpoint) or len(config.stages()) == 1:
        raise CheckpointError(f"{other} has no finished {first} that another stage of this run follows")
    require_same_run(checkpoint, identity)
    return checkpoint


def take_over(finished: Checkpoint, run: Path) -> None:
    """Link another run's finished stage into this one."""
    stage, other = finished.path.parent.name, finished.path.parent.parent
    with new_folder(run / stage / finished.path.name, MANIFEST, force=False) as folder:
        for file in finished.path.iterdir():
            link_or_copy(file, folder / file.name)
    shutil.copy(other / LOG, run / LOG)


def _has_ended(config: Config, checkpoint: Checkpoint) -> bool:
    """Whether nothing of the checkpoint's stage is left to train."""
    return checkpoint.state.stopped or checkpoint.state.step == config.of("steps", checkpoint.state.stage)


def remove_passed_over(run: Path, config: Config, checkpoint: Checkpoint | None) -> None:
    """Remove the checkpoints after the one that a run goes on from: damaged ones, which would outlive newer ones."""
    stages = [stage.name for stage in config.stages()]
    reached = (stages.index(checkpoint.state.stage), checkpoint.state.step) if checkpoint else (-1, 0)
    for number, stage in enumerate(stages):
        for step, path in steps_of(run, stage):
            if (number, step) > reached:
                remove_folder(path)


def is_complete(config: Config, checkpoint: Checkpoint, run: Path) -> bool:
    is_last = checkpoint.state.stage == config.stages()[-1].name
    return is_last and _has_ended(config, checkpoint) and (run / BUNDLE / "manifest.json").exists()


def forget_after(checkpoint: Checkpoint | None, config: Config, log: Path) -> None:
    """Drop the log rows that came after the checkpoint."""
    state = checkpoint.state if checkpoint else None

    def keep(row: Mapping[str, Any]) -> bool:
        if state is None or row["stage"] != state.stage:
            return state is not None and row["stage"] in state.finished
        return bool(row["step"] <= (state.step if row["event"] == "train" else state.validated_step))

    keep_rows(log, keep)


def describe_run(run: Path, config: Config, dataset: DatasetFolder, checkpoint: Checkpoint | None) -> None:
    now, file = datetime.now(UTC).isoformat(timespec="seconds"), run / RUN
    description: dict[str, Any] = {
        "started": now,
        "versions": versions(),
        "dataset": {"name": dataset.info.name, "sha256": dict(dataset.hashes)},
        "device": _device(),
    }
    earlier = _description(file) if checkpoint is not None else {}
    if checkpoint is not None and earlier:
        description = earlier
        resumption = {
            "at": now,
            "from": f"{checkpoint.state.stage} step {checkpoint.state.step}",
            "versions": versions(),
        }
        description["resumed"] = [*description.get("resumed", []), resumption]
    _write_json(file, description)
    (run / CONFIG).write_text(config.to_toml(), "utf-8")


def _description(file: Path) -> dict[str, Any]:
    """What a run's description holds; nothing if it was just begun, or its disk was full."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    with new_file(file, force=True) as partial:
        partial.write_text(json.dumps(content, indent=2), "utf-8")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    found = {"reason2decide": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"

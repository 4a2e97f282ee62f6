"""Checkpoints: everything a stage needs to resume as if it had never stopped, written complete or not at all.

    RUN/STAGE/checkpoint-STEP/
      model.safetensors       weights, tied ones once
      optimizer.safetensors   the optimizer's state, PARAMETER/QUANTITY
      best.safetensors        weights of the best validation so far, if any counted
      manifest.json           `CheckpointState`, and the SHA-256 of every other file

There is no random state to keep: the draws of y~, the batches and dropout are functions of the seed and the step.
Nothing here is a pickle, and no file is read before its hash is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from reason2decide.errors import CheckpointError
from reason2decide.files import link_or_copy, new_folder, remove_folder, sha256_file

MANIFEST = "manifest.json"
MODEL, OPTIMIZER, BEST = "model.safetensors", "optimizer.safetensors", "best.safetensors"
CHECKPOINT_FORMAT = 1


@dataclass(frozen=True)
class CheckpointState:
    """The progress of a stage; `finished` are the summaries of the stages before it.

    `identity` is what determines the run: its configuration, data, tokenizer and number of processes.
    """

    stage: str
    step: int
    validated_step: int
    stopped: bool
    selection: str
    best_value: float | None
    best_step: int
    worse_in_a_row: int
    finished: Mapping[str, Any]
    identity: Mapping[str, Any]
    confidences: Mapping[str, Sequence[float]] | None = None  # of y^ by window, where sampling adapts to them
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are unchanged."""

    path: Path
    state: CheckpointState

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, on the CPU."""
        tensors: dict[str, Tensor] = load_file(self.path / name)
        return tensors


def checkpoint_path(run: Path, stage: str, step: int) -> Path:
    """The path in a run folder of the checkpoint of a stage's step."""
    return run / stage / f"checkpoint-{step}"


def write_checkpoint(
    run: Path, state: CheckpointState, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], best: Path | None
) -> Path:
    """Write a checkpoint next to its final path, synced and hashed, and only then rename it."""
    path = checkpoint_path(run, state.stage, state.step)
    remove_folder(path)  # a damaged one, which the run was not resumed from
    with new_folder(path, MANIFEST, force=False) as folder:
        save_file(dict(model), folder / MODEL)
        save_file(dict(optimizer), folder / OPTIMIZER)
        if best is not None:
            link_or_copy(best, folder / BEST)
        hashes = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
        content = {"checkpoint_format": CHECKPOINT_FORMAT, "state": asdict(state), "files": hashes}
        (folder / MANIFEST).write_text(json.dumps(content, indent=2), "utf-8")
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Check a checkpoint's files against its manifest.

    Raises:
        CheckpointError: it is not a checkpoint, or a file of it is missing, truncated or altered.
    """
    if not (path / MANIFEST).is_file():
        what = f"it has no {MANIFEST}" if path.is_dir() else "there is no such folder"
        raise CheckpointError(
            f"{path} is not a checkpoint: {what}; give a folder RUN/STAGE/checkpoint-STEP, or --resume auto"
        )
    try:
        content = json.loads((path / MANIFEST).read_text("utf-8"))
        found_format, files = content["checkpoint_format"], dict(content["files"])
        if found_format != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {found_format}, this program reads {CHECKPOINT_FORMAT}; "
                "resume with the version of reason2decide that wrote it"
            )
        state = CheckpointState(**content["state"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path / MANIFEST} was altered: it is not the manifest of a checkpoint") from None
    for name, digest in files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path} lacks {name}, which its manifest lists; resume from another checkpoint")
        if sha256_file(path / name) != digest:
            raise CheckpointError(
                f"{path / name} was truncated or altered (its SHA-256 differs); resume from another checkpoint"
            )
    return Checkpoint(path, state)


def newest_checkpoint(run: Path, stages: Sequence[str]) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint of a run, if any, and what is wrong with the newer ones."""
    passed_over: list[str] = []
    for path in reversed([path for stage in stages for path in _of_stage(run, stage)]):
        try:
            return read_checkpoint(path), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    return None, passed_over


def remove_old_checkpoints(run: Path, stage: str, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a stage."""
    for path in _of_stage(run, stage)[:-keep]:
        remove_folder(path)


def steps_of(run: Path, stage: str) -> list[tuple[int, Path]]:
    """The checkpoints of a stage with their steps, oldest first."""
    named = ((path.name.removeprefix("checkpoint-"), path) for path in (run / stage).glob("checkpoint-*"))
    return sorted((int(step), path) for step, path in named if step.isdecimal())


def _of_stage(run: Path, stage: str) -> list[Path]:
    return [path for _, path in steps_of(run, stage)]


def require_same_run(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` naming all that differs between a checkpoint's run and this one.

    Later stages than the checkpoint's may differ: they have not begun.
    """
    stage = checkpoint.state.stage
    then, now = (_flat(_until(stage, values)) for values in (checkpoint.state.identity, identity))
    different = [
        f"{key} was {then.get(key, 'not set')}, now {now.get(key, 'not set')}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{checkpoint.path} belongs to another run: {'; '.join(different)}. Resume with the original settings, or "
            "train in another folder"
        )


def _until(stage: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run up to a stage: settings of the whole run and of the stages up to this one."""
    names = list(identity["stages"])
    reached = names[: names.index(stage) + 1] if stage in names else names
    rest = {key: value for key, value in identity.items() if key not in ("stages", "common")}
    # The rest is last: what `precision = "auto"` came to, not "auto", is what a run has computed in.
    return {**identity["common"], **{name: identity["stages"][name] for name in reached}, **rest}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = prefix if key == "*" else f"{prefix}.{key}" if prefix else key
        if isinstance(item, Mapping):
            flat |= _flat(item, name)
        else:
            flat[name] = item
    return flat

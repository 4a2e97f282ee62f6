"""The log of a run: one JSON object per line in `log.jsonl`, and the trackers that `report_to` names.

Neither texts nor ids of records are logged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from reason2decide.errors import require
from reason2decide.files import new_file

# tracker -> the module it needs and the extra that provides it
TRACKERS = {name: (name, name) for name in ("tensorboard", "mlflow", "wandb", "trackio")}
ROWS_PER_STAGE = 200  # ours: enough for a curve


class RunLog:
    """The log of a run, written by the main process alone.

    Args:
        steps: of each stage, in their order; trackers get steps that count on from one stage to the next, since some
            drop what comes with a lower step than before.

    Raises:
        MissingExtraError: a tracker's package is not installed.
    """

    def __init__(
        self, path: Path, trackers: Sequence[str], settings: Mapping[str, Any], steps: Mapping[str, int]
    ) -> None:
        self.path = path
        self._first_steps = dict(zip(steps, accumulate(steps.values(), initial=0), strict=False))
        self._trackers = [_start(name, path.parent, settings) for name in trackers]

    def write(self, stage: str, row: Mapping[str, Any]) -> None:
        """Append a row of a stage; trackers get its numbers as STAGE/KEY."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": stage, **row}, allow_nan=False) + "\n")
        numbers = {
            f"{stage}/{'' if row['event'] == 'train' else row['event'] + '_'}{key}": value
            for key, value in row.items()
            if isinstance(value, int | float) and key != "step"
        }
        for tracker in self._trackers:
            tracker.log(numbers, step=self._first_steps[stage] + row["step"])

    def close(self) -> None:
        """Let the trackers send what is pending."""
        for tracker in self._trackers:
            tracker.finish()


def _start(name: str, run: Path, settings: Mapping[str, Any]) -> Any:
    require(*TRACKERS[name])
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    arguments = [str(run / name)] if name == "tensorboard" else []
    tracker = kind(run.resolve().name, *arguments)
    tracker.start()
    if name != "tensorboard":  # tensorboard would make a second run of the settings
        tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
    return tracker


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line cut off by a crash is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_rows(path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Keep only some rows: what came after the checkpoint that a run resumes from is logged again."""
    if path.exists():
        _write_rows(path, (row for row in read_rows(path) if keep(row)))


def write_summary(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with those of training averaged, at most `ROWS_PER_STAGE` per stage."""
    pending: dict[str, list[Mapping[str, Any]]] = {}
    rows = list(rows)
    last = {row["stage"]: row["step"] for row in rows if row["event"] == "train"}
    summary: list[Mapping[str, Any]] = []
    for row in rows:
        if row["event"] != "train":
            summary.append(row)
            continue
        group = pending.setdefault(row["stage"], [])
        group.append(row)
        if row["step"] == last[row["stage"]] or len(group) >= -(-last[row["stage"]] // ROWS_PER_STAGE):
            summary.append(_mean(group))
            group.clear()
    _write_rows(path, summary)


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    numbers = [key for key, value in rows[-1].items() if isinstance(value, float) and key != "step"]
    return {**rows[-1], **{key: sum(row[key] for row in rows) / len(rows) for key in numbers}}


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with new_file(path, force=True) as partial, partial.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)

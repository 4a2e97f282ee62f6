"""Training from Python."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reason2decide.api.datasets import Dataset
from reason2decide.api.models import Model, load
from reason2decide.errors import require


@dataclass(frozen=True)
class Run:
    """A finished training: its folder `path`, the model it made, its log."""

    path: Path

    @property
    def bundle(self) -> Path:
        """The folder of the model, which `load`, `r2d predict` and `r2d export` take."""
        return self.path / "bundle"

    @cached_property
    def model(self) -> Model:
        """The model, loaded."""
        return load(self.bundle)

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """A dict per event: losses, schedules and speed of every step (`event` is "train"), and every validation."""
        from reason2decide.training.run_log import read_rows

        return read_rows(self.path / "log.jsonl")

    def log_to_pandas(self) -> Any:
        """The log as a `pandas.DataFrame`."""
        return require("pandas", "pandas").DataFrame(self.log)


def train(
    *,
    method: str,
    base: str | dict[str, str],
    dataset: Dataset | str | Path,
    steps: int | dict[str, int],
    out: str | Path,
    rationale_source: str | dict[str, str] | None = None,
    resume: str | None = None,
    force: bool = False,
    **settings: Any,
) -> Run:
    """Train a model in the run folder `out`, which `r2d train OUT/config.toml` can repeat.

    Args:
        method: r2d, sft, dss or an ablation (`reason2decide.method.methods.METHODS`).
        base: a hub name, a folder, "tiny" (small, from scratch), or {"encoder": ...} for a BERT-like encoder.
        dataset: a `Dataset` or its folder. One that was made from memory is copied into the run folder.
        steps: optimizer steps, for all stages or by stage.
        rationale_source: source of the rationales to learn from, for all stages or by stage; sft needs none.
        resume: "auto" resumes an interrupted run.
        force: replace the run in `out`.
        settings: any other key of a training configuration (`r2d train --explain` lists them).

    Raises:
        ConfigError: unknown or impossible settings, all in one message.
        DataError, BaseModelError: the dataset or the base cannot be used.
        OutputError: `out` exists and neither `resume` nor `force` is given.
        Interrupted: Ctrl-C; a checkpoint was written.

    Example:
        >>> import reason2decide as r2d
        >>> run = r2d.train(
        ...     method="r2d", base="tiny", dataset="data", rationale_source="llm", steps=2, out="new_run", batch_size=8
        ... )
        >>> run.model.decide("21 yo with mild rash since 2 days").rationale is not None
        True
        >>> [row["stage"] for row in run.log if row["event"] == "validation"]
        ['stage1', 'stage2']
    """
    require("torch", "train")
    from reason2decide.training.config_file import parse_config
    from reason2decide.training.run import train as train_run

    out, path = Path(out), dataset.path if isinstance(dataset, Dataset) else Path(dataset)
    in_memory = isinstance(dataset, Dataset) and dataset.is_temporary
    content: dict[str, Any] = {
        "method": method,
        "base": base,
        "dataset": str(out / "dataset" if in_memory else path),
        "steps": steps,
        **settings,
    }
    if rationale_source is not None:
        content["rationale_source"] = rationale_source
    config = parse_config(content, "train(...)")
    train_run(config, out, resume=resume, force=force, records_from=path if in_memory else None)
    return Run(out)

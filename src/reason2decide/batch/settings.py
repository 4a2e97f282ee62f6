"""What is asked of a batch: the settings of its parts, and of how they are computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import typer

from reason2decide.errors import ConfigError

Format = Literal["parquet", "jsonl"]
Duplicates = Literal["refuse", "keep"]


@dataclass(frozen=True)
class BatchSettings:
    """How a batch is divided and computed; only the first three change what the parts hold.

    Raises:
        ConfigError: an impossible value.
    """

    format: Annotated[Format, typer.Option("--format", help="Format of the parts: parquet or jsonl.")] = "parquet"
    rows_per_part: int = field(
        default=2000,  # ours: minutes of work for a model of 250 million parameters on two cores
        metadata={"help": "Rows of a part; a part that was not finished is computed again.", "min": 1},
    )
    duplicates: Annotated[
        Duplicates, typer.Option("--duplicates", help="Ids that occur twice: refuse the input, or keep every row.")
    ] = "refuse"
    resume: bool = field(
        default=False, metadata={"flag": "--resume", "help": "Go on where a run into the same folder ended, or begin."}
    )
    retry_failed: bool = field(
        default=False,
        metadata={"flag": "--retry-failed", "help": "Resume, and compute parts with failed rows once more."},
    )
    workers: int = field(
        default=0,
        metadata={"help": "Worker processes; 0: by the model's size, the cores, the memory and the GPUs.", "min": 0},
    )
    patience: float = field(
        default=300.0,  # ours
        metadata={"help": "Seconds for which storage may fail before the run ends.", "min": 0},
    )
    ray: bool = field(
        default=False,
        metadata={"flag": "--ray", "help": "Compute on a Ray cluster (pip install 'reason2decide\\[ray]')."},
    )
    address: str | None = field(
        default=None, metadata={"help": "Address of the Ray cluster, or auto; default: one on this machine."}
    )

    def __post_init__(self) -> None:
        for name, known in (("format", get_args(Format)), ("duplicates", get_args(Duplicates))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(known)}")
        if self.rows_per_part < 1 or self.workers < 0 or not 0 <= self.patience < float("inf"):
            raise ConfigError("rows_per_part must be at least 1, workers and patience at least 0")
        if self.address is not None and not self.ray:
            raise ConfigError("--address is of a Ray cluster: give --ray too")

    @property
    def resumes(self) -> bool:
        """Whether a run that has begun goes on."""
        return self.resume or self.retry_failed


STANDARD_BATCH = BatchSettings()

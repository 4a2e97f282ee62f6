"""Read a folder of parts that is complete, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reason2decide.batch.job import JOB_FILE, BatchJob, part_folder, read_job, whole_parts
from reason2decide.batch.settings import STANDARD_BATCH
from reason2decide.batch.storage import Patience, first_contact, place
from reason2decide.data.predictions import Prediction, Undecided
from reason2decide.errors import DataError


@dataclass(frozen=True)
class DecidedFolder:
    """The rows of a finished batch, and what it was made of."""

    path: Path
    job: BatchJob

    @classmethod
    def open(cls, given: str) -> DecidedFolder:
        """Open a folder, a path or a URL.

        Raises:
            DataError: it is no folder of parts, or some are missing.
            OutputError: its manifest cannot be read.
            UserError: its storage cannot be reached.
        """
        path = place(given)
        job = first_contact(lambda: read_job(path), given)
        if job is None:
            raise DataError(f"{given} has no {JOB_FILE} of parts; give a folder that `r2d predict --out FOLDER` wrote")
        done = len(whole_parts(part_folder(path, job), job))
        if done < len(job.parts):
            raise DataError(
                f"{given} has {done} of {len(job.parts)} parts; finish it first, with its `r2d predict` and --resume"
            )
        return cls(path, job)

    def __iter__(self) -> Iterator[Prediction | Undecided]:
        parts, patience = part_folder(self.path, self.job), Patience(STANDARD_BATCH.patience)
        for number in self.job.parts:
            yield from patience.insist(partial(parts.read, number))
            yield from patience.insist(partial(parts.read_failed, number))

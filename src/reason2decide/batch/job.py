"""The manifest of a folder of parts: what it was made of, and how many rows went in and came out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reason2decide.batch.input import InputFile
from reason2decide.batch.parts import PartFolder
from reason2decide.batch.storage import write_whole
from reason2decide.data.recipe import listed
from reason2decide.errors import DataError, OutputError

JOB_FORMAT = 1
JOB_FILE = "manifest.json"


@dataclass(frozen=True)
class BatchJob:
    """What the parts of a folder depend on.

    Args:
        version: of this package.
        model: SHA-256 of the bundle's manifest, which stands for all of its files.
        settings: all options that change what the parts hold.
        files: the input.
    """

    version: str
    model: str
    settings: Mapping[str, Any]
    files: Sequence[InputFile]

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return sum(file.rows for file in self.files)

    @property
    def size(self) -> int:
        """Rows of a part."""
        return int(self.settings["rows_per_part"])

    @property
    def parts(self) -> range:
        """The numbers of all parts."""
        return range(-(-self.rows // self.size))

    def rows_of(self, part: int) -> int:
        """Rows of the input in a part."""
        return min(self.size, self.rows - part * self.size)

    def require_same(self, folder: Path, version: str, model: str, settings: Mapping[str, Any]) -> None:
        """Raise `OutputError` if the folder's parts are of something else than what is given now."""
        pairs: dict[str, tuple[Any, Any]] = {
            "reason2decide": (self.version, version),
            "the model with manifest": (self.model, model),
        }
        pairs |= {f"--{name.replace('_', '-')}": (self.settings.get(name), value) for name, value in settings.items()}
        for name, (before, now) in pairs.items():
            if before != now:
                raise OutputError(
                    f"{folder} was begun with {name} {before}, given now is {now}; give the same to go on, another "
                    "--out, or --force to begin anew"
                )

    def require_input(self, folder: Path, fingerprints: Mapping[str, str]) -> None:
        """Raise `DataError` if the input is not that of the folder's parts."""
        before = {file.name: file.sha256 for file in self.files}
        for problem, names in (
            ("lacks", before.keys() - fingerprints.keys()),
            ("has besides", fingerprints.keys() - before.keys()),
            ("has with other content", {name for name in before if fingerprints.get(name) != before[name]}),
        ):
            if names:
                raise DataError(
                    f"the input {problem} {listed(sorted(names))}, compared with what {folder} was begun with; "
                    "give the same files to go on, or another --out"
                )

    def write(self, folder: Path, summary: Mapping[str, Any] | None = None) -> None:
        """Write the manifest."""
        content = {"format": JOB_FORMAT, **asdict(self), "summary": summary}
        write_whole(folder / JOB_FILE, json.dumps(content, indent=1, ensure_ascii=False).encode())


def read_job(folder: Path) -> BatchJob | None:
    """The manifest of a folder; None if it has none.

    Raises:
        OutputError: it is none that this program reads.
    """
    path = folder / JOB_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != JOB_FORMAT:
            raise OutputError(f"{path} has format {content['format']}, this program reads {JOB_FORMAT}")
        files = [InputFile(**file) for file in content["files"]]
        return BatchJob(content["version"], content["model"], content["settings"], files)
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{path} is not the manifest of a folder of parts; give another --out") from None


def whole_parts(parts: PartFolder, job: BatchJob, retry_failed: bool = False) -> dict[int, tuple[int, int]]:
    """The rows with and without a decision of the parts that are whole, and to be left as they are."""
    return {
        number: counts
        for number, counts in parts.counts(job.parts).items()
        if min(counts) >= 0 and sum(counts) == job.rows_of(number) and not (retry_failed and counts[1])
    }


def part_folder(folder: Path, job: BatchJob) -> PartFolder:
    """The parts of a job."""
    return PartFolder(folder, job.settings["format"])

"""Cases in files, an export that decides them without torch, and folders of parts, for the tests of batches."""

from __future__ import annotations

import csv
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from serving import triage_bundle
from toy import record

from reason2decide.batch.job import part_folder, read_job
from reason2decide.batch.storage import place
from reason2decide.data.predictions import Prediction
from reason2decide.export.bundle import export_bundle

_kept = tempfile.TemporaryDirectory()


@functools.cache
def exported() -> Path:
    """The shared toy bundle as an export, which starts in a second."""
    folder = Path(_kept.name) / "export"
    export_bundle(triage_bundle(), folder, "float32")
    return folder


def rows(first: int, end: int) -> list[dict[str, str]]:
    """Cases of the toy data, by number."""
    return [{"id": f"case-{index}", "text": record(index % 60).text} for index in range(first, end)]


def write_folder(folder: Path, number: int = 60) -> Path:
    """A folder of cases in three formats, the files of which follow one another in the order of the ids."""
    folder.mkdir(parents=True)
    third = number // 3
    with (folder / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows(0, third))
    lines = [json.dumps(row) for row in rows(third, 2 * third)]
    (folder / "b").mkdir()
    (folder / "b" / "rows.jsonl").write_text("\n".join(lines) + "\n")
    table = pyarrow.Table.from_pylist(rows(2 * third, number))
    pyarrow.parquet.write_table(table, folder / "c.parquet")
    return folder


def predictions(out: Path | str) -> list[Prediction]:
    """The decisions of a folder of parts."""
    folder = place(str(out))
    job = read_job(folder)
    assert job is not None
    parts = part_folder(folder, job)
    return [prediction for number in job.parts for prediction in parts.read(number)]


def failures(out: Path) -> list[dict[str, Any]]:
    """The failed rows of a folder of parts in Parquet."""
    found = sorted(out.glob("errors-*"))
    return [row for path in found for row in pyarrow.parquet.read_table(path).to_pylist()]


def bytes_of(out: Path | str) -> dict[str, bytes]:
    """The content of every part file by name."""
    found = [path for path in place(str(out)).iterdir() if path.name.startswith(("part-", "errors-"))]
    return {path.name: path.read_bytes() for path in found}

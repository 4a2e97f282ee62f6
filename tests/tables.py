"""Importing tables as a user does, and what is in the dataset then."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from reason2decide.cli import app
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.errors import UserError

SPLITS = ("train", "validation", "test")


def r2d(*arguments: object, ok: bool = True) -> str:
    """What `r2d data import table` says; with `ok` false the message of the error it must end with."""
    result = CliRunner().invoke(app, ["data", "import", "table", *map(str, arguments)])
    if ok:
        assert result.exit_code == 0, result.exception or result.output
        return result.stderr
    if isinstance(result.exception, UserError):
        return str(result.exception)
    raise AssertionError(f"expected a UserError, got {result.exception!r}: {result.output}")


def records(folder: Path) -> dict[str, Record]:
    dataset = DatasetFolder.open(folder)
    dataset.verify()
    return {record.id: record for split in dataset.hashes for record in dataset.split(split)}


def sizes(folder: Path) -> dict[str, int]:
    dataset = DatasetFolder.open(folder)
    return {split: len(dataset.split(split)) for split in dataset.hashes}

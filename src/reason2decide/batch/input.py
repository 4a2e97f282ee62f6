"""The rows of a batch: which files they are in, their fingerprint, and the chunks that parts are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

from reason2decide.batch.settings import Duplicates
from reason2decide.batch.storage import Patience, found_files
from reason2decide.console import ProgressBar
from reason2decide.data.cases import Cases
from reason2decide.data.predictions import Undecided
from reason2decide.data.records import Record
from reason2decide.data.repeated_ids import RepeatedIds
from reason2decide.errors import DataError

SHOWN = 3  # ours: repeated ids that a message names
ROWS_TOLD = 1000  # rows between two updates of the progress bar


@dataclass(frozen=True)
class InputFile:
    """A file of the input: its name below the input's fixed part, SHA-256 of its bytes, its rows, bad ones included."""

    name: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Chunk:
    """The rows of a part, in order."""

    number: int
    rows: Sequence[Record | Undecided]


@dataclass(frozen=True)
class BatchInput:
    """Files read one after the other as one table.

    Args:
        given: a path, a folder, a glob or a URL of one of them.
        cases: how a file is read; its path plays no part.
    """

    given: str
    cases: Cases
    patience: Patience

    @cached_property
    def files(self) -> list[tuple[str, Path]]:
        """Names and paths; raises as `found_files`."""
        return found_files(self.given)

    def fingerprints(self) -> dict[str, str]:
        """The SHA-256 of each file by name."""
        return {name: self.patience.insist(partial(_sha256, path)) for name, path in self.files}

    def read_through(self, duplicates: Duplicates) -> list[InputFile]:
        """Read everything once, so that what cannot be read is refused before anything is decided.

        Raises:
            DataError: a file cannot be read, or lacks a column; ids repeat and may not; there is no case at all.
        """
        fingerprints = self.fingerprints()
        found: list[InputFile] = []
        cases = 0
        with ProgressBar("reading", None, "rows") as bar, RepeatedIds() as ids:
            row = 0
            for name, path in self.files:
                first = row
                for outcome in self._outcomes(name, path):
                    cases += isinstance(outcome, Record)
                    if duplicates == "refuse":
                        ids.add(outcome.id, row)
                    row += 1
                    if row % ROWS_TOLD == 0:
                        bar.advance(ROWS_TOLD)
                found.append(InputFile(name, fingerprints[name], row - first))
            repeated = list(islice(ids.pairs(), SHOWN))
        if repeated:
            pairs = "; ".join(f"{_at(found, first)} and {_at(found, again)}" for first, again in repeated)
            raise DataError(
                f"ids occur twice in {self.given}: {pairs}{' ...' if len(repeated) == SHOWN else ''}; correct them, "
                "name another column with --id, or keep all rows with --duplicates keep"
            )
        if not cases:
            raise DataError(f"{self.given} contains no case to decide on; expected at least one with a text")
        return found

    def chunks(self, files: Sequence[InputFile], size: int, leave_out: Collection[int]) -> Iterator[Chunk]:
        """The chunks of `size` rows in order, but those left out.

        Args:
            files: as they were read through.

        Raises:
            DataError: a file has changed since.
        """
        paths = dict(self.files)
        rows: list[Record | Undecided] = []
        row = 0
        total = sum(file.rows for file in files)
        for file in files:
            of_file = range(row // size, (row + file.rows - 1) // size + 1)
            if all(number in leave_out for number in of_file):
                row, rows = row + file.rows, []
                continue
            begun = row
            for outcome in self._outcomes(file.name, paths[file.name]):
                rows.append(outcome)
                row += 1
                if row % size == 0 or row == total:
                    number = (row - 1) // size
                    if number not in leave_out:
                        yield Chunk(number, rows)
                    rows = []
            if row - begun != file.rows:
                raise DataError(f"{paths[file.name]} has {row - begun} rows, {file.rows} before: it was changed")

    def _outcomes(self, name: str, path: Path) -> Iterator[Record | Undecided]:
        """The rows of a file; where the storage fails in its middle, reading goes on from there."""
        done = 0
        while True:
            try:
                for outcome in islice(replace(self.cases, path=path).outcomes(name), done, None):
                    yield outcome
                    done += 1
                    self.patience.renew()
                return
            except Exception as error:
                self.patience.wait(error)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _at(files: Sequence[InputFile], row: int) -> str:
    for file in files:
        if row < file.rows:
            return f"row {row + 1} of {file.name}"
        row -= file.rows
    raise AssertionError("a row beyond the input")

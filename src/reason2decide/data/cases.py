"""Read cases to decide on; a bad one is reported with its place, while a file that cannot be read at all is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reason2decide.data.records import Record, record_from_json
from reason2decide.data.sources.rows import OnBad, Place, Row, json_lines, open_table
from reason2decide.errors import DataError

STANDARD_INPUT = Path("-")
KEPT = ("id", "choices")  # besides the text; what else a row has, such as a label, plays no part in a decision


@dataclass(frozen=True)
class Cases:
    """A table of any format that can be imported, or standard input (`-`, JSON lines).

    A case needs a text; without an id it gets the number of its line.
    """

    path: Path
    text_column: str = "text"
    delimiter: str | None = None
    encoding: str = "utf-8"

    def count(self) -> int | None:
        """Number of rows, bad ones included, read to the file's end; None of standard input.

        So a file whose rows cannot be told apart is refused before anything is decided.

        Raises:
            DataError, UserError: as `records`.
        """
        if self.path == STANDARD_INPUT:
            return None
        bad: list[DataError] = []
        return sum(1 for _ in self._rows(bad.append)) + len(bad)

    def records(self, on_bad: OnBad) -> Iterator[Record]:
        """Yield the records; a row that is not a case, or repeats an id, goes to `on_bad`, and reading continues.

        Raises:
            DataError: the file is missing, its rows cannot be told apart, or it has no text column.
            UserError: unknown extension, encoding or delimiter.
        """
        seen: set[str] = set()
        for place, row in self._rows(on_bad):
            try:
                record = self._case(row, place)
                if record.id in seen:
                    raise DataError(f"{place}: the id {record.id!r} occurs earlier; ids must be unique")
            except DataError as error:
                on_bad(error)
                continue
            seen.add(record.id)
            yield record

    def _rows(self, on_bad: OnBad) -> Iterator[tuple[Place, Row]]:
        if self.path == STANDARD_INPUT:
            return json_lines(sys.stdin, "standard input", on_bad)
        table = open_table(self.path, delimiter=self.delimiter, encoding=self.encoding)
        if self.path.suffix.lower() not in (".json", ".jsonl") and self.text_column not in table.columns():
            raise DataError(
                f"{self.path} has no column {self.text_column!r}; it has {', '.join(table.columns()) or 'none'}; "
                "name one with --text"
            )
        return table.rows({*KEPT, self.text_column}, on_bad)

    def _case(self, row: Row, place: Place) -> Record:
        value = {"id": str(place.number), "text": row.get(self.text_column) or ""}
        if row.get("id") not in (None, ""):
            value["id"] = str(row["id"])
        if isinstance(row.get("choices"), list):  # in a table they are a cell of text, which is no list
            value["choices"] = row["choices"]
        return record_from_json(value, str(place))

"""Read the records of tables in their order, and collect what is known only at the end: splits, bad and like rows."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from reason2decide.data.recipe import InputRecipe, listed
from reason2decide.data.records import LabelSet
from reason2decide.data.sources.choices import match_choice
from reason2decide.data.sources.rows import JsonTable, Row, Table
from reason2decide.data.sources.table_records import Columns, Noticed, ReadRow, RowReader, plain
from reason2decide.data.sources.writing import Spooled
from reason2decide.errors import DataError
from reason2decide.parallel import FEW, ordered

GIVEN_UP = 1000  # ours: rows that cannot be used, after which no more are read
SHOWN = 20  # ours: problems that a message shows
AT_ONCE = 1000  # ours: rows read together


class RecordReader:
    """Reads tables, and tells at their end what a user should know of them.

    Args:
        given_splits: gets the cell of the split column of each record.
    """

    def __init__(
        self,
        columns: Columns,
        recipe: InputRecipe,
        labels: LabelSet | None,
        given_splits: dict[str, str],
        *,
        skip_bad: bool,
    ) -> None:
        self.columns, self.given_splits, self.skip_bad = columns, given_splits, skip_bad
        self._read = RowReader(columns, recipe, labels)
        self._noticed = Noticed()
        self._repeated: Counter[str] = Counter()  # records by digest of their text
        self._first_label: dict[str, str] = {}  # by content
        self._contradicting = 0
        self._place_of: dict[str, str] = {}  # by id
        self._lacking: dict[str, Table] = {}  # columns that no object of a table has had so far
        self._unseen, self._rows = set(columns.optional), 0  # columns that no row has had; rows read
        self._given: deque[list[tuple[str, Row] | DataError]] = deque()  # the rows that are being read
        self.bad: list[dict[str, Any]] = []

    def records(self, tables: Sequence[Table]) -> Iterator[Spooled]:
        """The records.

        Raises:
            DataError: a column is missing; or rows cannot be used and are not to be skipped: the message has all.
        """
        parts = self._parts(tables)
        first = list(islice(parts, FEW // AT_ONCE))
        few = sum(map(len, first)) < FEW
        used = 0
        for rows, noticed in ordered(self._read, chain(first, parts), 1 if few else None):
            self._noticed.merge(noticed)
            for row, given in zip(rows, self._given.popleft(), strict=True):
                record = self._placed(row, None if isinstance(given, DataError) else given[1])
                if record is not None:
                    used += 1
                    yield record
        self._require_columns()
        if self._unseen and (self._rows or not self.bad):
            raise DataError(missing_column(tables[0], min(self._unseen)))
        if self.bad and not (self.skip_bad and used):
            raise DataError(self._problems())

    def _parts(self, tables: Sequence[Table]) -> Iterator[list[tuple[str, Row] | DataError]]:
        """The rows of all tables, with those that are none as errors in their place."""
        columns = self.columns
        wanted = {*columns.required, *columns.optional}
        part: list[tuple[str, Row] | DataError] = []
        for table in tables:
            present = set(table.columns())
            for column in columns.required:
                if column not in present:
                    if not isinstance(table, JsonTable):  # other objects than the first may have it
                        raise DataError(missing_column(table, column))
                    self._lacking[column] = table
            for place, row in table.rows(wanted, part.append):
                self._unseen -= row.keys()
                for column in self._lacking.keys() & row.keys():
                    del self._lacking[column]
                self._rows += 1
                part.append((str(place), row))
                if len(part) >= AT_ONCE:
                    self._given.append(part[:])
                    yield part[:]
                    part.clear()  # the table goes on to add to this list
        if part:
            self._given.append(part)
            yield part

    def _placed(self, read: ReadRow, row: Row | None) -> Spooled | None:
        """A row's record among those before it; None, and it is kept as bad, if it cannot be used."""
        record = read.record
        if record is None:
            self._on_bad(read.problem, row)
            return None
        id_, label, place = record.member.id, record.member.label, record.place
        if self.columns.id is None:
            self._repeated[id_] += 1
            if self._repeated[id_] > 1:
                id_ = f"{id_}-{self._repeated[id_]}"
                line = json.dumps({**json.loads(record.line), "id": id_}, ensure_ascii=False)
                record = record._replace(member=record.member._replace(id=id_), line=line)
        first_place = self._place_of.setdefault(id_, place)
        if first_place != place:
            self._on_bad(f"{place}: the id {id_!r} already occurs in {first_place}; ids must be unique", row)
            return None
        if self.columns.split is not None:
            self.given_splits[id_] = read.split
        first = self._first_label.setdefault(read.content, label)
        self._contradicting += first != label and match_choice(label, (first,)) is None
        return record

    def _on_bad(self, problem: str, row: Row | None) -> None:
        self.bad.append({"problem": problem} | ({} if row is None else {"row": plain(row)}))
        if len(self.bad) >= GIVEN_UP and not self.skip_bad:
            self._require_columns()
            raise DataError(self._problems())

    def _require_columns(self) -> None:
        """Refuse a table of JSON objects none of which has had a column that is needed."""
        for column, table in self._lacking.items():
            if self._rows:
                raise DataError(missing_column(table, column))

    def _problems(self) -> str:
        problems = [str(bad["problem"]) for bad in self.bad]
        if len(problems) == 1:
            return problems[0]
        shown = "\n  ".join(problems[:SHOWN] + ["..."] * (len(problems) > SHOWN))
        more = " or more" if len(problems) >= GIVEN_UP else ""
        return f"{len(problems)}{more} rows cannot be used; correct them, or leave them out with --skip-bad:\n  {shown}"

    def notes(self) -> Iterator[str]:
        """What a user should know of the rows."""
        noticed = self._noticed
        if noticed.mended:
            yield f"{noticed.mended} labels differed from the known ones in their spelling and were corrected"
        if noticed.not_available:
            yield f"{noticed.not_available} rationales say only that there is none (NA, null, ...) and were left out"
        if noticed.for_gold:
            yield f"{noticed.for_gold} contrasts are for the gold label of their row and were left out"
        if self._contradicting:
            yield (
                f"{self._contradicting} records have the text of an earlier one with another label; "
                "`r2d data check` names some"
            )
        for column, cells in noticed.suspicious.items():
            shown = ", ".join(f"{cell!r} ({count})" for cell, count in cells.most_common(5))
            yield (
                f"{cells.total()} cells of {column!r} seem to say that there is nothing, but are read as text: "
                f"{shown}; --missing takes such cells for empty"
            )


def missing_column(table: Table, column: str) -> str:
    """The message for a column that a table should have."""
    found = table.columns()
    hint = ""
    if len(found) == 1:
        other = next((mark for mark in (";", "\t", "|", ",") if mark in found[0]), None)
        hint = f"; if the delimiter is {other!r}, give --delimiter" if other else ""
    return f"{table.path} has no column {column!r}; it has {listed(found)}{hint}"

"""Convert the rows of tables to records; bad rows are told all at once, odd cells counted."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reason2decide.data.recipe import InputRecipe, is_null, listed
from reason2decide.data.records import LabelSet, Record, record_from_json
from reason2decide.data.sources.choices import match_choice
from reason2decide.data.sources.rows import Row, Table
from reason2decide.data.sources.splitting import content_key
from reason2decide.errors import DataError, UserError
from reason2decide.syntax import Malformed, parse_json

# What tables write where there is nothing (pandas, SQL, Hive, R, spreadsheets), in lower case.
NOT_AVAILABLE = frozenset({"na", "n/a", "#n/a", "nan", "null", "none", "nil", "<na>", "\\n", "-", "--", "."})
# Short cells that seem to mean nothing too: errors of a spreadsheet, in any language, and marks alone.
SUSPICIOUS = re.compile(r"#[^\W\d_][^\s#]{0,11}[!?]?|[^\w\s]{1,5}")
GIVEN_UP = 1000  # ours: rows that cannot be used, after which no more are read
SHOWN = 20  # ours: problems that a message shows


@dataclass(frozen=True)
class Columns:
    """The columns of a table to import. `rationales` maps a source to its column.

    `contrasts` maps a source to a column with rationales for other labels than the gold one (an object of label ->
    text, or that as JSON), or "SOURCE/LABEL" to a column with the one for that label.
    `choices` names a column with each record's choices (a list, a JSON list, or "A|B|C"); `choices_in_text` extracts
    them from the text instead. `meta` columns are kept as they are; all others are dropped. Cells that equal one of
    `missing` count as empty.

    Raises:
        UserError: no text column, or both ways of giving choices.
    """

    text: tuple[str, ...]
    label: str
    rationales: Mapping[str, str] = field(default_factory=dict)
    id: str | None = None
    group: str | None = None
    choices: str | None = None
    choices_in_text: bool = False
    split: str | None = None
    meta: tuple[str, ...] = ()
    contrasts: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.text:
            raise UserError("no text column was given; name at least one with --text")
        if self.choices and self.choices_in_text:
            raise UserError("choices were requested both from a column and from the text; give one of the two")

    def recipe(self, delimiter: str | None = None, encoding: str = "utf-8") -> InputRecipe:
        """How texts are made of these columns, in files of this format."""
        return InputRecipe(
            text=self.text,
            id=self.id,
            group=self.group,
            choices=self.choices,
            choices_in_text=self.choices_in_text,
            missing=self.missing,
            delimiter=delimiter,
            encoding=encoding,
        )

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that every row must have."""
        single = (self.label, self.id, self.choices, self.split)
        return (*self.text, *(name for name in single if name is not None))

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that at least one row must have; they may be absent from single rows."""
        group = (self.group,) if self.group else ()
        return (*self.rationales.values(), *self.contrasts.values(), *group, *self.meta)


class RecordReader:
    """Convert rows to records, and collect what is known only at the end: given splits, corrected labels, bad rows."""

    def __init__(
        self,
        columns: Columns,
        recipe: InputRecipe,
        labels: LabelSet | None,
        given_splits: dict[str, str],
        *,
        skip_bad: bool,
    ) -> None:
        self.columns, self.recipe, self.labels, self.given_splits = columns, recipe, labels, given_splits
        self.skip_bad = skip_bad
        self.mended = self.not_available = self.for_gold = 0
        self.repeated: Counter[str] = Counter()
        self.first_label: dict[str, str] = {}  # by content
        self.contradicting = 0
        self.place_of: dict[str, str] = {}  # by id
        self.suspicious: dict[str, Counter[str]] = defaultdict(Counter)  # cells by column
        self.bad: list[dict[str, Any]] = []

    def records(self, tables: Sequence[Table]) -> Iterator[tuple[str, Record]]:
        """The records, each with its place.

        Raises:
            DataError: a column is missing; or rows cannot be used and are not to be skipped: the message has all.
        """
        columns = self.columns
        wanted = {*columns.required, *columns.optional}
        unseen = set(columns.optional)
        used = 0
        for table in tables:
            present = set(table.columns())
            for column in columns.required:
                if column not in present:
                    raise DataError(missing_column(table, column))
            for place, row in table.rows(wanted, self._on_bad):
                unseen -= row.keys()
                try:
                    record = self._record(str(place), row)
                except DataError as error:
                    self._on_bad(error, row)
                    continue
                used += 1
                yield str(place), record
        if unseen:
            raise DataError(missing_column(tables[0], min(unseen)))
        if self.bad and not (self.skip_bad and used):
            raise DataError(self._problems())

    def _on_bad(self, error: DataError, row: Row | None = None) -> None:
        self.bad.append({"problem": str(error)} | ({} if row is None else {"row": _plain(row)}))
        if len(self.bad) >= GIVEN_UP and not self.skip_bad:
            raise DataError(self._problems())

    def _problems(self) -> str:
        problems = [str(bad["problem"]) for bad in self.bad]
        if len(problems) == 1:
            return problems[0]
        shown = "\n  ".join(problems[:SHOWN] + ["..."] * (len(problems) > SHOWN))
        more = " or more" if len(problems) >= GIVEN_UP else ""
        return f"{len(problems)}{more} rows cannot be used; correct them, or leave them out with --skip-bad:\n  {shown}"

    def notes(self) -> Iterator[str]:
        """What a user should know of the rows."""
        if self.mended:
            yield f"{self.mended} labels differed from the known ones in their spelling and were corrected"
        if self.not_available:
            yield f"{self.not_available} rationales say only that there is none (NA, null, ...) and were left out"
        if self.for_gold:
            yield f"{self.for_gold} contrasts are for the gold label of their row and were left out"
        if self.contradicting:
            yield (
                f"{self.contradicting} records have the text of an earlier one with another label; "
                "`r2d data check` names some"
            )
        for column, cells in self.suspicious.items():
            shown = ", ".join(f"{cell!r} ({count})" for cell, count in cells.most_common(5))
            yield (
                f"{cells.total()} cells of {column!r} seem to say that there is nothing, but are read as text: "
                f"{shown}; --missing takes such cells for empty"
            )

    def _record(self, where: str, row: Row) -> Record:
        columns, recipe = self.columns, self.recipe
        text = recipe.text_of(where, row)
        label = recipe.cell(where, row, columns.label)
        if label is None:
            raise DataError(f"{where}: the label is empty; fill in {columns.label!r} or leave the row out")
        identity = self._digest(text) if columns.id is None else recipe.cell(where, row, columns.id)
        if identity is None:
            raise DataError(f"{where}: the id is empty; fill in {columns.id!r}, or import without --id")
        first_place = self.place_of.setdefault(identity, where)
        if first_place != where:
            raise DataError(f"{where}: the id {identity!r} already occurs in {first_place}; ids must be unique")
        text, marked = recipe.choices_of(where, row, text)
        choices = None if marked is None else list(dict.fromkeys(marked.values()))
        if marked is not None and choices is not None:
            if match_choice(label, choices) is None:  # perhaps the letter or the number of a choice
                by_mark = {mark.casefold(): choice for mark, choice in marked.items()}
                label = by_mark.get(label.strip(" .)(").casefold(), label)
            label = self._meant(where, label, choices, "one of the choices", "correct one")
        elif self.labels is not None:
            label = self._meant(
                where, label, self.labels.values, "in the declared set", "correct it, or declare it with --labels"
            )
        rationales = {source: self._rationale(where, row, column) for source, column in columns.rationales.items()}
        value = {
            "id": identity,
            "text": text,
            "label": label,
            "rationales": {source: rationale for source, rationale in rationales.items() if rationale is not None},
            "choices": choices,
            "group": recipe.cell(where, row, columns.group) if columns.group else None,
            "meta": {name: _plain(row[name]) for name in columns.meta if not is_null(row.get(name))},
            "contrasts": self._contrasts(where, row, label, choices),
        }
        record = record_from_json(value, where)
        if columns.split is not None:
            self.given_splits[identity] = recipe.cell(where, row, columns.split) or ""
        first = self.first_label.setdefault(content_key(record), label)
        self.contradicting += match_choice(label, (first,)) is None
        for name in columns.text:
            cell = recipe.cell(where, row, name, join=True)
            if cell is not None and (cell.casefold() in NOT_AVAILABLE or SUSPICIOUS.fullmatch(cell)):
                self.suspicious[name][cell] += 1
        return record

    def _meant(self, where: str, label: str, known: Sequence[str], what: str, to_do: str) -> str:
        """The known label that a cell means, in whatever spelling.

        Raises:
            DataError: there is none, or more than one.
        """
        meant = match_choice(label, known)
        if meant is None:
            raise DataError(f"{where}: the label {label!r} is not {what} {listed(known)}; {to_do}")
        self.mended += meant != label
        return meant

    def _contrasts(self, where: str, row: Row, gold: str, choices: Sequence[str] | None) -> dict[str, dict[str, str]]:
        """Rationales for other labels than the gold one, by source and label.

        Raises:
            DataError: a cell that should have several is no object of label -> text, or has one for the gold label.
        """
        found: dict[str, dict[str, str]] = {}
        known = choices if choices is not None else self.labels.values if self.labels is not None else ()
        for name, column in self.columns.contrasts.items():
            source, of_label, label = name.partition("/")
            cell = {label: self._rationale(where, row, column)} if of_label else self._several(where, row, column)
            for given, text in cell.items():
                argued = match_choice(given, known) or given
                if text is None or not text.strip():
                    continue
                if argued != gold:
                    found.setdefault(source, {})[argued] = text
                elif of_label:  # one column for each label: in each row one of them is the gold one's
                    self.for_gold += 1
                else:
                    raise DataError(
                        f"{where}: {column!r} has a contrast for the row's own label {gold!r}; a contrast argues for "
                        "another label"
                    )
        return found

    def _several(self, where: str, row: Row, column: str) -> Mapping[str, str | None]:
        """The contrasts in a cell, by label."""
        cell = row.get(column)
        if isinstance(cell, str) and cell.strip():
            try:
                cell = parse_json(cell)
            except Malformed:
                cell = [cell]
        if is_null(cell) or cell == "":
            return {}
        if not isinstance(cell, dict) or not all(text is None or isinstance(text, str) for text in cell.values()):
            raise DataError(
                f"{where}: the contrasts in {column!r} are {str(row.get(column))[:60]!r}; expected an object of label "
                '-> text, as {"home care": "..."}, or one column for each label with SOURCE/LABEL=COL'
            )
        return cell

    def _rationale(self, where: str, row: Row, column: str) -> str | None:
        """The rationale in a cell; None also where the cell says that there is none."""
        rationale = self.recipe.cell(where, row, column, join=True)
        if rationale is not None and rationale.casefold() in NOT_AVAILABLE:
            self.not_available += 1
            return None
        return rationale

    def _digest(self, text: str) -> str:
        """An id that depends only on the text, numbered if the same text occurs again."""
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        self.repeated[digest] += 1
        return digest if self.repeated[digest] == 1 else f"{digest}-{self.repeated[digest]}"


def missing_column(table: Table, column: str) -> str:
    """The message for a column that a table should have."""
    found = table.columns()
    hint = ""
    if len(found) == 1:
        other = next((mark for mark in (";", "\t", "|", ",") if mark in found[0]), None)
        hint = f"; if the delimiter is {other!r}, give --delimiter" if other else ""
    return f"{table.path} has no column {column!r}; it has {listed(found)}{hint}"


def _plain(value: Any) -> Any:
    """Convert a value to JSON types: dates and decimals of Parquet become strings."""
    return json.loads(json.dumps(value, default=str))

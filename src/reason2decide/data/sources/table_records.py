"""Convert the rows of tables to records, each by itself, and count odd cells."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reason2decide.data.recipe import InputRecipe, is_null, listed
from reason2decide.data.records import LabelSet, Record, record_from_json
from reason2decide.data.sources.choices import match_choice
from reason2decide.data.sources.rows import Row
from reason2decide.data.sources.splitting import content_key
from reason2decide.data.sources.writing import Spooled, spooled
from reason2decide.errors import DataError, UserError
from reason2decide.syntax import Malformed, parse_json

# What tables write where there is nothing (pandas, SQL, Hive, R, spreadsheets), in lower case.
NOT_AVAILABLE = frozenset({"na", "n/a", "#n/a", "nan", "null", "none", "nil", "<na>", "\\n", "-", "--", "."})
# Short cells that seem to mean nothing too: errors of a spreadsheet, in any language, and marks alone.
SUSPICIOUS = re.compile(r"#[^\W\d_][^\s#]{0,11}[!?]?|[^\w\s]{1,5}")


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


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row that was read: its record, or the problem.

    `split` is the cell of the split column; `content` is the record's `content_key`.
    """

    record: Spooled | None
    split: str = ""
    content: str = ""
    problem: str = ""


@dataclass
class Noticed:
    """What was noticed of rows besides their records: corrected labels, rationales left out, suspicious cells."""

    mended: int = 0
    not_available: int = 0
    for_gold: int = 0
    suspicious: dict[str, Counter[str]] = field(default_factory=dict)  # cells by column

    def merge(self, other: Noticed) -> None:
        """Add what was noticed of other rows."""
        self.mended += other.mended
        self.not_available += other.not_available
        self.for_gold += other.for_gold
        for column, cells in other.suspicious.items():
            self.suspicious.setdefault(column, Counter()).update(cells)


@dataclass(frozen=True)
class RowReader:
    """Converts rows to records, each by itself: in any process, and in any order.

    Without a column of ids, a record's id is a digest of its text.
    """

    columns: Columns
    recipe: InputRecipe
    labels: LabelSet | None

    def __call__(self, rows: Sequence[tuple[str, Row] | DataError]) -> tuple[list[ReadRow], Noticed]:
        """Read rows, each with its place; what could not be read as a row passes through as a problem."""
        noticed = Noticed()
        return [self._read(row, noticed) for row in rows], noticed

    def _read(self, given: tuple[str, Row] | DataError, noticed: Noticed) -> ReadRow:
        if isinstance(given, DataError):
            return ReadRow(None, problem=str(given))
        where, row = given
        try:
            record = self._record(where, row, noticed)
        except DataError as error:
            return ReadRow(None, problem=str(error))
        split = self.columns.split and self.recipe.cell(where, row, self.columns.split)
        return ReadRow(spooled(where, record), split or "", content_key(record))

    def _record(self, where: str, row: Row, noticed: Noticed) -> Record:
        columns, recipe = self.columns, self.recipe
        text = recipe.text_of(where, row)
        label = recipe.cell(where, row, columns.label)
        if label is None:
            raise DataError(f"{where}: the label is empty; fill in {columns.label!r} or leave the row out")
        identity = _digest(text) if columns.id is None else recipe.cell(where, row, columns.id)
        if identity is None:
            raise DataError(f"{where}: the id is empty; fill in {columns.id!r}, or import without --id")
        text, marked = recipe.choices_of(where, row, text)
        choices = None if marked is None else list(dict.fromkeys(marked.values()))
        if marked is not None and choices is not None:
            if match_choice(label, choices) is None:  # perhaps the letter or the number of a choice
                by_mark = {mark.casefold(): choice for mark, choice in marked.items()}
                label = by_mark.get(label.strip(" .)(").casefold(), label)
            label = self._meant(where, label, choices, "one of the choices", "correct one", noticed)
        elif self.labels is not None:
            label = self._meant(
                where,
                label,
                self.labels.values,
                "in the declared set",
                "correct it, or declare it with --labels",
                noticed,
            )
        rationales = {
            source: self._rationale(where, row, column, noticed) for source, column in columns.rationales.items()
        }
        value = {
            "id": identity,
            "text": text,
            "label": label,
            "rationales": {source: rationale for source, rationale in rationales.items() if rationale is not None},
            "choices": choices,
            "group": recipe.cell(where, row, columns.group) if columns.group else None,
            "meta": {name: plain(row[name]) for name in columns.meta if not is_null(row.get(name))},
            "contrasts": self._contrasts(where, row, label, choices, noticed),
        }
        record = record_from_json(value, where)
        for name in columns.text:
            cell = recipe.cell(where, row, name, join=True)
            if cell is not None and (cell.casefold() in NOT_AVAILABLE or SUSPICIOUS.fullmatch(cell)):
                noticed.suspicious.setdefault(name, Counter())[cell] += 1
        return record

    def _meant(self, where: str, label: str, known: Sequence[str], what: str, to_do: str, noticed: Noticed) -> str:
        """The known label that a cell means, in whatever spelling.

        Raises:
            DataError: there is none, or more than one.
        """
        meant = match_choice(label, known)
        if meant is None:
            raise DataError(f"{where}: the label {label!r} is not {what} {listed(known)}; {to_do}")
        noticed.mended += meant != label
        return meant

    def _contrasts(
        self, where: str, row: Row, gold: str, choices: Sequence[str] | None, noticed: Noticed
    ) -> dict[str, dict[str, str]]:
        """Rationales for other labels than the gold one, by source and label.

        Raises:
            DataError: a cell that should have several is no object of label -> text, or has one for the gold label.
        """
        found: dict[str, dict[str, str]] = {}
        known = choices if choices is not None else self.labels.values if self.labels is not None else ()
        for name, column in self.columns.contrasts.items():
            source, of_label, label = name.partition("/")
            cell = (
                {label: self._rationale(where, row, column, noticed)} if of_label else self._several(where, row, column)
            )
            for given, text in cell.items():
                argued = match_choice(given, known) or given
                if text is None or not text.strip():
                    continue
                if argued != gold:
                    found.setdefault(source, {})[argued] = text
                elif of_label:  # one column for each label: in each row one of them is the gold one's
                    noticed.for_gold += 1
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

    def _rationale(self, where: str, row: Row, column: str, noticed: Noticed) -> str | None:
        """The rationale in a cell; None also where the cell says that there is none."""
        rationale = self.recipe.cell(where, row, column, join=True)
        if rationale is not None and rationale.casefold() in NOT_AVAILABLE:
            noticed.not_available += 1
            return None
        return rationale


def _digest(text: str) -> str:
    """An id that depends only on the text."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Convert a value to JSON types: dates and decimals of Parquet become strings."""
    return json.loads(json.dumps(value, default=str))

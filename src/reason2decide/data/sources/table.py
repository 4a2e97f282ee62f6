"""Import records from tables: CSV, TSV, JSON Lines and Parquet files whose columns the user names."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reason2decide.data.defaults import SHARES
from reason2decide.data.records import LabelSet, Record, record_from_json
from reason2decide.data.sources.choices import lift_choices, match_choice, spellings
from reason2decide.data.sources.rows import Row, Table, open_table
from reason2decide.data.sources.splitting import Member, content_key, split_records
from reason2decide.data.sources.writing import Imported, files_provenance, write_import
from reason2decide.errors import DataError, UserError
from reason2decide.syntax import Malformed, parse_json

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What tables write where there is nothing (pandas, SQL, Hive, R, spreadsheets), in lower case.
NOT_AVAILABLE = frozenset({"na", "n/a", "#n/a", "nan", "null", "none", "nil", "<na>", "\\n", "-", "--", "."})
VALIDATION_OF_TRAIN = 0.1  # ours: share of train that becomes validation if a split column has none


@dataclass(frozen=True)
class Columns:
    """The columns of a table to import. `rationales` maps a source to its column.

    `contrasts` maps a source to a column with rationales for other labels than the gold one (an object of label ->
    text, or that as JSON), or "SOURCE/LABEL" to a column with the one for that label.
    `choices` names a column with each record's choices (a list, a JSON list, or "A|B|C"); `choices_in_text` extracts
    them from the text instead. `meta` columns are kept as they are; all others are dropped.

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

    def __post_init__(self) -> None:
        if not self.text:
            raise UserError("no text column was given; name at least one with --text")
        if self.choices and self.choices_in_text:
            raise UserError("choices were requested both from a column and from the text; give one of the two")

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


# Columns of the files that the authors of Reason2Decide publish.
AUTHORS_COLUMNS = Columns(text=("question",), label="label", rationales={"llm": "rationale"})


def import_table(
    paths: Sequence[Path],
    out: Path,
    columns: Columns | None = None,
    *,
    labels: LabelSet | None = None,
    choices_in_text: bool = False,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    name: str | None = None,
    force: bool = False,
) -> Imported:
    """Import tables as one dataset folder.

    `columns` None means the authors' columns: `question`, `label`, `rationale` (source `llm`). `labels` None means the
    labels found, sorted, not ordinal; if records have choices, the label set is open. Without an id column, ids are
    digests of the text, so they stay the same when rows are moved or added. If a split column has no validation rows,
    they are taken from train.

    Raises:
        DataError: a file, column or row cannot be used; the message names the row.
        UserError: impossible options.
        OutputError: `out` exists and `force` is false.
    """
    tables = [open_table(path, delimiter=delimiter, encoding=encoding) for path in paths]
    columns = columns or _authors_columns(tables)
    if choices_in_text:
        columns = replace(columns, choices_in_text=True)
    return import_rows(
        tables,
        out,
        columns,
        files_provenance(paths),
        labels=labels,
        shares=shares,
        seed=seed,
        name=name,
        force=force,
    )


def import_rows(
    tables: Sequence[Table],
    out: Path,
    columns: Columns,
    files: Sequence[Mapping[str, str]] = (),
    *,
    labels: LabelSet | None = None,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    name: str | None = None,
    force: bool = False,
) -> Imported:
    """Import the rows of open tables, from files or from memory, like `import_table`.

    Args:
        files: names and hashes of what the tables were read from, for `dataset.toml`.
    """
    if columns.choices or columns.choices_in_text:
        if labels is not None:
            raise UserError("a label set and choices per record were both given; give one of the two")
        labels = LabelSet()
    given_splits: dict[str, str] = {}
    notes: list[str] = []

    def assign(members: Sequence[Member]) -> Mapping[str, str]:
        if columns.split is None:
            return split_records(members, shares, seed)
        return _with_validation(members, _known_splits(given_splits, columns.split), seed, notes)

    def spelling(counts: Mapping[str, int]) -> Mapping[str, str]:
        if labels is not None:
            return {}
        found = spellings(counts)
        if found:
            shown = ", ".join(f"{wrong!r} -> {right!r} ({counts[wrong]})" for wrong, right in list(found.items())[:5])
            notes.append(f"labels that differ only in their spelling were made one: {shown}")
        missing = [label for label in counts if label.casefold() in NOT_AVAILABLE]
        notes.extend(f"{counts[label]} records have the label {label!r}, which is kept as a label" for label in missing)
        return found

    reader = _Reader(columns, labels, given_splits)
    dataset = write_import(
        out,
        reader.records(tables),
        assign,
        name=name or out.name,
        task=f"decide {columns.label} from {', '.join(columns.text)}",
        labels=lambda found: labels or LabelSet(tuple(sorted(found))),
        provenance={
            "importer": "table",
            "files": [dict(file) for file in files],
            "columns": _written(columns),
            "seed": seed,
            **({} if columns.split else {"shares": list(shares.values())}),
        },
        spelling=spelling,
        force=force,
    )
    if reader.mended:
        notes.append(f"{reader.mended} labels differed from the known ones in their spelling and were corrected")
    if reader.not_available:
        notes.append(f"{reader.not_available} rationales say only that there is none (NA, null, ...) and were left out")
    if reader.for_gold:
        notes.append(f"{reader.for_gold} contrasts are for the gold label of their row and were left out")
    if reader.contradicting:
        notes.append(
            f"{reader.contradicting} records have the text of an earlier one with another label; "
            "`r2d data check` names some"
        )
    return Imported(dataset, tuple(notes))


def _authors_columns(tables: Sequence[Table]) -> Columns:
    found = tables[0].columns()
    if not {"question", "label", "rationale"} <= set(found):
        raise UserError(
            f"{tables[0].path} lacks the default columns question, label and rationale; it has {_listed(found)}; "
            "name the text and label columns with --text and --label"
        )
    return AUTHORS_COLUMNS


class _Reader:
    """Convert rows to records, and collect what is known only at the end: given splits and corrected labels."""

    def __init__(self, columns: Columns, labels: LabelSet | None, given_splits: dict[str, str]) -> None:
        self.columns, self.labels, self.given_splits = columns, labels, given_splits
        self.mended = self.not_available = self.for_gold = 0
        self.repeated: Counter[str] = Counter()
        self.first_label: dict[str, str] = {}  # by content
        self.contradicting = 0

    def records(self, tables: Sequence[Table]) -> Iterator[tuple[str, Record]]:
        columns = self.columns
        wanted = {*columns.required, *columns.optional}
        unseen = set(columns.optional)
        for table in tables:
            present = set(table.columns())
            for column in columns.required:
                if column not in present:
                    raise DataError(_missing_column(table, column))
            for place, row in table.rows(wanted):
                unseen -= row.keys()
                yield str(place), self._record(str(place), row)
        if unseen:
            raise DataError(_missing_column(tables[0], min(unseen)))

    def _record(self, where: str, row: Row) -> Record:
        columns = self.columns
        text = self._text(where, row)
        if not text:
            raise DataError(f"{where}: the text is empty; fill in {_listed(columns.text)} or leave the row out")
        label = _string(where, row, columns.label)
        if label is None:
            raise DataError(f"{where}: the label is empty; fill in {columns.label!r} or leave the row out")
        identity = self._digest(text) if columns.id is None else _string(where, row, columns.id)
        if identity is None:
            raise DataError(f"{where}: the id is empty; fill in {columns.id!r}, or import without --id")
        text, choices = self._choices(where, row, text)
        if choices is not None:
            label = self._meant(where, label, choices, "one of the choices", "correct one")
        elif self.labels is not None:
            label = self._meant(
                where, label, self.labels.values, "in the declared set", "correct it, or declare it with --labels"
            )
        if columns.split is not None:
            self.given_splits[identity] = _string(where, row, columns.split) or ""
        rationales = {source: self._rationale(where, row, column) for source, column in columns.rationales.items()}
        value = {
            "id": identity,
            "text": text,
            "label": label,
            "rationales": {source: rationale for source, rationale in rationales.items() if rationale is not None},
            "choices": choices,
            "group": _string(where, row, columns.group) if columns.group else None,
            "meta": {name: _plain(row[name]) for name in columns.meta if not _is_null(row.get(name))},
            "contrasts": self._contrasts(where, row, label, choices),
        }
        record = record_from_json(value, where)
        first = self.first_label.setdefault(content_key(record), label)
        self.contradicting += match_choice(label, (first,)) is None
        return record

    def _meant(self, where: str, label: str, known: Sequence[str], what: str, to_do: str) -> str:
        """The known label that a cell means, in whatever spelling.

        Raises:
            DataError: there is none, or more than one.
        """
        meant = match_choice(label, known)
        if meant is None:
            raise DataError(f"{where}: the label {label!r} is not {what} {_listed(known)}; {to_do}")
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
        if _is_null(cell) or cell == "":
            return {}
        if not isinstance(cell, dict) or not all(text is None or isinstance(text, str) for text in cell.values()):
            raise DataError(
                f"{where}: the contrasts in {column!r} are {str(row.get(column))[:60]!r}; expected an object of label "
                '-> text, as {"home care": "..."}, or one column for each label with SOURCE/LABEL=COL'
            )
        return cell

    def _rationale(self, where: str, row: Row, column: str) -> str | None:
        """The rationale in a cell; None also where the cell says that there is none."""
        rationale = _string(where, row, column)
        if rationale is not None and rationale.casefold() in NOT_AVAILABLE:
            self.not_available += 1
            return None
        return rationale

    def _text(self, where: str, row: Row) -> str:
        """The text column, or several, each after its name, without empty ones."""
        names = self.columns.text
        parts = [(name, _string(where, row, name)) for name in names]
        return "\n".join((f"{name}: {part}" if len(names) > 1 else part) for name, part in parts if part is not None)

    def _digest(self, text: str) -> str:
        """An id that depends only on the text, numbered if the same text occurs again."""
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        self.repeated[digest] += 1
        return digest if self.repeated[digest] == 1 else f"{digest}-{self.repeated[digest]}"

    def _choices(self, where: str, row: Row, text: str) -> tuple[str, list[str] | None]:
        if self.columns.choices_in_text:
            lifted = lift_choices(text)
            if lifted is None:
                raise DataError(
                    f"{where}: no choices in the text; expected 'Answer Choices:' and at least two, "
                    "as 'A. ...', 'B. ...' or '(a) ...', '(b) ...'"
                )
            return lifted[0], list(lifted[1])
        if self.columns.choices is None:
            return text, None
        listed = row.get(self.columns.choices)
        if isinstance(listed, str):
            try:
                listed = parse_json(listed) if listed.lstrip().startswith("[") else listed.split("|")
            except Malformed:
                listed = None
        if not isinstance(listed, list) or not all(isinstance(choice, str) for choice in listed):
            raise DataError(
                f"{where}: the choices in {self.columns.choices!r} are {str(row.get(self.columns.choices))[:60]!r}; "
                'expected a list of strings, as ["a", "b"] or a|b'
            )
        return text, list(dict.fromkeys(choice.strip() for choice in listed))


def _known_splits(given: Mapping[str, str], column: str) -> dict[str, str]:
    unknown = Counter(value for value in given.values() if value.lower() not in SPLIT_NAMES)
    if unknown:
        shown = ", ".join(f"{value!r} ({count})" for value, count in unknown.most_common(5))
        raise DataError(f"the split column {column!r} contains {shown}; expected train, validation (val, dev) or test")
    return {id_: SPLIT_NAMES[value.lower()] for id_, value in given.items()}


def _with_validation(
    members: Sequence[Member], splits: dict[str, str], seed: int, notes: list[str]
) -> Mapping[str, str]:
    """The given splits; if validation has no records, it gets a tenth of train."""
    counts = Counter(splits.values())
    for split in ("train", "test"):
        if not counts[split]:
            raise DataError(
                f"the split column puts no record in {split} ({dict(counts)}); import all parts together, "
                "or divide the data with --split instead"
            )
    if counts["validation"]:
        return splits
    train = [item for item in members if splits[item.id] == "train"]
    parts = split_records(train, {"train": 1 - VALIDATION_OF_TRAIN, "validation": VALIDATION_OF_TRAIN}, seed)
    notes.append("the split column has no validation records: a tenth of train became validation")
    return splits | parts


def _string(where: str, row: Row, column: str) -> str | None:
    """A cell as a string without surrounding white space; None if it is null or empty."""
    value = row.get(column)
    if _is_null(value):
        return None
    if isinstance(value, (list, dict)):
        raise DataError(f"{where}: {column!r} contains a {type(value).__name__}; expected text or a number")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip() or None


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    """Convert a value to JSON types: dates and decimals of Parquet become strings."""
    return json.loads(json.dumps(value, default=str))


def _missing_column(table: Table, column: str) -> str:
    found = table.columns()
    hint = ""
    if len(found) == 1:
        other = next((mark for mark in (";", "\t", "|", ",") if mark in found[0]), None)
        hint = f"; if the delimiter is {other!r}, give --delimiter" if other else ""
    return f"{table.path} has no column {column!r}; it has {_listed(found)}{hint}"


def _listed(values: Sequence[str]) -> str:
    return ", ".join(repr(value) for value in values[:20]) + (", ..." if len(values) > 20 else "")


def _written(columns: Columns) -> dict[str, Any]:
    """The columns as written to `dataset.toml`, without absent ones."""
    values = {name: getattr(columns, name) for name in Columns.__dataclass_fields__}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items() if value}

"""Import records from tables: CSV, TSV, JSON Lines and Parquet files whose columns the user names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reason2decide.data.defaults import SHARES
from reason2decide.data.recipe import InputRecipe, listed
from reason2decide.data.records import LabelSet
from reason2decide.data.sources.choices import spellings
from reason2decide.data.sources.record_reader import RecordReader
from reason2decide.data.sources.rows import Table, open_table
from reason2decide.data.sources.splitting import Member, split_records
from reason2decide.data.sources.table_records import NOT_AVAILABLE, Columns
from reason2decide.data.sources.writing import Imported, files_provenance, write_import
from reason2decide.errors import DataError, UserError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SKIPPED = "skipped.jsonl"
OF_TRAIN = 0.1  # ours: share of train that becomes validation, and test, if a split column has none


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
    missing: Sequence[str] = (),
    skip_bad: bool = False,
    name: str | None = None,
    force: bool = False,
) -> Imported:
    """Import tables as one dataset folder.

    `columns` None means the authors' columns: `question`, `label`, `rationale` (source `llm`). `labels` None means the
    labels found, sorted, not ordinal; if records have choices, the label set is open. Without an id column, ids are
    digests of the text, so they stay the same when rows are moved or added. If a split column has no validation or no
    test rows, they are taken from train. With `skip_bad`, rows that cannot be used are left out and written to
    `skipped.jsonl` in the folder; otherwise all of them are told at once.

    Raises:
        DataError: a file, column or row cannot be used; the message names the rows.
        UserError: impossible options.
        OutputError: `out` exists and `force` is false.
    """
    tables = [open_table(path, delimiter=delimiter, encoding=encoding) for path in paths]
    columns = columns or _authors_columns(tables)
    if choices_in_text:
        columns = replace(columns, choices_in_text=True)
    if missing:
        columns = replace(columns, missing=tuple(missing))
    return import_rows(
        tables,
        out,
        columns,
        files_provenance(paths),
        labels=labels,
        shares=shares,
        seed=seed,
        recipe=columns.recipe(delimiter, encoding),
        skip_bad=skip_bad,
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
    recipe: InputRecipe | None = None,
    skip_bad: bool = False,
    name: str | None = None,
    force: bool = False,
) -> Imported:
    """Import the rows of open tables, from files or from memory, like `import_table`.

    Args:
        files: names and hashes of what the tables were read from, for `dataset.toml`.
        recipe: how texts are made, with the format of the files; None: of the columns, from memory.
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
        return _completed(members, _known_splits(given_splits, columns.split), seed, notes)

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

    recipe = recipe or columns.recipe()
    reader = RecordReader(columns, recipe, labels, given_splits, skip_bad=skip_bad)
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
            **({"skipped": len(reader.bad)} if reader.bad else {}),
        },
        recipe=recipe,
        spelling=spelling,
        force=force,
    )
    if reader.bad:
        file = dataset.path / SKIPPED
        file.write_text("".join(json.dumps(bad, ensure_ascii=False) + "\n" for bad in reader.bad), "utf-8")
        notes.append(f"{len(reader.bad)} rows were skipped; {file} has them, each with what is wrong with it")
    return Imported(dataset, (*notes, *reader.notes()))


def _authors_columns(tables: Sequence[Table]) -> Columns:
    found = tables[0].columns()
    if not {"question", "label", "rationale"} <= set(found):
        raise UserError(
            f"{tables[0].path} lacks the default columns question, label and rationale; it has {listed(found)}; "
            "name the text and label columns with --text and --label"
        )
    return AUTHORS_COLUMNS


def _known_splits(given: Mapping[str, str], column: str) -> dict[str, str]:
    unknown = Counter(value for value in given.values() if value.lower() not in SPLIT_NAMES)
    if unknown:
        shown = ", ".join(f"{value!r} ({count})" for value, count in unknown.most_common(5))
        raise DataError(f"the split column {column!r} contains {shown}; expected train, validation (val, dev) or test")
    return {id_: SPLIT_NAMES[value.lower()] for id_, value in given.items()}


def _completed(members: Sequence[Member], splits: dict[str, str], seed: int, notes: list[str]) -> Mapping[str, str]:
    """The given splits; validation and test, if they have no records, get a tenth of train each."""
    counts = Counter(splits.values())
    if not counts["train"]:
        raise DataError(
            f"the split column puts no record in train ({dict(counts)}); import all parts together, "
            "or divide the data with --split instead"
        )
    lacking = [split for split in ("validation", "test") if not counts[split]]
    if not lacking:
        return splits
    train = [item for item in members if splits[item.id] == "train"]
    shares = {"train": 1 - OF_TRAIN * len(lacking), **dict.fromkeys(lacking, OF_TRAIN)}
    notes += [f"the split column has no {split} records: a tenth of train became {split}" for split in lacking]
    return splits | split_records(train, shares, seed)


def _written(columns: Columns) -> dict[str, Any]:
    """The columns as written to `dataset.toml`, without absent ones."""
    values = {name: getattr(columns, name) for name in Columns.__dataclass_fields__}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items() if value}

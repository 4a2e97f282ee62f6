"""Cases to decide on, read line by line: a bad one is reported with its place and, unless strict, passed over."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reason2decide.errors import DataError
from reason2decide.records import Record, record_from_json
from reason2decide.sources.rows import open_table


def read_cases(
    path: Path, on_bad: Callable[[DataError], None], *, text_column: str = "text", encoding: str = "utf-8"
) -> Iterator[Record]:
    """Yield the records of a `.jsonl` or `.csv` file, or of standard input (`-`, JSON lines).

    A case needs a text; its id is its line's number where it brings none. Columns of a CSV file that a record does
    not have are ignored.

    Raises:
        DataError: the file is missing, empty, of another kind, or a CSV without the text column.
    """
    if path == Path("-"):
        yield from _json_cases(enumerate(sys.stdin, 1), "standard input", on_bad)
    elif path.suffix in (".jsonl", ".json"):
        if not path.is_file():
            raise DataError(f"{path} is not a file; expected cases as JSON lines or CSV, or - for standard input")
        with path.open(encoding=encoding, errors="surrogateescape") as stream:
            yield from _json_cases(enumerate(stream, 1), str(path), on_bad)
    else:
        yield from _table_cases(path, text_column, encoding, on_bad)


def _json_cases(lines: Iterator[tuple[int, str]], name: str, on_bad: Callable[[DataError], None]) -> Iterator[Record]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
            if isinstance(value, dict):
                value.setdefault("id", str(number))
            yield record_from_json(value, where)
        except DataError as error:
            on_bad(error)


def _table_cases(path: Path, text_column: str, encoding: str, on_bad: Callable[[DataError], None]) -> Iterator[Record]:
    table = open_table(path, encoding=encoding)
    columns = table.columns()
    if text_column not in columns:
        raise DataError(f"{path} has no column {text_column!r}; it has {', '.join(columns)}; name one with --text")
    for number, (where, row) in enumerate(table.rows({text_column, "id"}), 1):
        value: dict[str, Any] = {"id": str(row.get("id") or number), "text": row.get(text_column) or ""}
        try:
            yield record_from_json(value, where)
        except DataError as error:
            on_bad(error)

"""Read cases to decide on line by line; a bad line is reported with its place and, unless strict, skipped."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from reason2decide.data.records import RECORD_KEYS, Record, record_from_json
from reason2decide.data.sources.rows import known_encoding
from reason2decide.data.sources.writing import require_file
from reason2decide.errors import DataError

Row = tuple[int, dict[str, Any] | str]  # line number, and the row or the reason why it cannot be read


def read_cases(
    path: Path, on_bad: Callable[[DataError], None], *, text_column: str = "text", encoding: str = "utf-8"
) -> Iterator[Record]:
    """Yield the records of a `.jsonl`, `.csv` or `.tsv` file, or of standard input (`-`, JSON lines).

    A case needs a text; without an id it gets its line number. Columns that a record does not have are ignored. A
    line that is not a case, or repeats an id, goes to `on_bad`, and reading continues.

    Raises:
        DataError: the file is missing, of another kind, or a table without the text column.
        UserError: unknown encoding.
    """
    encoding = known_encoding(encoding)
    if path == Path("-"):
        rows = _json_rows(sys.stdin)
    else:
        require_file(path)
        if path.suffix in (".jsonl", ".json"):
            rows = _json_file(path, encoding)
        elif path.suffix in (".csv", ".tsv"):
            rows = _table_rows(path, text_column, encoding)
        else:
            raise DataError(f"{path} is not a .jsonl, .csv or .tsv file; convert it, or pipe JSON lines to -")
    seen: set[str] = set()
    name = "standard input" if path == Path("-") else str(path)
    for number, row in rows:
        where = f"{name}, line {number}"
        try:
            record = _case(row, where, number, text_column, encoding)
            if record.id in seen:
                raise DataError(f"{where}: the id {record.id!r} occurs earlier; ids must be unique")
        except DataError as error:
            on_bad(error)
            continue
        seen.add(record.id)
        yield record


def _case(row: dict[str, Any] | str, where: str, number: int, text_column: str, encoding: str) -> Record:
    if isinstance(row, str):
        raise DataError(f"{where}: {row}")
    value = {key: value for key, value in row.items() if key in RECORD_KEYS and value not in (None, "")}
    value["text"] = row.get(text_column) or ""
    value["id"] = str(value.get("id", number))
    text = value["text"]
    if isinstance(text, str) and any("\udc80" <= character <= "\udcff" for character in text):
        raise DataError(f"{where}: the text is not {encoding.removesuffix('-sig')}; give the file's --encoding")
    return record_from_json(value, where)


def _json_file(path: Path, encoding: str) -> Iterator[Row]:
    with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as stream:
        yield from _json_rows(stream)


def _json_rows(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"not valid JSON ({error.msg} at column {error.colno})"
        else:
            yield number, value if isinstance(value, dict) else "expected a JSON object with a text"


def _table_rows(path: Path, text_column: str, encoding: str) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)  # the module's limit of 128 KiB is shorter than some notes
    with path.open(encoding=encoding, errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        header = next(reader, [])
        if text_column not in header:
            raise DataError(
                f"{path} has no column {text_column!r}; it has {', '.join(header) or 'none'}; name one with --text"
            )
        for cells in reader:
            if len(cells) == len(header):
                # Only id and text are read from a table: its other cells are text, not choices or rationales.
                row = dict(zip(header, cells, strict=True))
                yield reader.line_num, {key: row[key] for key in {"id", text_column} & row.keys()}
            elif cells:
                yield reader.line_num, f"{len(cells)} cells, but the header has {len(header)}"

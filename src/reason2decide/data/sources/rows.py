"""Read the rows of CSV, TSV, JSON Lines and Parquet files one at a time."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reason2decide.data.sources.writing import require_file
from reason2decide.errors import DataError, UserError, require

Row = dict[str, Any]
ROWS_PER_BATCH = 1024  # ours: large enough for Parquet to be fast, small enough for memory


class Table(Protocol):
    """A file of rows: the names of its columns, and its rows, each with its place in the file."""

    path: Path

    def columns(self) -> list[str]: ...
    def rows(self, columns: Collection[str]) -> Iterator[tuple[str, Row]]: ...


def open_table(path: Path, *, delimiter: str | None = None, encoding: str = "utf-8") -> Table:
    """Open a file as a `Table`, with the format given by its extension.

    `delimiter` None means a comma for .csv and a tab for .tsv. UTF-8 files may begin with a byte order mark.

    Raises:
        DataError: the file is missing, empty or a folder.
        UserError: unknown extension, encoding or delimiter.
    """
    require_file(path)
    if delimiter is not None:
        delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise UserError(f"unknown delimiter {delimiter!r}; expected one character such as ';' or '|', or 'tab'")
    encoding = known_encoding(encoding)
    match path.suffix.lower():
        case ".csv":
            return CsvTable(path, delimiter or ",", encoding)
        case ".tsv":
            return CsvTable(path, delimiter or "\t", encoding)
        case ".jsonl":
            return JsonlTable(path, encoding)
        case ".parquet":
            return ParquetTable(path)
    raise UserError(
        f"{path} has the extension {path.suffix!r}; expected .csv, .tsv, .jsonl or .parquet (convert or rename it)"
    )


def known_encoding(encoding: str) -> str:
    """The name Python reads files of this encoding under; UTF-8 may begin with a byte order mark.

    Raises:
        UserError: Python does not know it.
    """
    try:
        "".encode(encoding)
    except (LookupError, UnicodeError):
        raise UserError(
            f"unknown encoding {encoding!r}; expected one that Python knows, such as utf-8, cp1252, cp1254 or latin-1"
        ) from None
    return "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding


@dataclass
class CsvTable:
    """CSV or TSV with a header line; quoted cells may contain the delimiter and line breaks."""

    path: Path
    delimiter: str
    encoding: str

    def columns(self) -> list[str]:
        with self.path.open(encoding=self.encoding, newline="") as stream, _decoding(self.path, self.encoding):
            return self._header(self._reader(stream))

    def rows(self, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
        with self.path.open(encoding=self.encoding, newline="") as stream, _decoding(self.path, self.encoding):
            reader = self._reader(stream)
            header = self._header(reader)
            number = 0
            try:
                for cells in reader:
                    if not cells:
                        continue
                    number += 1
                    where = f"{self.path}, row {number} (line {reader.line_num})"
                    if len(cells) != len(header):
                        raise DataError(
                            f"{where}: {len(cells)} cells, but the header has {len(header)}; "
                            "quote the cells that contain the delimiter"
                        )
                    yield where, {name: cell for name, cell in zip(header, cells, strict=True) if name in columns}
            except csv.Error as error:
                raise DataError(
                    f"{self.path}, row {number + 1} (line {reader.line_num}): {error}; check the quotation marks"
                ) from None

    def _reader(self, stream: Any) -> Any:
        csv.field_size_limit(1 << 30)  # the module's limit of 128 KiB is shorter than some notes
        return csv.reader(stream, delimiter=self.delimiter, strict=True)

    def _header(self, reader: Any) -> list[str]:
        try:
            header: list[str] = next((cells for cells in reader if cells), [])
        except csv.Error as error:
            raise DataError(f"{self.path}, header: {error}; check the quotation marks") from None
        repeated = [name for name in header if header.count(name) > 1]
        if repeated:
            raise DataError(f"{self.path} has two columns named {repeated[0]!r}; rename one of them")
        if not header:
            raise DataError(f"{self.path} is empty; expected a header line of column names, then rows")
        return header


@dataclass
class JsonlTable:
    """One JSON object per line; a key may be absent from some of them."""

    path: Path
    encoding: str

    def columns(self) -> list[str]:
        return next((list(row) for _, row in self._objects()), [])

    def rows(self, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
        for where, row in self._objects():
            yield where, {name: value for name, value in row.items() if name in columns}

    def _objects(self) -> Iterator[tuple[str, Row]]:
        # Only a line feed ends a line: other line separators may occur inside a JSON string.
        with self.path.open(encoding=self.encoding, newline="\n") as stream, _decoding(self.path, self.encoding):
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                where = f"{self.path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{where}: not valid JSON ({error.msg} at column {error.colno}); expected one object per line"
                    ) from None
                if not isinstance(row, dict):
                    raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
                yield where, row


@dataclass
class ParquetTable:
    """A Parquet file, read in batches and only in the requested columns."""

    path: Path

    def columns(self) -> list[str]:
        return list(self._open().schema_arrow.names)

    def rows(self, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
        file = self._open()
        wanted = [name for name in file.schema_arrow.names if name in columns]
        number = 0
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{self.path}, row {number}", row

    def _open(self) -> Any:
        parquet = require("pyarrow.parquet", "parquet")
        try:
            return parquet.ParquetFile(self.path)
        except ValueError as error:  # pyarrow.ArrowInvalid is one
            raise DataError(f"{self.path} is not a Parquet file: {error}") from None


@dataclass
class MemoryTable:
    """Rows already in memory: objects by column name; a key may be absent from some of them."""

    path: Path  # its name in messages
    content: Sequence[Mapping[str, Any]]

    def columns(self) -> list[str]:
        return list(dict.fromkeys(str(name) for row in self.content for name in row))

    def rows(self, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
        for number, row in enumerate(self.content, 1):
            yield f"{self.path}, row {number}", {name: value for name, value in row.items() if name in columns}


@contextlib.contextmanager
def _decoding(path: Path, encoding: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{path} is not {encoding.removesuffix('-sig')}: it contains the byte 0x{byte:02x} ({error.reason}); "
            "give its encoding with --encoding, such as cp1252 (Western), cp1254 (Turkish) or utf-16"
        ) from None
    except UnicodeError as error:
        raise DataError(f"{path} is not {encoding}: {error}; give its encoding with --encoding") from None

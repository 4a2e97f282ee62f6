"""Read the rows of CSV, TSV, JSON, JSON Lines and Parquet files one at a time, strictly.

A file whose rows cannot be told apart, such as one with a quotation mark that is never closed, is refused: every row
after the mistake would be swallowed. A single bad row goes to `on_bad`.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from reason2decide.data.sources.writing import require_file
from reason2decide.errors import DataError, UserError, require
from reason2decide.syntax import Malformed, parse_json

Row = dict[str, Any]
OnBad = Callable[[DataError], None]
ROWS_PER_BATCH = 1024  # ours: large enough for Parquet to be fast, small enough for memory
DELIMITERS = ",;\t|"  # ours: those that a header is tried with
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
FORMATS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


class Place(NamedTuple):
    """Where a row stands: words for messages, and its number, which is its line where the format has lines."""

    words: str
    number: int

    def __str__(self) -> str:
        return self.words


class BadRow(DataError):
    """A row that cannot be used: where it stands, and what is wrong with it."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place, self.problem = place, problem

    def __reduce__(self) -> tuple[type[BadRow], tuple[Place, str]]:
        return BadRow, (self.place, self.problem)  # else a copy, as another process gets, would lack the place


def stop(error: DataError) -> None:
    """Refuse the first bad row; the default of `Table.rows`."""
    raise error


class Table(Protocol):
    """A file of rows: the names of its columns, and its rows, each with its place in the file."""

    path: Path

    def columns(self) -> list[str]: ...
    def rows(self, columns: Collection[str], on_bad: OnBad = stop) -> Iterator[tuple[Place, Row]]: ...


def open_table(path: Path, *, delimiter: str | None = None, encoding: str = "utf-8") -> Table:
    """Open a file as a `Table`, with the format given by its extension.

    `delimiter` None means the one that the header shows (`guessed_delimiter`). UTF-8 files may begin with a byte order
    mark.

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
        case ".csv" | ".tsv":
            return CsvTable(path, delimiter, encoding)
        case ".json" | ".jsonl":
            return JsonTable(path, encoding)
        case ".parquet":
            return ParquetTable(path)
    raise UserError(f"{path} has the extension {path.suffix!r}; expected {FORMATS} (convert or rename it)")


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


def guessed_delimiter(header: str, default: str) -> str:
    """The delimiter that divides a header line into most columns; the default of equals.

    Raises:
        csv.Error: the line has a quotation mark out of place.
    """
    counts = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in DELIMITERS}
    return max(counts, key=lambda mark: (counts[mark], mark == default))


@dataclass
class CsvTable:
    """CSV or TSV with a header line; quoted cells may contain the delimiter and line breaks.

    As spreadsheets write them, a file may begin with a line `sep=;`, and have columns without a name and rows without
    a value: both are left out.
    """

    path: Path
    delimiter: str | None
    encoding: str

    def columns(self) -> list[str]:
        with self._open() as (reader, _):
            return [name for name in self._header(reader) if name]

    def rows(self, columns: Collection[str], on_bad: OnBad = stop) -> Iterator[tuple[Place, Row]]:
        with self._open() as (reader, lines_before):
            header = self._header(reader)
            number, read = 0, reader.line_num
            try:
                for cells in reader:
                    line, read = lines_before + read + 1, reader.line_num
                    if not any(cell.strip() for cell in cells):
                        continue
                    number += 1
                    place = Place(f"{self.path}, row {number} (line {line})", line)
                    while len(cells) > len(header) and not cells[-1].strip():
                        cells.pop()
                    if len(cells) != len(header):
                        hint = "some are missing, or the line is broken"
                        if len(cells) > len(header):
                            hint = "quote the cells that contain the delimiter"
                        on_bad(BadRow(place, f"{len(cells)} cells, but the header has {len(header)}; {hint}"))
                        continue
                    yield place, {name: cell for name, cell in zip(header, cells, strict=True) if name in columns}
            except csv.Error as error:
                raise DataError(
                    f"{self.path}, row {number + 1} (line {lines_before + read + 1}): {error}; "
                    "check the quotation marks from there on"
                ) from None

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, int]]:
        """A reader of the lines from the header on, and the number of lines before it."""
        csv.field_size_limit(1 << 30)  # the module's limit of 128 KiB is shorter than some notes
        with self.path.open(encoding=self.encoding, newline="") as stream, _decoding(self.path, self.encoding):
            delimiter, first = self.delimiter, stream.readline()
            skipped = first.lower().startswith("sep=") and len(first.strip("\r\n")) == len("sep=;")
            if skipped:
                delimiter, first = delimiter or first[4], stream.readline()
            if delimiter is None:
                default = "\t" if self.path.suffix.lower() == ".tsv" else ","
                with contextlib.suppress(csv.Error):  # reported when the header is read
                    delimiter = guessed_delimiter(first, default)
            yield csv.reader(chain([first], stream), delimiter=delimiter or ",", strict=True), int(skipped)

    def _header(self, reader: Any) -> list[str]:
        try:
            header = [cell.strip() for cell in next((cells for cells in reader if any(cells)), [])]
        except csv.Error as error:
            raise DataError(f"{self.path}, header: {error}; check the quotation marks") from None
        repeated = [name for name in header if name and header.count(name) > 1]
        if repeated:
            raise DataError(f"{self.path} has two columns named {repeated[0]!r}; rename one of them")
        if not any(header):
            raise DataError(f"{self.path} is empty; expected a header line of column names, then rows")
        return header


@dataclass
class JsonTable:
    """One JSON object per line, or one list of objects; a key may be absent from some of them."""

    path: Path
    encoding: str

    def columns(self) -> list[str]:
        return next((list(row) for _, row in self.rows_as_they_are(lambda bad: None)), [])

    def rows(self, columns: Collection[str], on_bad: OnBad = stop) -> Iterator[tuple[Place, Row]]:
        for place, row in self.rows_as_they_are(on_bad):
            yield place, {name: value for name, value in row.items() if name in columns}

    def rows_as_they_are(self, on_bad: OnBad) -> Iterator[tuple[Place, Row]]:
        """The rows with all their keys."""
        # Only a line feed ends a line: other line separators may occur inside a JSON string.
        with self.path.open(encoding=self.encoding, newline="\n") as stream, _decoding(self.path, self.encoding):
            first = next((line for line in stream if line.strip()), "")
            stream.seek(0)
            is_list = first.lstrip("\ufeff \t\r\n").startswith("[")
            yield from (self._list(stream.read(), on_bad) if is_list else json_lines(stream, str(self.path), on_bad))

    def _list(self, content: str, on_bad: OnBad) -> Iterator[tuple[Place, Row]]:
        try:
            values = parse_json(content)
        except Malformed as error:
            raise DataError(f"{self.path} is {error}; expected a list of objects, or one object per line") from None
        for number, value in enumerate(values, 1):
            yield from _object(value, Place(f"{self.path}, item {number}", number), on_bad)


def json_lines(lines: Iterable[str], name: str, on_bad: OnBad) -> Iterator[tuple[Place, Row]]:
    """The objects of JSON lines, each with its place; `name` is what the messages call the source."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = Place(f"{name}, line {number}", number)
        try:
            value = parse_json(line.removeprefix("\ufeff"))
        except Malformed as error:
            on_bad(BadRow(place, f"{error}; expected one object per line"))
        else:
            yield from _object(value, place, on_bad)


def _object(value: object, place: Place, on_bad: OnBad) -> Iterator[tuple[Place, Row]]:
    if isinstance(value, dict):
        yield place, value
    else:
        on_bad(BadRow(place, f"expected a JSON object, got {type(value).__name__}"))


@dataclass
class ParquetTable:
    """A Parquet file, read in batches and only in the requested columns; binary columns are text in UTF-8."""

    path: Path

    def columns(self) -> list[str]:
        return list(self._open().schema_arrow.names)

    def rows(self, columns: Collection[str], on_bad: OnBad = stop) -> Iterator[tuple[Place, Row]]:
        file = self._open()
        wanted = [name for name in file.schema_arrow.names if name in columns]
        number = 0
        for batch in self._batches(file, wanted):
            for row in batch.to_pylist():
                number += 1
                place = Place(f"{self.path}, row {number}", number)
                try:
                    yield place, {name: _text_of_bytes(value) for name, value in row.items()}
                except UnicodeDecodeError:
                    on_bad(BadRow(place, "a binary value is not text in UTF-8; convert the file first"))

    def _open(self) -> Any:
        parquet = require("pyarrow.parquet", "parquet")
        try:
            return parquet.ParquetFile(self.path if isinstance(self.path, Path) else self.path.open("rb"))
        except (ValueError, OSError) as error:  # pyarrow.ArrowInvalid is a ValueError
            if _of_storage(error):
                raise
            raise DataError(f"{self.path} is not a Parquet file: {error}") from None

    def _batches(self, file: Any, columns: list[str]) -> Iterator[Any]:
        done = 0
        try:
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
                yield batch
                done += batch.num_rows
        except (ValueError, OSError) as error:
            if _of_storage(error):
                raise
            raise DataError(
                f"{self.path} is damaged after row {done} of {file.metadata.num_rows} ({error}); write it again"
            ) from None


def _of_storage(error: Exception) -> bool:
    """Whether an error is of the storage, rather than of what is stored, for which pyarrow has no number."""
    return isinstance(error, OSError) and error.errno is not None


def _text_of_bytes(value: Any) -> Any:
    # Impala and older Spark write strings as bytes.
    return value.decode("utf-8") if isinstance(value, bytes) else value


@dataclass
class MemoryTable:
    """Rows already in memory: objects by column name; a key may be absent from some of them."""

    path: Path  # its name in messages
    content: Sequence[Mapping[str, Any]]

    def columns(self) -> list[str]:
        return list(dict.fromkeys(str(name) for row in self.content for name in row))

    def rows(self, columns: Collection[str], on_bad: OnBad = stop) -> Iterator[tuple[Place, Row]]:
        for number, row in enumerate(self.content, 1):
            place = Place(f"{self.path}, row {number}", number)
            yield place, {name: _listed(value) for name, value in row.items() if name in columns}


def _listed(value: Any) -> Any:
    """A list in place of an array, such as pandas has in the cells of a Parquet file; all else as it is."""
    return value.tolist() if getattr(value, "ndim", 0) else value


@contextlib.contextmanager
def _decoding(path: Path, encoding: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{path} is not {encoding.removesuffix('-sig')}: it contains the byte 0x{byte:02x} ({error.reason}); "
            "give its encoding (--encoding), such as cp1252 (Western), cp1254 (Turkish) or utf-16, "
            "or convert it to UTF-8"
        ) from None
    except UnicodeError as error:
        raise DataError(
            f"{path} is not {encoding}: {error}; give its encoding (--encoding), or convert it to UTF-8"
        ) from None

"""Part files: the decided rows and the failed rows of a part, in Parquet or JSON lines.

part-000000.parquet      a row for each decision, in the order of the input
errors-000000.parquet    a row for each row without one: its id and the reason; absent where there is none
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from reason2decide.batch.settings import Format
from reason2decide.batch.storage import write_whole
from reason2decide.data.predictions import Prediction, Undecided, prediction_of
from reason2decide.errors import DataError, require

PARTS = ("part-", "errors-")  # what the names of part files begin with
READERS = 16  # ours: part files counted at a time
# The columns of decisions and their types, as Spark writes them. A label set may differ between rows: a map.
TYPES = {key.name: "string" for key in fields(Prediction)} | {
    "probabilities": "map<string,double>",
    "deferred": "boolean",
    "prediction_set": "array<string>",
    "tokens": "int",
    "tokens_read": "int",
    "reason_support": "double",
    "reason_supports": "boolean",
}


@dataclass(frozen=True)
class PartFolder:
    """The parts of a folder."""

    folder: Path
    format: Format

    def decided_file(self, number: int) -> Path:
        """The file of a part's decisions."""
        return self.folder / f"{PARTS[0]}{number:06}.{self.format}"

    def failed_file(self, number: int) -> Path:
        """The file of a part's failed rows."""
        return self.folder / f"{PARTS[1]}{number:06}.{self.format}"

    def write(self, number: int, outcomes: Sequence[Prediction | Undecided]) -> tuple[int, int]:
        """Write a part, which counts as done once its decisions are there, which come last; its rows as `counts`."""
        failed = [outcome for outcome in outcomes if isinstance(outcome, Undecided)]
        path = self.failed_file(number)
        if failed:
            write_whole(path, _encoded_failures(failed, self.format))
        elif path.exists():
            path.unlink()
        decided = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
        write_whole(self.decided_file(number), _encoded(decided, self.format))
        return len(decided), len(failed)

    def there(self) -> set[str]:
        """The names of the files in the folder."""
        return {path.name for path in self.folder.iterdir()}

    def counts(self, numbers: Iterable[int]) -> dict[int, tuple[int, int]]:
        """The rows of each part that is there: with and without a decision; -1 of a file that cannot be read."""
        there = self.there()

        def count(number: int) -> tuple[int, int]:
            failed = self.failed_file(number)
            return _count(self.decided_file(number)), _count(failed) if failed.name in there else 0

        found = [number for number in numbers if self.decided_file(number).name in there]
        with ThreadPoolExecutor(READERS) as pool:  # on object storage each file is waited for
            return dict(zip(found, pool.map(count, found), strict=True))

    def read(self, number: int) -> list[Prediction]:
        """The decisions of a part.

        Raises:
            DataError: its file is damaged.
        """
        rows = self._rows(self.decided_file(number))
        if self.format == "parquet":  # which has a map as a list of pairs
            for row in rows:
                row["probabilities"] = None if row["probabilities"] is None else dict(row["probabilities"])
        return [prediction_of(row) for row in rows]

    def read_failed(self, number: int) -> list[Undecided]:
        """The rows of a part without a decision; raises as `read`."""
        path = self.failed_file(number)
        return [Undecided(**row) for row in self._rows(path)] if path.exists() else []

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        with path.open("rb") as stream:
            try:
                if self.format == "jsonl":
                    return [json.loads(line) for line in stream]
                rows: list[dict[str, Any]] = require("pyarrow.parquet", "parquet").read_table(stream).to_pylist()
                return rows
            except (ValueError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise DataError(
                    f"{path} is damaged; remove it and `r2d predict ... --resume` computes it again"
                ) from None


def schema() -> Any:
    """The Parquet schema of decisions."""
    arrow = require("pyarrow", "parquet")
    of = {
        "string": arrow.string(),
        "boolean": arrow.bool_(),
        "int": arrow.int32(),
        "double": arrow.float64(),
        "array<string>": arrow.list_(arrow.string()),
        "map<string,double>": arrow.map_(arrow.string(), arrow.float64()),
    }
    return arrow.schema([(name, of[kind]) for name, kind in TYPES.items()])


def _encoded(predictions: Iterable[Prediction], format: Format) -> bytes:
    if format == "jsonl":
        return _json_lines(prediction.to_json() for prediction in predictions)
    return _parquet([row_of(own) for own in predictions], schema())


def row_of(prediction: Prediction) -> dict[str, Any]:
    """A prediction as a row of all columns."""
    return {name: getattr(prediction, name) for name in TYPES}


def _encoded_failures(failed: Iterable[Undecided], format: Format) -> bytes:
    rows = [{"id": own.id, "reason": own.reason} for own in failed]
    if format == "jsonl":
        return _json_lines(rows)
    arrow = require("pyarrow", "parquet")
    return _parquet(rows, arrow.schema([("id", arrow.string()), ("reason", arrow.string())]))


def _json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(rows: list[dict[str, Any]], schema: Any) -> bytes:
    arrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    buffer = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows, schema), buffer, compression="zstd")
    return buffer.getvalue()


def _count(path: Path) -> int:
    """Number of rows of a part file; -1 of one that cannot be read."""
    with path.open("rb") as stream:
        if path.suffix == ".jsonl":
            return sum(1 for _ in stream)
        parquet = require("pyarrow.parquet", "parquet")
        try:
            return int(parquet.ParquetFile(stream).metadata.num_rows)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            return -1

"""The dataset folder: its splits as files of records, the description beside them, and how it is written.

A dataset is a folder with `train.jsonl`, `validation.jsonl`, `test.jsonl` and `dataset.toml`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from reason2decide.data.defaults import CALL_LOG
from reason2decide.data.disk_index import DiskIndex
from reason2decide.data.recipe import InputRecipe
from reason2decide.data.records import JsonlRecords, LabelSet, Record, require_label
from reason2decide.errors import DataError
from reason2decide.files import new_folder, sha256_file
from reason2decide.syntax import Malformed, parse_toml


@dataclass(frozen=True)
class DatasetInfo:
    """The description of a dataset in `dataset.toml`, without its files."""

    name: str
    task: str
    labels: LabelSet
    rationale_sources: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    recipe: InputRecipe | None = None  # how texts were made of rows; None if they came as they are


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset folder: its description, the hash of each file, and its splits."""

    path: Path
    info: DatasetInfo
    hashes: Mapping[str, str]

    @classmethod
    def open(cls, path: Path | str) -> DatasetFolder:
        """Read `dataset.toml` of the folder `path`; split files are opened on demand.

        Raises:
            DataError: the folder, its `dataset.toml` or a key in it is missing or wrong.
        """
        path = Path(path)
        toml_path = path / "dataset.toml"
        if not path.is_dir():
            raise DataError(
                f"{path} is not a folder; expected a dataset made by `r2d data import` or `r2d data synthesize`"
            )
        if not toml_path.is_file():
            present = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
            raise DataError(f"{path} has no dataset.toml (it contains {present}); make one with `r2d data import`")
        try:
            content = parse_toml(toml_path.read_bytes())
            labels = LabelSet(
                tuple(content["labels"]["values"]),
                bool(content["labels"]["ordinal"]),
                content["labels"].get("urgent"),
            )
            info = DatasetInfo(
                content["name"],
                content["task"],
                labels,
                tuple(content["rationale_sources"]),
                content.get("provenance", {}),
                InputRecipe.from_json(content["input"]) if "input" in content else None,
            )
            hashes = {split: entry["sha256"] for split, entry in content["files"].items()}
        except Malformed as error:
            raise DataError(f"{toml_path} is {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{toml_path} lacks or misuses the key {error}; compare it with a fresh import") from None
        return cls(path, info, hashes)

    def split(self, name: str) -> JsonlRecords:
        """The records of one split.

        Raises:
            DataError: there is no such split, or its file is empty.
        """
        if name not in self.hashes:
            raise DataError(f"{self.path} has no split {name!r}; it has {', '.join(self.hashes)}")
        records = JsonlRecords(self.path / f"{name}.jsonl")
        if not len(records):
            raise DataError(f"the split {name!r} of {self.path} is empty; import the data with another --split")
        return records

    def verify(self) -> None:
        """Raise `DataError` if a split's file does not have the hash in `dataset.toml`."""
        for split, expected in self.hashes.items():
            file = self.path / f"{split}.jsonl"
            if not file.is_file():
                raise DataError(f"{self.path} lacks {file.name}, which its dataset.toml lists; import the data again")
            found = sha256_file(file)
            if found != expected:
                raise DataError(
                    f"{file} was changed after import (SHA-256 {found[:12]}..., dataset.toml says {expected[:12]}...); "
                    "import the data again"
                )

    def copy_to(self, path: Path, *, force: bool = False) -> DatasetFolder:
        """Copy the dataset, complete or not at all, without what was derived from it; return the copy.

        Raises:
            OutputError: `path` exists and `force` is false.
        """
        with new_folder(path, "dataset.toml", force=force, keep=f"{CALL_LOG}*") as partial:
            for name in ("dataset.toml", *(f"{split}.jsonl" for split in self.hashes)):
                shutil.copy(self.path / name, partial / name)
        return DatasetFolder.open(path)

    def require_source(self, source: str) -> None:
        """Raise `DataError` if no record has a rationale of this source."""
        if source not in self.info.rationale_sources:
            known = ", ".join(self.info.rationale_sources) or "none"
            raise DataError(f"{self.path} has no rationales of source {source!r}; its sources: {known}")


def write_dataset(
    out: Path, info: DatasetInfo, splits: Mapping[str, Iterable[Record]], *, force: bool = False
) -> DatasetFolder:
    """Write a dataset folder, complete or not at all, with one record in memory at a time.

    Raises:
        OutputError: `out` exists and `force` is false.
        DataError: a duplicate id, a label outside its set, or a split without records.
    """
    ids = DiskIndex()

    def lines(split: str, records: Iterable[Record]) -> Iterator[str]:
        for record in records:
            if not ids.add(record.id, split):
                raise DataError(
                    f"the id {record.id!r} occurs twice ({ids.get(record.id)} and {split}); ids must be unique"
                )
            yield checked_line(record, info)

    return write_lines(out, info, {split: lines(split, records) for split, records in splits.items()}, force=force)


def checked_line(record: Record, info: DatasetInfo) -> str:
    """A record's line in a dataset.

    Raises:
        DataError: its label is outside its set, or it has contrasts of an unknown source.
    """
    require_label(record, info.labels)
    require_sources(record, info)
    return json.dumps(record.to_json(), ensure_ascii=False)


def write_lines(
    out: Path, info: DatasetInfo, splits: Mapping[str, Iterable[str]], *, force: bool = False
) -> DatasetFolder:
    """As `write_dataset`, of what `checked_line` made of records whose ids are known to differ."""
    with new_folder(out, "dataset.toml", force=force, keep=f"{CALL_LOG}*") as folder:
        files: dict[str, dict[str, Any]] = {}
        for split, lines in splits.items():
            file, count = folder / f"{split}.jsonl", 0
            with file.open("w", encoding="utf-8") as stream:
                for line in lines:
                    stream.write(f"{line}\n")
                    count += 1
            if not count:
                raise DataError(f"the split {split!r} got no records; give more data or other shares with --split")
            files[split] = {"records": count, "sha256": sha256_file(file)}
        labels: dict[str, Any] = {"values": list(info.labels.values), "ordinal": info.labels.ordinal}
        if info.labels.urgent:
            labels["urgent"] = info.labels.urgent
        content = {
            "name": info.name,
            "task": info.task,
            "rationale_sources": list(info.rationale_sources),
            "labels": labels,
            "files": files,
            "provenance": dict(info.provenance),
            **({} if info.recipe is None else {"input": info.recipe.to_json()}),
        }
        (folder / "dataset.toml").write_text(tomli_w.dumps(content), "utf-8")
    return DatasetFolder.open(out)


def require_sources(record: Record, info: DatasetInfo) -> None:
    """Raise `DataError` if a record has contrasts of a source of which no record has a rationale."""
    for source in record.contrasts:
        if source not in info.rationale_sources:
            raise DataError(
                f"record {record.id!r} has contrasts of source {source!r}, of which no record has a rationale; name "
                f"the source as in rationales: {', '.join(info.rationale_sources) or 'none'}"
            )

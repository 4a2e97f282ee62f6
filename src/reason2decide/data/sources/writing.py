"""Turn a stream of records into a dataset folder; shared by all sources."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from reason2decide.console import track
from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, checked_line, write_lines
from reason2decide.data.recipe import InputRecipe
from reason2decide.data.records import SPLITS, JsonlRecords, LabelSet, Record
from reason2decide.data.sources.splitting import Member, member
from reason2decide.errors import DataError, OutputError
from reason2decide.files import require_absent, sha256_file
from reason2decide.parallel import ordered, processes_for

AT_ONCE = 1000  # ours: records written together
Assign = Callable[[Sequence[Member]], Mapping[str, str]]


@dataclass(frozen=True)
class Imported:
    """A new dataset (None if only plain records were written), and notes for the user on how it was made."""

    dataset: DatasetFolder | None
    notes: tuple[str, ...] = ()


class Spooled(NamedTuple):
    """A record as a line, with the place it was read from, and what is known of it before all are read."""

    place: str
    member: Member
    sources: tuple[str, ...]
    line: str


def spooled(place: str, record: Record) -> Spooled:
    """A record to be written by `write_import`."""
    return Spooled(place, member(record), tuple(record.rationales), json.dumps(record.to_json(), ensure_ascii=False))


def write_import(
    out: Path,
    records: Iterable[Spooled],
    assign: Assign,
    *,
    name: str,
    task: str,
    labels: Callable[[Collection[str]], LabelSet],
    provenance: Mapping[str, Any],
    recipe: InputRecipe,
    spelling: Callable[[Mapping[str, int]], Mapping[str, str]] = lambda counts: {},
    force: bool = False,
) -> DatasetFolder:
    """Write labelled records as a dataset.

    The records are spooled to a file next to `out`, so the input is read once and only ids, labels and groups stay in
    memory. `assign` then maps each id to its split. Within a split records are sorted by id. `labels` makes the label
    set from the labels found, after `spelling` gave, for the number of records of each, what some of them are spelled.

    Raises:
        OutputError: `out` exists and `force` is false, or cannot be made.
        DataError: no records, a repeated id, only one class, an empty split, or whatever `records` raises.
    """
    require_absent(out, "dataset.toml", force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        spool = tempfile.TemporaryDirectory(prefix=f".{out.name}.spool-", dir=out.parent)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise OutputError(f"cannot create {out}: {error.strerror}: {error.filename}") from None
    with spool as folder:
        file = Path(folder) / "records.jsonl"
        members, sources = _spool(track(records, "import"), file)
        written = spelling(Counter(item.label for item in members))
        members = [item._replace(label=written.get(item.label, item.label)) for item in members]
        found = {item.label for item in members}
        if len(found) == 1:
            raise DataError(
                f"all {len(members)} records have the label {members[0].label!r}; a decision needs at least two classes"
            )
        spooled = JsonlRecords(file)
        splits = assign(members)
        order = sorted(range(len(members)), key=lambda index: members[index].id)
        info = DatasetInfo(name, task, labels(found), sources, provenance, recipe)
        rows = {split: [i for i in order if splits[members[i].id] == split] for split in SPLITS}
        work = _Lines(spooled, info, written)
        parts = (own[i : i + AT_ONCE] for own in rows.values() for i in range(0, len(own), AT_ONCE))
        stream = chain.from_iterable(ordered(work, parts, processes_for(len(members))))
        lines = {split: islice(stream, len(own)) for split, own in rows.items()}  # written in this order
        return write_lines(out, info, lines, force=force)


@dataclass(frozen=True)
class _Lines:
    """The lines of spooled records in a dataset, with labels as they are spelled there."""

    spooled: JsonlRecords
    info: DatasetInfo
    written: Mapping[str, str]

    def __call__(self, rows: Sequence[int]) -> list[str]:
        return [checked_line(_spelled(self.spooled[row], self.written), self.info) for row in rows]


def _spelled(record: Record, written: Mapping[str, str]) -> Record:
    """The record with its labels, those of contrasts too, in the spelling of the dataset."""
    if not written:
        return record
    label = written.get(record.label or "", record.label)
    contrasts = {
        source: {spelled: text for other, text in by_label.items() if (spelled := written.get(other, other)) != label}
        for source, by_label in record.contrasts.items()
    }
    return replace(record, label=label, contrasts=contrasts)


def _spool(records: Iterable[Spooled], file: Path) -> tuple[list[Member], tuple[str, ...]]:
    members: list[Member] = []
    places: dict[str, str] = {}
    sources: dict[str, None] = {}
    with file.open("w", encoding="utf-8") as stream:
        for place, item, own, line in records:
            if item.id in places:
                raise DataError(f"{place}: the id {item.id!r} already occurs in {places[item.id]}; ids must be unique")
            places[item.id] = place
            members.append(Member(item.id, sys.intern(item.label), item.group))
            sources.update(dict.fromkeys(own))
            stream.write(f"{line}\n")
    if not members:
        raise DataError("the input contains no records to import; check that it is the right file")
    return members, tuple(sources)


def files_provenance(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Name and SHA-256 of each input file, for `dataset.toml`; raises like `require_file`."""
    found = []
    for path in paths:
        require_file(path)
        found.append({"name": path.name, "sha256": sha256_file(path)})
    return found


def require_file(path: Path) -> None:
    """Raise `DataError` unless `path` is a non-empty file."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the path of a file in it")
    if not path.exists():
        raise DataError(f"there is no file {path}; check the path")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; expected a file with data")

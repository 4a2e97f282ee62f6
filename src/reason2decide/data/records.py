"""The only form of data before tokens: `Record`, `LabelSet`, and files of records.

Files are memory-mapped and read one record at a time, so a file of a million records is never in memory as a whole.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from reason2decide.errors import DataError
from reason2decide.syntax import Malformed, parse_json

SPLITS = ("train", "validation", "test")
EVALUATION_FIRST = tuple(reversed(SPLITS))  # what is in two splits stays in the first of these
RECORD_KEYS = ("id", "text", "label", "rationales", "contrasts", "choices", "group", "meta")


@dataclass(frozen=True, slots=True)
class Record:
    """One case: a text to decide on, and its gold label and rationales by source where known.

    `contrasts` has rationales for other labels than the gold one, by source and label: the most candid case for a
    decision that is not the record's. They are never mistaken for gold ones. `choices` gives the record its own label
    set (open label sets). Records of one `group` (a patient, an article) are never in two splits. `meta` is free:
    columns to slice results by, facts behind a synthetic case.
    """

    id: str
    text: str
    label: str | None = None
    rationales: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] | None = None
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    contrasts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object without absent fields."""
        values = {key: getattr(self, key) for key in RECORD_KEYS}
        return {key: value for key, value in values.items() if value is not None and value != {}}

    def choices_or(self, labels: LabelSet) -> tuple[str, ...]:
        """The labels this record may be given: its own choices, else those of the set."""
        return self.choices if self.choices is not None else labels.values


def record_from_json(value: object, where: str) -> Record:
    """Check one JSON value and return it as a `Record`; error messages begin with `where`.

    Raises:
        DataError: a key is missing, unknown or of the wrong type, or the text is empty.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object with id and text, got {_kind(value)}")
    unknown = sorted(set(value) - set(RECORD_KEYS))
    if unknown:
        raise DataError(
            f"{where}: unknown key {unknown[0]!r}; a record has {', '.join(RECORD_KEYS)} (put other columns in meta)"
        )
    for key in ("id", "text"):
        if not isinstance(value.get(key), str):
            raise DataError(f"{where}: expected {key!r} to be a string, got {_kind(value.get(key))}")
    for key in ("label", "group"):
        if value.get(key) is not None and not isinstance(value[key], str):
            raise DataError(f"{where}: expected {key!r} to be a string, got {_kind(value[key])}")
    if not value["id"].strip():
        raise DataError(f"{where}: the id is empty; every record needs a unique id")
    if not value["text"].strip():
        raise DataError(f"{where}: record {value['id']!r} has an empty text; fill it in or leave the record out")
    rationales = value.get("rationales") or {}
    if not isinstance(rationales, dict) or not all(isinstance(text, str) for text in rationales.values()):
        raise DataError(f"{where}: expected 'rationales' to be an object of source -> text")
    contrasts = _contrasts(value, where)
    choices = value.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise DataError(f"{where}: expected 'choices' to be a list of strings")
        problem = _labels_problem(choices)
        if problem:
            raise DataError(f"{where}: the choice set of record {value['id']!r} {problem}")
    meta = value.get("meta") or {}
    if not isinstance(meta, dict):
        raise DataError(f"{where}: expected 'meta' to be an object, got {_kind(meta)}")
    strings = [value["id"], value["text"], value.get("label") or "", value.get("group") or "", *rationales.values()]
    strings += [text for by_label in contrasts.values() for pair in by_label.items() for text in pair]
    try:
        "".join([*strings, *(choices or ()), json.dumps(meta, ensure_ascii=False)]).encode()
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        raise DataError(
            f"{where}: record {value['id']!r} contains {surrogate!r}, an unpaired surrogate, which cannot be stored; "
            "correct it"
        ) from None
    return Record(
        id=value["id"],
        text=value["text"],
        label=value.get("label"),
        rationales={source: text for source, text in rationales.items() if text.strip()},
        choices=tuple(choices) if choices is not None else None,
        group=value.get("group"),
        meta=meta,
        contrasts=contrasts,
    )


def _contrasts(value: Mapping[str, Any], where: str) -> dict[str, dict[str, str]]:
    """The contrasts of a record's JSON, without empty ones.

    Raises:
        DataError: of another form, or one of them is for the gold label.
    """
    given = value.get("contrasts") or {}
    sources = given.values() if isinstance(given, dict) else [None]
    if not all(isinstance(labels, dict) and all(isinstance(t, str) for t in labels.values()) for labels in sources):
        raise DataError(f"{where}: expected 'contrasts' to be an object of source -> label -> text")
    for source, by_label in given.items():
        if value.get("label") in by_label:
            raise DataError(
                f"{where}: record {value['id']!r} has a contrast of source {source!r} for its own label "
                f"{value['label']!r}; a contrast argues for another label, the gold one's reason stands in rationales"
            )
    kept = {source: {label: t for label, t in by_label.items() if t.strip()} for source, by_label in given.items()}
    return {source: by_label for source, by_label in kept.items() if by_label}


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The possible labels of a dataset, in order; without values each record has its own choices.

    `ordinal` says that the order is meaningful, and `urgent` which end of it is the more urgent.

    Raises:
        DataError: fewer than two labels, a repeated or empty label, or `urgent` without `ordinal`.
    """

    values: tuple[str, ...] = ()
    ordinal: bool = False
    urgent: Literal["first", "last"] | None = None

    def __post_init__(self) -> None:
        if self.values:
            problem = _labels_problem(self.values)
            if problem:
                raise DataError(f"the label set {problem}")
        if self.urgent not in (None, "first", "last"):
            raise DataError(f"the urgent end is {self.urgent!r}; expected 'first' or 'last'")
        if self.urgent is not None and not self.ordinal:
            raise DataError("an urgent end was given for labels that are not ordinal; declare them ordinal too")

    @property
    def is_open(self) -> bool:
        """Whether every record has its own choices."""
        return not self.values


def _labels_problem(labels: Sequence[str]) -> str | None:
    if len(labels) < 2:
        return f"needs at least 2 labels, got {len(labels)}: {list(labels)}"
    if any(not label.strip() for label in labels):
        return f"has an empty label: {list(labels)}"
    repeated = sorted({label for label in labels if list(labels).count(label) > 1})
    return f"names {repeated[0]!r} more than once" if repeated else None


def _kind(value: object) -> str:
    """What a value is, for messages; of texts and collections not their content, which may be health text."""
    if value is None:
        return "nothing"
    return f"{type(value).__name__} {value}" if isinstance(value, (bool, int, float)) else type(value).__name__


class JsonlRecords(Sequence[Record]):
    """The records of a memory-mapped JSON Lines file; only an index of line starts stays in memory."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path} is not a file; expected one JSON record per line")
        self.path = path
        self._offsets, self._blank = _index_lines(path)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to open the same file: all but its mapping."""
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    @cached_property
    def _bytes(self) -> mmap.mmap | bytes:
        with self.path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if len(self) else b""

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        where = f"{self.path}, line {index + 1 + np.searchsorted(self._blank, index, side='right')}"
        return parse_record(self._bytes[self._offsets[index] : self._offsets[index + 1]], where)

    def __iter__(self) -> Iterator[Record]:
        for index in range(len(self)):
            yield self[index]


def parse_record(line: bytes | str, where: str) -> Record:
    """Parse one JSON line into a `Record`.

    Raises:
        DataError: not UTF-8, not JSON, or not a record; the message begins with `where`.
    """
    try:
        value = parse_json(line)
    except Malformed as error:
        raise DataError(f"{where}: {error}") from None
    return record_from_json(value, where)


def _index_lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Byte offsets of the non-blank lines and of the end, and the number of non-blank lines before each blank one."""
    offsets: list[np.ndarray] = [np.zeros(1, np.int64)]
    position = 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            offsets.append(ends + position + 1)
            position += len(chunk)
    starts = np.concatenate(offsets)
    if starts[-1] != position:
        starts = np.append(starts, position)
    blank = np.zeros(0, np.int64)
    if len(starts) == 1:
        return starts, blank
    first_bytes = np.memmap(path, np.uint8, "r")[starts[:-1]]
    perhaps_blank = np.flatnonzero(np.isin(first_bytes, np.frombuffer(b" \t\r\n", np.uint8)))
    if len(perhaps_blank):
        with path.open("rb") as stream:
            found = [index for index in perhaps_blank if not _read_line(stream, int(starts[index])).strip()]
        blank = np.asarray(found, np.int64)
        # A blank line joins the line before it: JSON takes the white space at its end.
        keep = np.ones(len(starts), bool)
        keep[blank] = False
        starts = starts[keep]
    return starts, blank - np.arange(len(blank))


def _read_line(stream: Any, start: int) -> bytes:
    stream.seek(start)
    return bytes(stream.readline())


def require_label(record: Record, labels: LabelSet) -> None:
    """Raise `DataError` if a record's label is not among its choices or the label set."""
    choices = record.choices_or(labels)
    if record.label is None:
        raise DataError(f"record {record.id!r} has no label; every record of a dataset needs one")
    if not choices:
        raise DataError(f"record {record.id!r} has no choices and the dataset declares no labels; give one of the two")
    if record.label not in choices:
        shown = ", ".join(repr(choice) for choice in choices[:8]) + (", ..." if len(choices) > 8 else "")
        raise DataError(f"record {record.id!r} has the label {record.label!r}, which is not in its set: {shown}")
    for source, by_label in record.contrasts.items():
        for label in by_label:
            if label not in choices:
                raise DataError(
                    f"record {record.id!r} has a contrast of source {source!r} for the label {label!r}, which is not "
                    f"in its set: {', '.join(repr(choice) for choice in choices[:8])}"
                )


YES, NO = ("yes", "true"), ("no", "false")  # ours: labels of a yes/no question, in any case

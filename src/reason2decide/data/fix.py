"""Write a copy of a dataset without what `r2d data check` reports: shared records, label variants, stated labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from reason2decide.data.dataset_folder import DatasetFolder, write_dataset
from reason2decide.data.leaks import StatedLabels
from reason2decide.data.near_duplicates import NearDuplicates, signature_of
from reason2decide.data.records import EVALUATION_FIRST, SPLITS, LabelSet, Record
from reason2decide.data.sources.splitting import content_key
from reason2decide.errors import DataError, UserError

Leaks = Literal["drop", "mask"]


@dataclass(frozen=True)
class Fixes:
    """What to mend.

    Args:
        duplicates: leave out of train what is also in validation or test, and out of validation what is in test: the
            same text, a near duplicate, or a record of the same group.
        contradictions: leave out all records of a text that has several labels.
        labels: label -> the label that it is written for.
        leaks: `drop` the records whose text states their label, or `mask` such labels in all texts; None leaves them.
    """

    duplicates: bool = False
    contradictions: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    leaks: Leaks | None = None


def fix_dataset(
    path: Path, out: Path, fixes: Fixes, *, force: bool = False
) -> tuple[DatasetFolder, Mapping[str, Mapping[str, int]]]:
    """Write the mended dataset to `out`; also return what was done, as counts by split.

    Raises:
        DataError: it is no dataset, a label of the map occurs nowhere, or a split would be empty.
        UserError: nothing is asked for, or labels are to be merged where each record has its own.
        OutputError: `out` exists and `force` is false.
    """
    if fixes == Fixes():
        raise UserError("nothing to mend was named; give --duplicates, --contradictions, --merge or --leaks")
    dataset = DatasetFolder.open(path)
    info = replace(dataset.info, labels=_merged(dataset.info.labels, fixes.labels))
    mending = _Mending(dataset, fixes)
    splits = {split: mending.records(split) for split in SPLITS if split in dataset.hashes}
    provenance = {**info.provenance, "fixed_from": dict(dataset.hashes)}
    written = write_dataset(out, replace(info, provenance=provenance), splits, force=force)
    return written, mending.done


def _merged(labels: LabelSet, merge: Mapping[str, str]) -> LabelSet:
    """The label set after the merge: what a label is written for stands where the first of them stood."""
    if not merge:
        return labels
    if labels.is_open:
        raise UserError("labels can be merged only where they are common to all records; here each has its own choices")
    unknown = [label for label in merge if label not in labels.values]
    if unknown:
        raise DataError(f"{unknown[0]!r} is not a label of the dataset; its labels: {', '.join(labels.values)}")
    return replace(labels, values=tuple(dict.fromkeys(merge.get(label, label) for label in labels.values)))


class _Mending:
    """Decides first which records stay, evaluation splits first; then gives them, mended."""

    def __init__(self, dataset: DatasetFolder, fixes: Fixes) -> None:
        self.dataset, self.fixes = dataset, fixes
        self.done: dict[str, Counter[str]] = {}
        self.dropped: set[str] = set()
        self.stated = StatedLabels(dataset.info.labels.values)
        seen: dict[str, str] = {}  # content -> split
        groups: dict[str, str] = {}
        labels_of: dict[str, set[str]] = {}
        near = NearDuplicates()
        for split, record in self._all():
            key = content_key(record)
            labels_of.setdefault(key, set()).add(self._label(str(record.label)))
            self.stated.add(record)
            if fixes.duplicates:
                shared = seen.setdefault(key, split) != split
                grouped = record.group is not None and groups.setdefault(record.group, split) != split
                if shared or grouped or near.compare(split, record.id, signature_of(record), keep=split != "train"):
                    self._drop("shared with an evaluation split", split, record)
        self.leaking = self.stated.leaking() if fixes.leaks is not None else {}
        for split, record in self._all():
            if fixes.contradictions and len(labels_of[content_key(record)]) > 1:
                self._drop("of a text with several labels", split, record)
            elif fixes.leaks == "drop" and record.label in self.stated.stated(record.text) & set(self.leaking):
                self._drop("whose text states their label", split, record)

    def records(self, split: str) -> Iterator[Record]:
        """The records of a split that stay, mended."""
        for record in self.dataset.split(split):
            if record.id not in self.dropped:
                yield self._mended(split, record)

    def _all(self) -> Iterator[tuple[str, Record]]:
        for split in EVALUATION_FIRST:
            if split in self.dataset.hashes:
                yield from ((split, record) for record in self.dataset.split(split))

    def _drop(self, why: str, split: str, record: Record) -> None:
        if record.id not in self.dropped:
            self.dropped.add(record.id)
            self.done.setdefault(why, Counter())[split] += 1

    def _label(self, label: str) -> str:
        return self.fixes.labels.get(label, label)

    def _mended(self, split: str, record: Record) -> Record:
        if self.fixes.leaks == "mask":
            masked = self.stated.masked(record.text, self.leaking)
            if masked != record.text:
                self.done.setdefault("with labels masked in the text", Counter())[split] += 1
                record = replace(record, text=masked)
        if record.label is not None and self._label(record.label) != record.label:
            self.done.setdefault("with another spelling of their label", Counter())[split] += 1
        label = record.label and self._label(record.label)
        contrasts = {
            source: {other: text for own, text in by_label.items() if (other := self._label(own)) != label}
            for source, by_label in record.contrasts.items()
        }
        return replace(record, label=label, contrasts={source: texts for source, texts in contrasts.items() if texts})

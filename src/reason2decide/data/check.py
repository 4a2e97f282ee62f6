"""Report what is in a dataset, and what in it would make a result invalid.

Errors make a result invalid: the same case or group in two splits, a label outside its set, a repeated id, files
changed after import. Warnings are for the user to judge: near duplicates, mask tokens, labels missing from a split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reason2decide.console import ProgressBar
from reason2decide.data.counts import (
    EXAMPLES,
    ContrastCounts,
    FoundCases,
    LengthsOf,
    RecordCounts,
    SourceCounts,
    count_words,
)
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.near_duplicates import NearDuplicates, signature_of
from reason2decide.data.records import EVALUATION_FIRST, SPLITS, JsonlRecords
from reason2decide.data.sources.splitting import content_key
from reason2decide.data.unread_characters import UNREADABLE, UnreadCharacters
from reason2decide.errors import DataError
from reason2decide.parallel import ordered, processes_for

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
AT_ONCE = 256  # ours: records read together


@dataclass(frozen=True)
class Finding:
    """One finding: what, how often, and what to do, as a sentence for the user."""

    level: Literal["error", "warning"]
    message: str


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_dataset`.

    `lengths` covers texts, labels and each source's rationales, in `length_unit`; `masks` counts those that contain a
    mask, by their first one. `duplicates`, exact and near, counts the records of A that are in B as "A in B".
    """

    path: str
    name: str
    records: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    open_labels: bool
    sources: Mapping[str, Mapping[str, SourceCounts]]
    contrasts: Mapping[str, Mapping[str, ContrastCounts]]
    lengths: Mapping[str, Mapping[str, int]]
    length_unit: str
    masks: Mapping[str, Mapping[str, int]]
    duplicates: Mapping[str, Mapping[str, int]]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[str]:
        return [finding.message for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[str]:
        return [finding.message for finding in self.findings if finding.level == "warning"]

    @property
    def ok(self) -> bool:
        """Whether nothing was found that makes a result invalid."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def check_dataset(
    path: Path,
    *,
    count: LengthsOf = count_words,
    unit: str = "words",
    unread: UnreadCharacters | None = None,
    label_limit: int | None = None,
) -> CheckReport:
    """Read a dataset once, one record at a time, and report its contents.

    The evaluation splits are read first and train is compared with them, so memory grows with validation and test, not
    with train.

    Args:
        path: the dataset folder.
        count, unit: measures the lengths of texts, and its unit: words, or tokens of a model (`hub.TokenCounter`).
        unread: counts the characters that a model cannot read or write.
        label_limit: longest label that training reads, in this unit, its end included.

    Raises:
        DataError: the folder or a line of it cannot be read at all.
    """
    dataset = DatasetFolder.open(path)
    check = _Check(dataset, RecordCounts(dataset.info, count, unread is not None), unread, label_limit)
    try:
        dataset.verify()
    except DataError as error:
        check.findings.append(Finding("error", str(error)))
    splits = {split: dataset.split(split) for split in EVALUATION_FIRST if split in dataset.hashes}
    total = sum(map(len, splits.values()))
    parts = (
        (split, range(start, min(start + AT_ONCE, len(records))))
        for split, records in splits.items()
        for start in range(0, len(records), AT_ONCE)
    )
    reading = _CaseReader(dataset, splits, count, unread is not None)
    with ProgressBar("check", total) as bar:
        for split, counts, cases in ordered(reading, parts, processes_for(total)):
            check.take(split, counts, cases)
            bar.advance(len(cases))
    if unread is not None and check.counts.characters is not None:
        unread.add_counted(check.counts.characters)
    return check.report(unit)


class Case(NamedTuple):
    """What a record is compared by with others."""

    id: str
    group: str | None
    label: str | None
    content: str
    signature: NDArray[np.uint32]


@dataclass(frozen=True)
class _CaseReader:
    """Reads records of a split: what adds up, and what they are compared by."""

    dataset: DatasetFolder
    splits: Mapping[str, JsonlRecords]
    lengths_of: LengthsOf
    counts_characters: bool

    def __call__(self, part: tuple[str, range]) -> tuple[str, RecordCounts, list[Case]]:
        split, rows = part
        records = [self.splits[split][row] for row in rows]
        counts = RecordCounts(self.dataset.info, self.lengths_of, self.counts_characters)
        counts.add(split, records)
        cases = [Case(r.id, r.group, r.label, content_key(r), signature_of(r)) for r in records]
        return split, counts, cases


class _Check:
    """The state of one pass over a dataset."""

    def __init__(
        self, dataset: DatasetFolder, counts: RecordCounts, unread: UnreadCharacters | None, label_limit: int | None
    ) -> None:
        self.dataset, self.counts, self.unread, self.label_limit = dataset, counts, unread, label_limit
        self.findings: list[Finding] = []
        self.repeated_ids, self.divided_groups = FoundCases(), FoundCases()
        self.shared: dict[tuple[str, str], FoundCases] = {}
        self.repeated_texts: dict[str, FoundCases] = {}
        self.ids: set[str] = set()
        self.groups: dict[str, str] = {}
        self.contents: dict[str, tuple[str, str]] = {}  # of test and validation: content -> split, id
        self.train_contents: set[str] = set()
        self.first_labels: dict[str, str | None] = {}  # content -> label
        self.contradictions = FoundCases()
        self.near = NearDuplicates()

    def take(self, split: str, counts: RecordCounts, cases: Sequence[Case]) -> None:
        self.counts.merge(counts)
        for case in cases:
            self._compare(split, case)

    def _compare(self, split: str, record: Case) -> None:
        if record.id in self.ids:
            self.repeated_ids.add(f"{record.id!r} (again in {split})")
        self.ids.add(record.id)
        if record.group is not None:
            first_split = self.groups.setdefault(record.group, split)
            if first_split != split:
                self.divided_groups.add(f"{record.group!r} ({first_split} and {split})")
        key = record.content
        if self.first_labels.setdefault(key, record.label) != record.label:
            self.contradictions.add(f"{record.id!r} ({record.label}, elsewhere {self.first_labels[key]})")
        other = self.contents.get(key)
        if other is not None and other[0] != split:
            self.shared.setdefault((other[0], split), FoundCases()).add(f"{other[1]} = {record.id}")
        elif other is not None or key in self.train_contents:
            self.repeated_texts.setdefault(split, FoundCases()).add(record.id)
        elif split == "train":
            self.train_contents.add(key)
            self.near.compare(split, record.id, record.signature, keep=False)
        else:
            self.contents[key] = (split, record.id)
            self.near.compare(split, record.id, record.signature, keep=True)

    def report(self, length_unit: str) -> CheckReport:
        order = [split for split in SPLITS if split in self.counts.records]
        self.findings += self._errors() + self._warnings()
        return CheckReport(
            path=str(self.dataset.path),
            name=self.dataset.info.name,
            records={split: self.counts.records[split] for split in order},
            labels={split: dict(sorted(self.counts.labels[split].items())) for split in order},
            open_labels=self.dataset.info.labels.is_open,
            sources={
                source: {split: by_split[split] for split in order if split in by_split}
                for source, by_split in sorted(self.counts.sources.items())
            },
            contrasts={
                source: {split: by_split[split] for split in order if split in by_split}
                for source, by_split in sorted(self.counts.contrasts.items())
            },
            lengths={kind: _quantiles(counts) for kind, counts in self.counts.lengths.items() if counts},
            length_unit=length_unit,
            masks=self.counts.masks,
            duplicates={
                "exact": {f"{first} in {second}": found.count for (first, second), found in self.shared.items()},
                "near": {f"{first} in {second}": len(pairs) for (first, second), pairs in self.near.found.items()},
            },
            findings=tuple(self.findings),
        )

    def _errors(self) -> list[Finding]:
        messages = [
            f"{found.count} records of {first} are also in {second} ({found}): "
            f"results on {first} would be memorized; remove them from {second}"
            for (first, second), found in self.shared.items()
        ]
        if self.divided_groups.count:
            messages.append(
                f"{self.divided_groups.count} records belong to a group that is also in another split "
                f"({self.divided_groups}); move each group to one split"
            )
        if self.counts.bad_labels.count:
            messages.append(f"{self.counts.bad_labels.count} labels cannot be used: {self.counts.bad_labels}")
        if self.counts.bad_sources.count:
            messages.append(
                f"{self.counts.bad_sources.count} records have contrasts that cannot be used: {self.counts.bad_sources}"
            )
        if self.repeated_ids.count:
            messages.append(f"{self.repeated_ids.count} ids are repeated: {self.repeated_ids}; make them unique")
        if self.unread is not None and self.unread.share() >= UNREADABLE:
            messages.append(f"the base cannot read {self.unread.in_words()}; take one for this language, such as mT5")
        return [Finding("error", message) for message in messages]

    def _warnings(self) -> list[Finding]:
        messages = [
            f"{len(pairs)} records of {first} have a near duplicate in {second} "
            f"({', '.join(f'{one} ~ {other}' for one, other in islice(pairs.items(), EXAMPLES))})"
            for (first, second), pairs in self.near.found.items()
        ]
        for split, found in self.repeated_texts.items():
            messages.append(f"{found.count} records of {split} repeat the text of another record of {split} ({found})")
        if self.contradictions.count:
            messages.append(
                f"{self.contradictions.count} records have the text of another record with another label "
                f"({self.contradictions}); a model cannot learn both: decide which is right"
            )
        for label, (own, others) in self.counts.stated.leaking().items():
            messages.append(
                f"{own:.0%} of the texts with the label {label!r} state it, {others:.0%} of the others: the text gives "
                "the decision away; `r2d data fix --leaks mask` takes it out"
            )
        for kind, masks in self.counts.masks.items():
            tokens = ", ".join(token for token, _ in masks.most_common(EXAMPLES))
            messages.append(f"{masks.total()} records have a mask in their {kind} ({tokens}); models learn to write it")
        for source, splits in sorted(self.counts.contrasts.items()):
            number = sum(counts.labels.total() for counts in splits.values())
            for count, what in (
                (sum(counts.repeats_gold for counts in splits.values()), "equal the gold rationale"),
                (
                    sum(counts.one_sentence for counts in splits.values()),
                    "differ from the gold rationale in one sentence",
                ),
            ):
                if count:
                    messages.append(
                        f"{count} of {number} contrasts of source {source!r} {what}: they teach a model to change its "
                        "verdict at most, not what it rests on"
                    )
        for source, by_split in sorted(self.counts.sources.items()):
            if not any(counts.present for counts in by_split.values()):
                messages.append(f"no record has a rationale of source {source!r}, which dataset.toml declares")
        longest = max(self.counts.lengths.get("label", {0: 0})) + 1  # the end token
        if self.label_limit is not None and longest > self.label_limit:
            messages.append(
                f"the longest label has {longest} tokens with its end, and training reads {self.label_limit}: shorten "
                f"it or set lengths.label = {longest}"
            )
        if self.unread is not None and 0 < self.unread.share() < UNREADABLE:
            messages.append(
                f"the base cannot read or write {self.unread.in_words()}; replace them, or take another base"
            )
        for label in self.dataset.info.labels.values:
            lacking = [
                split for split in SPLITS if split in self.counts.labels and not self.counts.labels[split][label]
            ]
            if lacking:
                messages.append(f"no record of {' or '.join(lacking)} has the label {label!r}")
        return [Finding("warning", message) for message in messages]


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    lengths = np.array(sorted(counts))
    reached = np.cumsum([counts[length] for length in lengths.tolist()])
    ranks = {name: min(int(np.ceil(share * reached[-1])), int(reached[-1])) for name, share in QUANTILES.items()}
    return {name: int(lengths[np.searchsorted(reached, rank)]) for name, rank in ranks.items()}

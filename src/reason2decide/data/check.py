"""Report what is in a dataset, and what in it would make a result invalid.

Errors make a result invalid: the same case or group in two splits, a label outside its set, a repeated id, files
changed after import. Warnings are for the user to judge: near duplicates, mask tokens, labels missing from a split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reason2decide.console import ProgressBar
from reason2decide.data.leaks import StatedLabels
from reason2decide.data.near_duplicates import NearDuplicates
from reason2decide.data.records import SPLITS, DatasetFolder, Record, require_label, require_sources
from reason2decide.data.sources.splitting import content_key
from reason2decide.data.unread_characters import UNREADABLE, UnreadCharacters
from reason2decide.data.words import sentences
from reason2decide.errors import DataError

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
EXAMPLES = 3  # ours: how many ids a message shows
AT_ONCE = 256  # ours: texts per tokenizer call
# Words that datasets put in place of the label, and the masks of T5 and BERT.
MASK_TOKEN = re.compile(r"\[(?:LABEL|ANSWER|MASK|MASKED|BLANK|PREDICTION|OPTION|CHOICE)\]|<mask>|<extra_id_\d+>", re.I)


Count = Callable[[Sequence[str]], list[int]]


def count_words(texts: Sequence[str]) -> list[int]:
    """Count the words of each text, separated by white space."""
    return [len(text.split()) for text in texts]


@dataclass(frozen=True)
class Finding:
    """One finding: what, how often, and what to do, as a sentence for the user."""

    level: Literal["error", "warning"]
    message: str


@dataclass
class SourceCounts:
    """Record counts of one rationale source: with a rationale, without one, and with the label as whole words in it."""

    present: int = 0
    missing: int = 0
    states_label: int = 0

    @property
    def states_label_share(self) -> float:
        return self.states_label / self.present if self.present else 0.0


@dataclass
class ContrastCounts:
    """Contrasts of one rationale source: records that have any, contrasts by label, and those that teach little.

    `repeats_gold` counts the contrasts that equal the gold rationale, `one_sentence` those that differ from it in a
    single sentence: perhaps only in the verdict.
    """

    records: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    repeats_gold: int = 0
    one_sentence: int = 0


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


@dataclass
class _Found:
    """Count of one kind of finding, with a few ids."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def __str__(self) -> str:
        return f"{', '.join(self.examples)}{', ...' if self.count > len(self.examples) else ''}"


def check_dataset(
    path: Path,
    *,
    count: Count = count_words,
    unit: str = "words",
    unread: UnreadCharacters | None = None,
    label_limit: int | None = None,
) -> CheckReport:
    """Read a dataset once, one record at a time, and report its contents.

    The evaluation splits are read first and train is compared with them, so memory grows with validation and test, not
    with train.

    Args:
        path: the dataset folder.
        count, unit: measures the lengths of texts, and its unit: words, or tokens of a model (`hub.token_counter`).
        unread: counts the characters that a model cannot read or write.
        label_limit: longest label that training reads, in this unit, its end included.

    Raises:
        DataError: the folder or a line of it cannot be read at all.
    """
    dataset = DatasetFolder.open(path)
    check = _Check(dataset, count, unread, label_limit)
    try:
        dataset.verify()
    except DataError as error:
        check.findings.append(Finding("error", str(error)))
    splits = [split for split in ("test", "validation", "train") if split in dataset.hashes]
    with ProgressBar("check", sum(len(dataset.split(split)) for split in splits)) as bar:
        for split in splits:
            records = iter(dataset.split(split))
            while batch := list(islice(records, AT_ONCE)):
                check.take(split, batch)
                bar.advance(len(batch))
    return check.report(unit)


class _Check:
    """The state of one pass over a dataset."""

    def __init__(
        self, dataset: DatasetFolder, lengths_of: Count, unread: UnreadCharacters | None, label_limit: int | None
    ) -> None:
        self.dataset, self.lengths_of, self.unread, self.label_limit = dataset, lengths_of, unread, label_limit
        self.findings: list[Finding] = []
        self.records: Counter[str] = Counter()
        self.labels: dict[str, Counter[str]] = {}
        self.sources: dict[str, dict[str, SourceCounts]] = {}
        self.contrasts: dict[str, dict[str, ContrastCounts]] = {}
        self.lengths: dict[str, Counter[int]] = {}
        self.masks: dict[str, Counter[str]] = {}
        self.bad_sources = _Found()
        self.bad_labels, self.repeated_ids, self.divided_groups = _Found(), _Found(), _Found()
        self.shared: dict[tuple[str, str], _Found] = {}
        self.repeated_texts: dict[str, _Found] = {}
        self.ids: set[str] = set()
        self.groups: dict[str, str] = {}
        self.contents: dict[str, tuple[str, str]] = {}  # of test and validation: content -> split, id
        self.train_contents: set[str] = set()
        self.first_labels: dict[str, str | None] = {}  # content -> label
        self.contradictions = _Found()
        self.near = NearDuplicates()
        self.stated = StatedLabels(dataset.info.labels.values)

    def take(self, split: str, batch: Sequence[Record]) -> None:
        texts: dict[str, list[str]] = {"text": [record.text for record in batch]}
        texts["label"] = [record.label for record in batch if record.label is not None]
        for record in batch:
            self._count(split, record)
            self._compare(split, record)
            self.stated.add(record)
            for source, rationale in record.rationales.items():
                texts.setdefault(f"rationale of {source}", []).append(rationale)
            for source, by_label in record.contrasts.items():
                texts.setdefault(f"contrast of {source}", []).extend(by_label.values())
        for kind, values in texts.items():
            self.lengths.setdefault(kind, Counter()).update(self.lengths_of(values))
            if self.unread is not None:
                self.unread.add(values)
            for value in values:
                if mask := MASK_TOKEN.search(value):
                    self.masks.setdefault(kind, Counter())[mask.group()] += 1

    def _count(self, split: str, record: Record) -> None:
        info = self.dataset.info
        self.records[split] += 1
        self.labels.setdefault(split, Counter())[record.label or ""] += 1
        try:
            require_label(record, info.labels)
        except DataError as error:
            self.bad_labels.add(f"{split}: {error}")
        if record.id in self.ids:
            self.repeated_ids.add(f"{record.id!r} (again in {split})")
        self.ids.add(record.id)
        stated = record.label and _words_of(record.label)
        for source in {*info.rationale_sources, *record.rationales}:
            counts = self.sources.setdefault(source, {}).setdefault(split, SourceCounts())
            rationale = record.rationales.get(source)
            if rationale is None:
                counts.missing += 1
            else:
                counts.present += 1
                counts.states_label += bool(stated and stated in _words_of(rationale))

        self._count_contrasts(split, record)

    def _count_contrasts(self, split: str, record: Record) -> None:
        try:
            require_sources(record, self.dataset.info)
        except DataError as error:
            self.bad_sources.add(f"{split}: {error}")
        for source, by_label in record.contrasts.items():
            counts = self.contrasts.setdefault(source, {}).setdefault(split, ContrastCounts())
            counts.records += 1
            gold = _sentences_of(record.rationales.get(source, ""))
            for label, text in by_label.items():
                argued = _sentences_of(text)
                counts.labels[label] += 1
                counts.repeats_gold += argued == gold
                counts.one_sentence += len(argued) > 1 and len(argued - gold) == len(gold - argued) == 1

    def _compare(self, split: str, record: Record) -> None:
        if record.group is not None:
            first_split = self.groups.setdefault(record.group, split)
            if first_split != split:
                self.divided_groups.add(f"{record.group!r} ({first_split} and {split})")
        key = content_key(record)
        if self.first_labels.setdefault(key, record.label) != record.label:
            self.contradictions.add(f"{record.id!r} ({record.label}, elsewhere {self.first_labels[key]})")
        other = self.contents.get(key)
        if other is not None and other[0] != split:
            self.shared.setdefault((other[0], split), _Found()).add(f"{other[1]} = {record.id}")
        elif other is not None or key in self.train_contents:
            self.repeated_texts.setdefault(split, _Found()).add(record.id)
        elif split == "train":
            self.train_contents.add(key)
            self.near.compare(split, record, keep=False)
        else:
            self.contents[key] = (split, record.id)
            self.near.compare(split, record, keep=True)

    def report(self, length_unit: str) -> CheckReport:
        order = [split for split in SPLITS if split in self.records]
        self.findings += self._errors() + self._warnings()
        return CheckReport(
            path=str(self.dataset.path),
            name=self.dataset.info.name,
            records={split: self.records[split] for split in order},
            labels={split: dict(sorted(self.labels[split].items())) for split in order},
            open_labels=self.dataset.info.labels.is_open,
            sources={
                source: {split: by_split[split] for split in order if split in by_split}
                for source, by_split in sorted(self.sources.items())
            },
            contrasts={
                source: {split: by_split[split] for split in order if split in by_split}
                for source, by_split in sorted(self.contrasts.items())
            },
            lengths={kind: _quantiles(counts) for kind, counts in self.lengths.items() if counts},
            length_unit=length_unit,
            masks=self.masks,
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
        if self.bad_labels.count:
            messages.append(f"{self.bad_labels.count} labels cannot be used: {self.bad_labels}")
        if self.bad_sources.count:
            messages.append(f"{self.bad_sources.count} records have contrasts that cannot be used: {self.bad_sources}")
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
        for label, (own, others) in self.stated.leaking().items():
            messages.append(
                f"{own:.0%} of the texts with the label {label!r} state it, {others:.0%} of the others: the text gives "
                "the decision away; `r2d data fix --leaks mask` takes it out"
            )
        for kind, masks in self.masks.items():
            tokens = ", ".join(token for token, _ in masks.most_common(EXAMPLES))
            messages.append(f"{masks.total()} records have a mask in their {kind} ({tokens}); models learn to write it")
        for source, splits in sorted(self.contrasts.items()):
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
        for source, by_split in sorted(self.sources.items()):
            if not any(counts.present for counts in by_split.values()):
                messages.append(f"no record has a rationale of source {source!r}, which dataset.toml declares")
        longest = max(self.lengths.get("label", {0: 0})) + 1  # the end token
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
            lacking = [split for split in SPLITS if split in self.labels and not self.labels[split][label]]
            if lacking:
                messages.append(f"no record of {' or '.join(lacking)} has the label {label!r}")
        return [Finding("warning", message) for message in messages]


def _words_of(text: str) -> str:
    """The lower-case words of a text between single spaces, so that `in` finds whole words only."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return f" {' '.join(words)} "


def _sentences_of(text: str) -> frozenset[str]:
    return frozenset(text[start:end].casefold() for start, end in sentences(text))


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    lengths = np.array(sorted(counts))
    reached = np.cumsum([counts[length] for length in lengths.tolist()])
    ranks = {name: min(int(np.ceil(share * reached[-1])), int(reached[-1])) for name, share in QUANTILES.items()}
    return {name: int(lengths[np.searchsorted(reached, rank)]) for name, rank in ranks.items()}

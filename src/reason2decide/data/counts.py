"""What of a dataset's records adds up: counts of labels, sources, lengths and masks, of any part of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from reason2decide.data.dataset_folder import DatasetInfo, require_sources
from reason2decide.data.leaks import StatedLabels
from reason2decide.data.records import Record, require_label
from reason2decide.data.words import sentences
from reason2decide.errors import DataError

T = TypeVar("T")
EXAMPLES = 3  # ours: how many ids a message shows
# Words that datasets put in place of the label, and the masks of T5 and BERT.
MASK_TOKEN = re.compile(r"\[(?:LABEL|ANSWER|MASK|MASKED|BLANK|PREDICTION|OPTION|CHOICE)\]|<mask>|<extra_id_\d+>", re.I)

LengthsOf = Callable[[Sequence[str]], list[int]]


def count_words(texts: Sequence[str]) -> list[int]:
    """Count the words of each text, separated by white space."""
    return [len(text.split()) for text in texts]


@dataclass
class SourceCounts:
    """Record counts of one rationale source: with a rationale, without one, and with the label as whole words in it."""

    present: int = 0
    missing: int = 0
    states_label: int = 0

    def merge(self, other: SourceCounts) -> None:
        self.present += other.present
        self.missing += other.missing
        self.states_label += other.states_label

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

    def merge(self, other: ContrastCounts) -> None:
        self.records += other.records
        self.labels += other.labels
        self.repeats_gold += other.repeats_gold
        self.one_sentence += other.one_sentence


@dataclass
class FoundCases:
    """Count of one kind of finding, with a few ids."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def merge(self, other: FoundCases) -> None:
        self.count += other.count
        self.examples = [*self.examples, *other.examples][:EXAMPLES]

    def __str__(self) -> str:
        return f"{', '.join(self.examples)}{', ...' if self.count > len(self.examples) else ''}"


class RecordCounts:
    """Counts of records, by split.

    Args:
        info: describes their dataset.
        lengths_of: measures texts.
        counts_characters: whether to count every character too.
    """

    def __init__(self, info: DatasetInfo, lengths_of: LengthsOf, counts_characters: bool) -> None:
        self.info, self._lengths_of = info, lengths_of
        self.records: Counter[str] = Counter()
        self.labels: dict[str, Counter[str]] = {}
        self.sources: dict[str, dict[str, SourceCounts]] = {}
        self.contrasts: dict[str, dict[str, ContrastCounts]] = {}
        self.lengths: dict[str, Counter[int]] = {}
        self.masks: dict[str, Counter[str]] = {}
        self.characters: Counter[str] | None = Counter() if counts_characters else None
        self.bad_labels, self.bad_sources = FoundCases(), FoundCases()
        self.stated = StatedLabels(info.labels.values)

    def add(self, split: str, records: Sequence[Record]) -> None:
        """Count records."""
        texts: dict[str, list[str]] = {"text": [record.text for record in records]}
        texts["label"] = [record.label for record in records if record.label is not None]
        for record in records:
            self._count(split, record)
            self.stated.add(record)
            for source, rationale in record.rationales.items():
                texts.setdefault(f"rationale of {source}", []).append(rationale)
            for source, by_label in record.contrasts.items():
                texts.setdefault(f"contrast of {source}", []).extend(by_label.values())
        for kind, values in texts.items():
            self.lengths.setdefault(kind, Counter()).update(self._lengths_of(values))
            for value in values:
                if self.characters is not None:
                    self.characters.update(value)
                if mask := MASK_TOKEN.search(value):
                    self.masks.setdefault(kind, Counter())[mask.group()] += 1

    def merge(self, other: RecordCounts) -> None:
        """Add the counts of other records of the same dataset."""
        self.records += other.records
        _add_to(self.labels, other.labels)
        _add_to(self.lengths, other.lengths)
        _add_to(self.masks, other.masks)
        for source, by_split in other.sources.items():
            for split, found in by_split.items():
                self.sources.setdefault(source, {}).setdefault(split, SourceCounts()).merge(found)
        for source, contrasts in other.contrasts.items():
            for split, contrast in contrasts.items():
                self.contrasts.setdefault(source, {}).setdefault(split, ContrastCounts()).merge(contrast)
        if self.characters is not None and other.characters is not None:
            self.characters.update(other.characters)
        self.bad_labels.merge(other.bad_labels)
        self.bad_sources.merge(other.bad_sources)
        self.stated.merge(other.stated)

    def _count(self, split: str, record: Record) -> None:
        info = self.info
        self.records[split] += 1
        self.labels.setdefault(split, Counter())[record.label or ""] += 1
        try:
            require_label(record, info.labels)
        except DataError as error:
            self.bad_labels.add(f"{split}: {error}")
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
            require_sources(record, self.info)
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


def _add_to(counts: dict[str, Counter[T]], more: Mapping[str, Counter[T]]) -> None:
    for name, own in more.items():
        counts.setdefault(name, Counter()).update(own)


def _words_of(text: str) -> str:
    """The lower-case words of a text between single spaces, so that `in` finds whole words only."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return f" {' '.join(words)} "


def _sentences_of(text: str) -> frozenset[str]:
    return frozenset(text[start:end].casefold() for start, end in sentences(text))

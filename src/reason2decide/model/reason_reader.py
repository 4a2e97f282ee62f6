"""Whether a reason supports a decision, as a reader sees it that shares nothing with the model that wrote it.

The reader learns from the rationales of the training split which label each argues for, from the whole rationale and
from what is left of it without its verdict: a reason whose verdict agrees and whose facts argue for something else does
not support the decision either. The model's own posterior cannot tell that where it has learnt to ignore the label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sampling import some_explained
from reason2decide.data.verdicts import Verdicts
from reason2decide.data.words import WORD
from reason2decide.errors import NotComputed
from reason2decide.model.phrase_reader import PhraseReader

MOST_RECORDS = 20_000  # ours: upper limit for training; readers of phrases gain little from more
MOST_ARGUED = 4_000  # ours: records of these whose contrasts are read too
FILE = "reason_reader.json"


@dataclass(frozen=True)
class Lessons:
    """Rationales and the label that each argues for: the gold ones first, then contrasts, which weigh less."""

    records: Sequence[Record]  # those whose gold rationales come first
    rationales: Sequence[str]
    labels: Sequence[str]
    importance: Sequence[float]

    @classmethod
    def of(cls, records: Iterable[Record], labels: LabelSet, source: str) -> Lessons:
        """Those of at most `MOST_RECORDS` records, the contrasts of at most `MOST_ARGUED` of them.

        The contrasts of a record weigh together as much as its gold rationale.

        Raises:
            NotComputed: labels are not common to all records, or the records with a rationale have fewer than two.
        """
        if labels.is_open:
            raise NotComputed("the label set is open, but simulators need labels that are common to all records")
        learnt = some_explained(records, source, MOST_RECORDS)
        require_common_labels(learnt)
        gold = [str(record.label) for record in learnt]
        if len(set(gold)) < 2:
            raise NotComputed(
                f"{len(learnt)} training records have a gold rationale of source {source!r}, with {len(set(gold))} "
                "different labels, but simulators need at least two; name another source"
            )
        by_record = [
            [(label, text) for label, text in record.contrasts.get(source, {}).items() if text.strip()]
            for record in learnt[:MOST_ARGUED]
        ]
        argued = [item for own in by_record for item in own]
        return cls(
            learnt,
            [*(record.rationales[source] for record in learnt), *(text for _, text in argued)],
            [*gold, *(label for label, _ in argued)],
            [1.0] * len(learnt) + [1 / len(own) for own in by_record for _ in own],
        )


@dataclass(frozen=True)
class ReasonReader:
    """Reads which label a reason argues for: by all of it, and by what is left without its verdict, if anything is."""

    whole: PhraseReader
    reasons: PhraseReader | None
    verdicts: Verdicts

    @classmethod
    def fit(cls, lessons: Lessons, labels: LabelSet, source: str) -> ReasonReader:
        """Learn from rationales.

        Raises:
            NotComputed: no rationale has a word to learn from.
            MissingExtraError: scikit-learn is not installed.
        """
        verdicts = Verdicts.fit(lessons.records, labels, source)
        if not any(WORD.search(text) for text in lessons.rationales):
            raise NotComputed(f"no rationale of source {source!r} in training has a word to learn from")

        def fit(texts: Sequence[str]) -> PhraseReader | None:
            if not any(WORD.search(text) for text in texts):
                return None
            return PhraseReader.fit([(text,) for text in texts], lessons.labels, lessons.importance)

        whole = fit(lessons.rationales)
        assert whole is not None
        return cls(whole, fit([verdicts.reasons(text) for text in lessons.rationales]), verdicts)

    def supports(self, reasons: Sequence[str], labels: Sequence[str]) -> NDArray[np.float64]:
        """How much each reason supports its label, (n,): the lower P(label | reason), with its verdict and without."""
        found = [_of_labels(self.whole, reasons, labels)]
        if self.reasons is not None:
            found.append(_of_labels(self.reasons, [self.verdicts.reasons(text) for text in reasons], labels))
        lower: NDArray[np.float64] = np.min(found, axis=0)
        return lower

    def to_json(self) -> dict[str, Any]:
        """The content of a bundle's `reason_reader.json`: weights of hashed phrases, and the markers of verdicts."""
        return {
            "whole": self.whole.to_json(),
            "reasons": None if self.reasons is None else self.reasons.to_json(),
            "verdicts": {"labels": list(self.verdicts.labels.values), "markers": sorted(self.verdicts.markers)},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ReasonReader:
        """Read what `to_json` returned.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        reasons, verdicts = value["reasons"], value["verdicts"]
        return cls(
            PhraseReader.from_json(value["whole"]),
            None if reasons is None else PhraseReader.from_json(reasons),
            Verdicts(LabelSet(tuple(verdicts["labels"])), (tuple(map(str, marker)) for marker in verdicts["markers"])),
        )


def require_common_labels(records: Iterable[Record]) -> None:
    """Refuse records that have choices of their own.

    Raises:
        NotComputed: some have.
    """
    with_choices = sum(record.choices is not None for record in records)
    if with_choices:
        raise NotComputed(
            f"{with_choices} records have choices of their own, but readers need labels common to all records"
        )


def _of_labels(reader: PhraseReader, texts: Sequence[str], labels: Sequence[str]) -> NDArray[np.float64]:
    """P(label | text) of each text's own label; 0 for a label that training has not."""
    if not texts:
        return np.zeros(0)
    place = {label: i for i, label in enumerate(reader.labels)}
    found = reader.probabilities([(text,) for text in texts])
    return np.array([row[place[label]] if label in place else 0.0 for row, label in zip(found, labels, strict=True)])

"""Simulators: readers independent of any model, which guess the label from a text, a rationale, or both.

If a model judges its own rationales, a shared quirk passes for a reason. These readers learn only from rationales of
the train split, never from a model's: from the gold ones, and from those for other labels where it has any, since who
has read only why a call is urgent takes "against this speaks the chest pain" for urgent too. They are bags of phrases,
so they read only what is written. Choices that each record brings along cannot be learnt: of them, the one that a
rationale names is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.verdicts import Verdicts
from reason2decide.data.words import WORD, mask_label_words, named_labels, stem
from reason2decide.errors import NotComputed
from reason2decide.model.phrase_reader import SIGNATURE as PHRASES
from reason2decide.model.phrase_reader import PhraseReader
from reason2decide.model.reason_reader import MOST_ARGUED, MOST_RECORDS, Lessons, require_common_labels

SIGNATURE = f"{PHRASES}|records:{MOST_RECORDS}|contrasts of:{MOST_ARGUED}|own choices:named"
# What each reader reads. Two parts give separate phrases: a word in the text is not the same word in the rationale.
READERS = {
    "text": ("text",),
    "rationale": ("rationale",),
    "masked_rationale": ("masked_rationale",),
    "reasons": ("reasons",),
    "both": ("text", "rationale"),
}


class RationaleReader(Protocol):
    """RationaleReader labels from rationales, independently of any model."""

    def simulate(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> list[dict[str, str]]:
        """`Probe.simulated` for each prediction, without what is read from rationales for swapped labels.

        Raises:
            NotComputed: the records are not of the kind that it reads.
        """
        ...

    def simulate_swapped(self, records: Sequence[Record], rationales: Sequence[str]) -> list[dict[str, str]]:
        """What `Probe.simulated` has of each record's rationale for the swapped label."""
        ...


class NamedChoices:
    """RationaleReader which of its record's own choices a rationale names; nothing is learnt of such choices.

    A rationale that names none, or several, is read as no answer, so one that puts its decision in other words counts
    as not following it: compare with gold rationales, not with 1. Words with equal stems are the same.
    """

    def simulate(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> list[dict[str, str]]:
        """The choice named by each rationale; nothing where there is no rationale.

        Raises:
            NotComputed: a record has no choices of its own.
        """
        without = sum(record.choices is None for record in records)
        if without:
            raise NotComputed(f"{without} records have no choices to be named, in a dataset without common labels")
        texts = [(prediction.rationale or "").strip() for prediction in predictions]
        return [
            {"rationale": _named(record, text)} if text else {} for record, text in zip(records, texts, strict=True)
        ]

    def simulate_swapped(self, records: Sequence[Record], rationales: Sequence[str]) -> list[dict[str, str]]:
        """The choice named by each rationale."""
        return [{"swapped_rationale": _named(*given)} for given in zip(records, rationales, strict=True)]


def _named(record: Record, rationale: str) -> str:
    named = named_labels(rationale, record.choices or (), stem)
    return named.pop() if len(named) == 1 else NO_ANSWER


class Simulators:
    """One reader for each entry of `READERS`.

    Classes are balanced. The readers share nothing with a model and depend on the train split alone. They know little
    of triage: compare their figures between systems on the same dataset, not with 1.
    """

    def __init__(self, labels: LabelSet, verdicts: Verdicts, readers: Mapping[str, PhraseReader]) -> None:
        self.labels, self._verdicts, self._readers = labels, verdicts, readers

    @classmethod
    def fit(cls, records: Iterable[Record], labels: LabelSet, source: str) -> Simulators:
        """Learn the label from the texts and rationales of `source` in the train split's `records` (see `Lessons`).

        Raises:
            NotComputed: as `Lessons.of`, or the texts or rationales have no words to learn from.
            MissingExtraError: scikit-learn is not installed.
        """
        lessons = Lessons.of(records, labels, source)
        verdicts = Verdicts.fit(lessons.records, labels, source)
        read = _parts([record.text for record in lessons.records], lessons.rationales, verdicts)
        for part in ("text", "rationale"):
            if not any(map(WORD.search, read[part])):
                raise NotComputed(f"no {part} of source {source!r} in training has a word to learn from")
        readers = {}
        for reader, parts in READERS.items():
            if all(any(map(WORD.search, read[part])) for part in parts):
                # Those that read a text read it with the gold rationale, and gold rationales come first.
                texts = list(zip(*(read[part] for part in parts), strict=False))
                rows = slice(len(texts))
                readers[reader] = PhraseReader.fit(texts, lessons.labels[rows], lessons.importance[rows])
        return cls(labels, verdicts, readers)

    def simulate(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> list[dict[str, str]]:
        """`Probe.simulated` for each prediction; without a rationale, only the label read from the text.

        Raises:
            NotComputed: a record has choices of its own.
        """
        require_common_labels(records)
        simulated = [{"text": label} for label in self._read("text", {"text": [record.text for record in records]})]
        explained = [i for i, prediction in enumerate(predictions) if (prediction.rationale or "").strip()]
        read = _parts(
            [records[i].text for i in explained], [predictions[i].rationale or "" for i in explained], self._verdicts
        )
        for reader in [reader for reader in self._readers if reader != "text" and explained]:
            for i, label in zip(explained, self._read(reader, read), strict=True):
                simulated[i][reader] = label
        return simulated

    def simulate_swapped(self, records: Sequence[Record], rationales: Sequence[str]) -> list[dict[str, str]]:
        """The labels read from each rationale, also without its verdict if anything was learnt of such."""
        read = {"swapped_rationale": self.read_rationales(rationales), "swapped_reasons": self.read_reasons(rationales)}
        return [{reader: labels[i] for reader, labels in read.items() if labels} for i in range(len(rationales))]

    def read_rationales(self, rationales: Sequence[str]) -> list[str]:
        """The label read from each rationale alone."""
        return self._read("rationale", {"rationale": rationales})

    def read_reasons(self, rationales: Sequence[str]) -> list[str]:
        """The label read from each rationale without its verdict; none if training has nothing but verdicts."""
        if "reasons" not in self._readers:
            return []
        return self._read("reasons", {"reasons": [self._verdicts.reasons(rationale) for rationale in rationales]})

    def _read(self, reader: str, read: Mapping[str, Sequence[str]]) -> list[str]:
        return self._readers[reader].read(list(zip(*(read[part] for part in READERS[reader]), strict=True)))


def _parts(texts: Sequence[str], rationales: Sequence[str], verdicts: Verdicts) -> dict[str, Sequence[str]]:
    masked = [mask_label_words(rationale, verdicts.labels.values) for rationale in rationales]
    reasons = [verdicts.reasons(rationale) for rationale in rationales]
    return {"text": texts, "rationale": rationales, "masked_rationale": masked, "reasons": reasons}

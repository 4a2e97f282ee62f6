"""Labels that stand in the very texts to decide on: `Disposition: home care` at the end of a note (ours).

Words such as "no" stand in many texts and tell nothing. A label leaks if its own records state it much more often than
the others do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from reason2decide.data.records import Record
from reason2decide.data.words import MASK, WORD, words_of

LEAST = 0.05  # ours: share of a label's records that state it, from which it leaks
LIFT = 4.0  # ours: how many times as often as other records
FEW = 20  # ours: records of a label from which a share says something


class StatedLabels:
    """Counts how often texts state the labels of their records, and those of others.

    Args:
        labels: those common to all records; without any, none is found.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.records: Counter[str] = Counter()
        self.stating: Counter[tuple[str, str]] = Counter()  # (label stated, gold label)
        self._label_of = {" ".join(words_of(label)): label for label in labels if words_of(label)}
        # Also as the labels are written: "Maßnahme" in lower case is "massnahme", which is not in its text.
        spellings = {*self._label_of, *(" ".join(WORD.findall(label)) for label in self._label_of.values())}
        longest_first = sorted(spellings, key=lambda words: (-len(words), words))
        between = rf"(?:(?!{MASK})[\W_])+"  # a mask parts words that came together when what stood between was masked
        found = "|".join(between.join(map(re.escape, words.split())) for words in longest_first)
        self._pattern = re.compile(rf"(?<![^\W_])(?:{found})(?![^\W_])", re.IGNORECASE) if found else None

    def add(self, record: Record) -> None:
        """Count a record; one with choices of its own states labels by asking, and does not count."""
        if record.label is not None and record.choices is None:
            self.records[record.label] += 1
            self.stating.update((label, record.label) for label in self.stated(record.text))

    def merge(self, other: StatedLabels) -> None:
        """Add what another of the same labels has counted."""
        self.records += other.records
        self.stating += other.stating

    def stated(self, text: str) -> set[str]:
        """The labels whose words stand in a text one after another, in any case."""
        if self._pattern is None:
            return set()
        found = (" ".join(words_of(match.group())) for match in self._pattern.finditer(text))
        return {self._label_of[words] for words in found if words in self._label_of}

    def leaking(self) -> dict[str, tuple[float, float]]:
        """The labels that leak, with the share of their own records and that of the others that state them."""
        found = {}
        for label, count in self.records.items():
            others = self.records.total() - count
            own = self.stating[label, label] / count
            elsewhere = sum(n for (stated, gold), n in self.stating.items() if stated == label != gold)
            rate = elsewhere / others if others else 0.0
            if count >= FEW and own >= LEAST and own > LIFT * rate:
                found[label] = (own, rate)
        return found

    def masked(self, text: str, labels: Collection[str]) -> str:
        """A text with these labels masked: in every text, as a mask that stood for one label only would tell it."""
        if self._pattern is None or not labels:
            return text

        def mask(match: re.Match[str]) -> str:
            return MASK if self._label_of.get(" ".join(words_of(match.group()))) in labels else match.group()

        return self._pattern.sub(mask, text)

"""Whether a reason supports its decision: read by what training taught, or by the choice that the reason names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from reason2decide.data.words import named_labels, stem
from reason2decide.model.bundle import Bundle
from reason2decide.model.calibration import ROUNDING
from reason2decide.model.reason_reader import ReasonReader
from reason2decide.model.reasons import Reason


class ReasonCheck(Protocol):
    """Checks reasons."""

    def checked(self, texts: Sequence[str], labels: Sequence[str], choices: Sequence[Sequence[str]]) -> list[Reason]:
        """The texts as reasons for their labels, each of which is one of the `choices`."""
        ...


@dataclass(frozen=True)
class SupportCheck:
    """A reason supports its label if a reader gives the label at least a probability of `cutoff`."""

    reader: ReasonReader
    cutoff: float

    def checked(self, texts: Sequence[str], labels: Sequence[str], choices: Sequence[Sequence[str]]) -> list[Reason]:
        """See `ReasonCheck`."""
        found = self.reader.supports(texts, labels).tolist()
        return [Reason(text, p, p >= self.cutoff - ROUNDING) for text, p in zip(texts, found, strict=True)]


class NamedCheck:
    """A reason does not support its label if it names others of its record's own choices instead (ours).

    Nothing is learnt of such choices, so there is no probability. A reason that names none is not checked.
    """

    def checked(self, texts: Sequence[str], labels: Sequence[str], choices: Sequence[Sequence[str]]) -> list[Reason]:
        """See `ReasonCheck`."""
        named = [named_labels(text, own, stem) for text, own in zip(texts, choices, strict=True)]
        return [
            Reason(text, supports=label in own if own else None)
            for text, label, own in zip(texts, labels, named, strict=True)
        ]


def reason_check(bundle: Bundle) -> ReasonCheck | None:
    """The check that a bundle's reasons can be put to; None without rationales to learn from and set a threshold by."""
    if bundle.manifest.labels.is_open:
        return NamedCheck()
    cutoff = bundle.calibration.support_cutoff()
    return None if bundle.reader is None or cutoff is None else SupportCheck(bundle.reader, cutoff)

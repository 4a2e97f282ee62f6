"""Pairs of a predicted rationale and its record's gold one, for metrics that compare rationale texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reason2decide.errors import NotComputed, NothingToCount
from reason2decide.evaluation.metrics.base import Examples, Integers


@dataclass(frozen=True)
class RationalePairs:
    """Predicted and gold rationales, stripped, of the n records that have a gold one of the source.

    positions: (n,) positions of these records in `Examples`; a missing predicted rationale is an empty text. `notes`
    say what was left out or counted specially.
    """

    positions: Integers
    predicted: tuple[str, ...]
    gold: tuple[str, ...]
    notes: tuple[str, ...]


def rationale_pairs(examples: Examples) -> RationalePairs:
    """Pair the predicted rationales with the gold ones of `examples.rationale_source`, at least one pair.

    Raises:
        NotComputed: no source was named, no record has a gold rationale of it, or no prediction has a rationale.
    """
    source = examples.rationale_source
    if source is None:
        raise NotComputed("no rationale source was named to compare with")
    if all(prediction.rationale is None for prediction in examples.predictions):
        raise NothingToCount("no prediction has a rationale")
    texts = [record.rationales.get(source, "").strip() for record in examples.records]
    positions = np.array([i for i, text in enumerate(texts) if text], np.int64)
    if not len(positions):
        raise NothingToCount(f"no record has a gold rationale of source {source!r}")
    predicted = tuple((examples.predictions[i].rationale or "").strip() for i in positions)
    notes = []
    if len(positions) < len(texts):
        notes.append(
            f"{len(texts) - len(positions)} of {len(texts)} records have no gold rationale of source {source!r} "
            "and are left out"
        )
    empty = sum(not text for text in predicted)
    if empty:
        notes.append(f"{empty} of {len(predicted)} predicted rationales are missing or empty and count as empty text")
    return RationalePairs(positions, predicted, tuple(texts[i] for i in positions), tuple(notes))

"""Whether a stage has learnt anything: a loss that does not fall, decisions no better than the majority's (ours)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

FALLEN = 0.02  # ours: a loss that has fallen by less, from its first tenth to its last, is flat
FEWEST = 50  # ours: steps from which a loss shows where it goes
LEVEL = 0.01  # ours: macro-F1 or accuracy above the majority's that is not luck of a few records
LOSSES = ("label_loss", "rationale_loss")


def complaints(stage: str, rows: Sequence[Mapping[str, Any]], gold: Sequence[str], labels: int) -> list[str]:
    """What a finished stage has not learnt, from the rows of a run's log.

    Args:
        gold: labels of the validation split.
        labels: number of labels declared, over which macro-F1 is the mean.
    """
    trained = [row for row in rows if row["event"] == "train"]
    own, before = ([row for row in trained if (row["stage"] == stage) is mine] for mine in (True, False))
    new = [name for name in LOSSES if not any(row.get(name) is not None for row in before)]
    validations = [row for row in rows if row["stage"] == stage and row["event"] == "validation"]
    return [*_flat(own, new), *_at_majority(validations, gold, labels)]


def _flat(steps: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """The losses that stay where they begin; those that an earlier stage has lowered may."""
    for name in names:
        losses = [row[name] for row in steps if row.get(name) is not None]
        if len(losses) >= FEWEST:
            tenth = len(losses) // 10
            first, last = np.mean(losses[:tenth]), np.mean(losses[-tenth:])
            if last > first * (1 - FALLEN):
                yield f"the {name.replace('_', ' ')} did not fall: {first:.3f} at first, {last:.3f} at last"


def _at_majority(validations: Sequence[Mapping[str, Any]], gold: Sequence[str], labels: int) -> Iterator[str]:
    counts = Counter(gold)
    for name, title in (("macro_f1", "macro-F1"), ("accuracy", "accuracy")):
        found = [row[name] for row in validations if name in row]
        if found:
            level = majority_level(counts, name, labels)
            if max(found) < level + LEVEL and len(counts) > 1:
                yield f"validation {title} is at most {max(found):.3f}; always deciding one label gives {level:.3f}"
            return


def majority_level(counts: Mapping[str, int], metric: str, labels: int) -> float:
    """Accuracy or macro-F1 over so many labels of always deciding the most frequent one: p, or 2p / (1 + p) / labels.

    Example:
        >>> counts = {"yes": 3, "no": 1}
        >>> majority_level(counts, "accuracy", 3), round(majority_level(counts, "macro_f1", 3), 3)
        (0.75, 0.286)
    """
    p = max(counts.values()) / sum(counts.values())
    return p if metric == "accuracy" else 2 * p / (1 + p) / labels

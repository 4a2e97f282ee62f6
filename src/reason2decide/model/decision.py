"""What a model decides on one text, and how much of the text it has read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on one text: calibrated probabilities by label, in the order of the label set.

    `prediction_set` lists the labels that split-conformal prediction cannot rule out, most probable first. `deferred`
    says that a person should decide: the confidence is below the threshold, or the text was not read whole and such
    texts are deferred. `tokens` counts the tokens of the text, `tokens_read` those that the model has read.
    """

    label: str
    probabilities: Mapping[str, float]
    prediction_set: tuple[str, ...]
    deferred: bool
    tokens: int = 0
    tokens_read: int = 0

    @property
    def confidence(self) -> float:
        """The calibrated probability of the label."""
        return self.probabilities[self.label]

    @property
    def cut(self) -> bool:
        """Whether part of the text was not read."""
        return self.tokens_read < self.tokens

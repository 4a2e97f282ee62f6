"""Calibration of a model's probabilities: a temperature, a deferral threshold, prediction sets.

All are fitted on the validation split and only applied to other data. A bundle keeps the validation outcomes, three
numbers per record and none of its text, so that a hospital can choose its own error rate later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.model.operating_point import CONFIDENCE, ERROR_RATE, MISCOVERAGE, UNSUPPORTED

Floats = NDArray[np.float64]
LARGEST_TEMPERATURE = 20.0  # ours, and 1/20 the smallest: for validation splits without a mistake, or all mistakes
LEAST_PROBABILITY = 1e-12  # ours: replaces a probability of 0 in a file
ALWAYS = 1.1  # a threshold that no probability reaches
DIGITS = 6  # ours: decimals kept of the outcomes
ROUNDING = 10**-DIGITS  # probabilities this close are equal: other batches and engines round them differently
THRESHOLD_STEP = 0.01  # ours: thresholds tried are multiples, chosen before the outcomes are seen, as the test requires
EXPECTED_ERRORS = 10  # ours: the first threshold tried keeps so many cases that this many could be wrong at the target


def label_distribution(scores: Floats, temperature: float = 1.0) -> Floats:
    """P(label | text) over the candidates from their total log-probabilities (candidates,): softmax(scores / T).

    Source: ours (the authors generate labels); the temperature after Guo et al. 2017, "temperature scaling".
    """
    shifted = np.exp((scores - scores.max()) / temperature)
    result: Floats = shifted / shifted.sum()
    return result


def rescaled(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
    """A distribution of temperature 1 rescaled to another temperature: p^(1/T), normalised."""
    scores = np.log(np.maximum(list(probabilities.values()), np.finfo(float).tiny))
    return dict(zip(probabilities, label_distribution(scores, temperature).tolist(), strict=True))


def log_probabilities(probabilities: Mapping[str, float]) -> Floats:
    """The logarithms of a distribution from a file, in which 0 means "almost never", (labels,)."""
    return np.log(np.maximum(list(probabilities.values()), LEAST_PROBABILITY))


def fit_temperature(scores: Sequence[Floats], gold: Sequence[int]) -> float:
    """The temperature T that minimises the log loss of softmax(scores / T) (Guo et al. 2017).

    The loss is convex in 1/T; its derivative, the mean of E_p[score] - score of gold, has one zero, found by bisection.

    Args:
        scores: for each record the log-probabilities of its candidates, (candidates,), normalised or not.
        gold: for each record the index of its gold label among them.
    """
    widest = max(map(len, scores))
    table = np.full((len(scores), widest), -np.inf)
    for row, values in enumerate(scores):
        table[row, : len(values)] = values - values.max()
    # A finite number whose exponential is 0: 0 times infinity would be NaN.
    table = np.maximum(table, -1e6)
    gold_scores = table[np.arange(len(scores)), list(gold)]
    low, high = -math.log(LARGEST_TEMPERATURE), math.log(LARGEST_TEMPERATURE)  # of log 1/T
    for _ in range(50):
        middle = (low + high) / 2
        p = np.exp(table * math.exp(middle))
        expected = (p * table).sum(1) / p.sum(1)
        low, high = (middle, high) if (expected - gold_scores).mean() < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def deferral_threshold(
    confidences: Floats, right: NDArray[np.bool_], error_rate: float, confidence: float = CONFIDENCE
) -> float | None:
    """The lowest confidence threshold that is shown to keep the error rate of the decisions made; None if none is.

    Cases of lower confidence are deferred to a person. On exchangeable data, at most `error_rate` of the others are
    wrong, with probability `confidence` over the draw of the outcomes given here: thresholds are tested from the
    highest down, each by the chance of so few errors at a higher rate, to the first that fails (a fixed sequence).
    Source: selective classification, Geifman and El-Yaniv 2017; the test is Angelopoulos et al. 2021, "Learn then
    test".

    Args:
        confidences: probability of each predicted label, (n,).
        right: whether it is the gold label, (n,).
    """
    if error_rate >= 1:
        return 0.0
    least_kept = EXPECTED_ERRORS / error_rate if error_rate > 0 else math.inf
    lowest, most = None, 0
    for step in range(round(1 / THRESHOLD_STEP), -1, -1):
        threshold = step * THRESHOLD_STEP
        kept = confidences >= threshold - ROUNDING
        if (n := int(kept.sum())) < least_kept:
            continue
        if _binomial_tail(int((kept & ~right).sum()), n, error_rate) > 1 - confidence:
            break
        if n > most:  # a lower threshold that keeps no more cases is not shown by any
            lowest, most = threshold, n
    return lowest


def _binomial_tail(most: int, n: int, p: float) -> float:
    """P(X <= most) of a binomial with n trials of probability p, 0 < p < 1."""
    terms = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(most + 1)
    )
    return sum(math.exp(term) for term in terms)


def conformal_cutoff(gold_probabilities: Floats, miscoverage: float) -> float:
    """The probability that a label must have to be in the prediction set (split conformal).

    Sets then contain the gold label of exchangeable data with probability at least 1 - `miscoverage`. Source: Sadinle,
    Lei and Wasserman 2019; the rank is that of Vovk et al. 2005: of n + 1 cases, floor((n + 1) miscoverage) may be
    missed, so the cutoff is the gold probability of that rank from below.
    """
    rank = math.floor((len(gold_probabilities) + 1) * miscoverage + ROUNDING)
    if rank > len(gold_probabilities):
        return ALWAYS  # every set may miss; it still has the first label
    return float(np.sort(gold_probabilities)[rank - 1]) if rank else 0.0


def prediction_set(probabilities: Mapping[str, float], cutoff: float) -> tuple[str, ...]:
    """The labels of probability `cutoff` or more, most probable first, and always the first (ours: never empty).

    A probability within `ROUNDING` of the cutoff reaches it: where many are equal, rounding would decide otherwise.
    """
    ranked = sorted(probabilities, key=lambda label: -probabilities[label])
    return tuple(label for i, label in enumerate(ranked) if i == 0 or probabilities[label] >= cutoff - ROUNDING)


@dataclass(frozen=True)
class OperatingPoint:
    """The bounds on probabilities by which a model defers cases and forms prediction sets."""

    threshold: float
    cutoff: float

    def defers(self, confidence: float) -> bool:
        """Whether a decision of this probability is deferred to a person."""
        return bool(confidence < self.threshold - ROUNDING)

    @property
    def defers_all(self) -> bool:
        """Whether no decision is sure enough: validation shows no threshold that keeps the error rate."""
        return self.threshold > 1

    def prediction_set(self, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """See `prediction_set`."""
        return prediction_set(probabilities, self.cutoff)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A temperature, and the outcomes of the validation split under it.

    For each validation record, (n,): the confidence in the predicted label, whether it is right, and the probability of
    the gold label. Of those with a gold rationale, (m,): how much it supports its label (`reason_reader`).
    """

    temperature: float
    confidences: Floats
    right: NDArray[np.bool_]
    gold_probabilities: Floats
    reason_supports: Floats = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def fit(
        cls, scores: Sequence[Floats], gold: Sequence[int], decided: Sequence[int | None] | None = None
    ) -> Calibration:
        """Fit to the label log-probabilities of a validation split.

        Args:
            scores: as `fit_temperature`.
            gold: as `fit_temperature`.
            decided: for each record the index of the label decided, None without an answer; by default the most
                probable one.
        """
        temperature = fit_temperature(scores, gold)
        distributions = [label_distribution(values, temperature) for values in scores]
        chosen = [int(p.argmax()) for p in distributions] if decided is None else decided
        return cls(
            temperature,
            np.array([0.0 if i is None else p[i] for p, i in zip(distributions, chosen, strict=True)]).round(DIGITS),
            np.array([i == index for i, index in zip(chosen, gold, strict=True)]),
            np.array([p[index] for p, index in zip(distributions, gold, strict=True)]).round(DIGITS),
        )

    def threshold(self, error_rate: float = ERROR_RATE) -> float | None:
        """See `deferral_threshold`."""
        return deferral_threshold(self.confidences, self.right, error_rate)

    def cutoff(self, miscoverage: float = MISCOVERAGE) -> float:
        """See `conformal_cutoff`."""
        return conformal_cutoff(self.gold_probabilities, miscoverage)

    def support_cutoff(self, share: float = UNSUPPORTED) -> float | None:
        """Support under which a reason does not support its label; None without gold rationales.

        At most a `share` of reasons like the gold ones fall under it (split conformal, as `conformal_cutoff`).
        """
        return conformal_cutoff(self.reason_supports, share) if len(self.reason_supports) else None

    def operating_point(self, error_rate: float = ERROR_RATE, miscoverage: float = MISCOVERAGE) -> OperatingPoint:
        """The bounds for the wanted rates; if no threshold is shown to keep `error_rate`, every case is deferred."""
        threshold = self.threshold(error_rate)
        return OperatingPoint(ALWAYS if threshold is None else threshold, self.cutoff(miscoverage))

    def to_json(self) -> dict[str, Any]:
        """The content of a bundle's `calibration.json`."""
        return {
            "temperature": self.temperature,
            "confidences": self.confidences.tolist(),
            "right": self.right.astype(int).tolist(),
            "gold_probabilities": self.gold_probabilities.tolist(),
            "reason_supports": self.reason_supports.tolist(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """Read what `to_json` returned."""
        return cls(
            float(value["temperature"]),
            np.array(value["confidences"], float),
            np.array(value["right"], bool),
            np.array(value["gold_probabilities"], float),
            np.array(value.get("reason_supports", ()), float),  # earlier bundles have none
        )

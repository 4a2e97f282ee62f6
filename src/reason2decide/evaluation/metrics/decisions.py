"""Metrics of decisions: how often they are right, overall and for every label."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from reason2decide.data.predictions import NO_ANSWER
from reason2decide.data.records import LabelSet
from reason2decide.errors import NotComputed
from reason2decide.evaluation.metrics.base import Examples, Floats, Integers, Metric, SufficientStatistics, ratio

# Ours: where a label is gold or predicted less often, intervals of macro-F1 held in 66 to 97 of 100 simulations.
FEW = 20


def label_indices(examples: Examples) -> tuple[Integers, Integers]:
    """Gold and predicted labels as indices into the K declared labels, each of shape (n,); no answer is K.

    Raises:
        NotComputed: the label set is open, or records with choices of their own have labels outside the declared set.
    """
    if examples.labels.is_open:
        raise NotComputed("the label set is open (each record has its own choices), so there are no common labels")
    index = {label: i for i, label in enumerate(examples.labels.values)}
    gold = [index.get(record.label or "", -1) for record in examples.records]
    index[NO_ANSWER] = len(index)
    predicted = [index.get(prediction.predicted_label, -1) for prediction in examples.predictions]
    outside = sum(min(pair) < 0 for pair in zip(gold, predicted, strict=True))
    if outside:
        raise NotComputed(
            f"{outside} of {len(gold)} records have a gold or predicted label from their own choices that is outside "
            "the declared label set"
        )
    return np.array(gold, np.int64), np.array(predicted, np.int64)


def confusion_matrix(examples: Examples) -> Integers:
    """Counts (K, K + 1) over the declared labels: rows are gold labels, columns predicted ones and no answer.

    Raises:
        NotComputed: as `label_indices`.
    """
    gold, predicted = label_indices(examples)
    size = len(examples.labels.values)
    return np.bincount(gold * (size + 1) + predicted, minlength=size * (size + 1)).reshape(size, size + 1)


def per_label_scores(matrix: Integers, labels: Sequence[str]) -> Mapping[str, Mapping[str, float | int]]:
    """Precision, recall, F1 and support (gold count) of each label from a confusion matrix (K, K + 1).

    A ratio with a zero denominator is 0, as with scikit-learn's `zero_division=0`.
    """
    hits, gold, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)[: len(labels)]
    precision, recall, f1 = ratio(hits, predicted), ratio(hits, gold), ratio(2 * hits, gold + predicted)
    return {
        label: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(gold[i]),
        }
        for i, label in enumerate(labels)
    }


def pooled_cells(examples: Examples) -> tuple[Integers, Integers, Integers]:
    """The distinct (gold, predicted) pairs that occur, as two arrays (cells,), and the cell of each example (n,).

    Raises:
        NotComputed: as `label_indices`.
    """
    gold, predicted = label_indices(examples)
    size = len(examples.labels.values) + 1
    cells, cell_of = np.unique(gold * size + predicted, return_inverse=True)
    return cells // size, cells % size, cell_of.reshape(-1)


class Accuracy(Metric):
    """Share of records whose predicted label is the gold one.

    Why: the plainest question, and the only one for open label sets. It hides rare labels; see macro-F1.
    Formula: right / n; no answer counts as wrong. Range 0 to 1, higher is better. Source: the paper's accuracy.
    """

    name, title, worst, best = "accuracy", "Accuracy", 0.0, 1.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (right, 1), with only two distinct ones."""
        pairs = zip(examples.records, examples.predictions, strict=True)
        right = np.array([record.label == prediction.predicted_label for record, prediction in pairs], np.int64)
        unanswered = sum(prediction.predicted_label == NO_ANSWER for prediction in examples.predictions)
        notes = (f"{unanswered} of {len(right)} records got no valid answer and count as wrong",)
        return SufficientStatistics(
            np.array([[0.0, 1.0], [1.0, 1.0]]), right, np.arange(len(right)), notes if unanswered else ()
        )

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 2) -> (...)."""
        return ratio(sums[..., 0], sums[..., 1])


class _OfLabelCounts(Metric):
    """A function of each label's hits, gold count and predicted count."""

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows of 3K: hits, gold counts and predicted counts by label; one distinct row per confusion cell."""
        cell_gold, cell_predicted, cell_of = pooled_cells(examples)
        size = len(examples.labels.values)
        rows, at = np.zeros((len(cell_gold), 3, size + 1)), np.arange(len(cell_gold))
        rows[at, 0, cell_gold] = cell_gold == cell_predicted
        rows[at, 1, cell_gold] = 1
        rows[at, 2, cell_predicted] = 1
        rows = rows[:, :, :size]  # no answer counts as a prediction of no label
        return SufficientStatistics(rows.reshape(len(rows), -1), cell_of, np.arange(len(cell_of)))

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 3K) -> (...)."""
        hits, gold, predicted = np.split(sums, 3, axis=-1)
        return self.of_counts(hits, gold, predicted)

    @abstractmethod
    def of_counts(self, hits: Floats, gold: Floats, predicted: Floats) -> Floats:
        """Map counts by label, each (..., K), to values (...)."""


class MacroF1(_OfLabelCounts):
    """Mean over the declared labels of each label's F1.

    Why: triage labels are unbalanced, and the rare ones are the urgent ones; here all labels have equal weight.
    Formula: mean over labels of 2 hits / (gold + predicted). The mean is over the *declared* label set, not over the
    strings that occur: a label absent from both gold and predictions counts as F1 = 0, as with scikit-learn's
    `f1_score(labels=declared, average="macro", zero_division=0)`. Within a slice, labels that are not gold there are
    left out, or a perfect system would differ between slices. Range 0 to 1, higher is better.
    Source: the paper's macro-F1, except that the authors' code takes the mean over gold and predicted strings.

    Args:
        labels: indices of the labels to count; None means all.
    """

    name, title, worst, best = "macro_f1", "Macro-F1", 0.0, 1.0

    def __init__(self, labels: Integers | None = None) -> None:
        self.labels = labels

    def remarks(self, total: Floats, labels: LabelSet) -> tuple[str, ...]:
        """Labels that seldom occur."""
        _, gold, predicted = np.split(total, 3)
        few = [label for label, count in zip(labels.values, np.minimum(gold, predicted), strict=True) if count < FEW]
        if not few:
            return ()
        return (
            f"{len(few)} of {len(gold)} labels are gold or predicted fewer than {FEW} times ({', '.join(few[:3])}"
            f"{', ...' if len(few) > 3 else ''}): the interval holds the true value in less than 95 of 100 samples",
        )

    def of_counts(self, hits: Floats, gold: Floats, predicted: Floats) -> Floats:
        """Each (..., K) -> (...)."""
        scores = ratio(2 * hits, gold + predicted)
        means: Floats = (scores if self.labels is None else scores[..., self.labels]).mean(axis=-1)
        return means

    def resampled(self, total: Floats) -> Callable[[Floats], Floats]:
        """`aggregate`, in which a label that a resample lacks by chance is left out instead of counting as 0."""
        _, *sides = np.split(total, 3)
        occurs = sum(sides) > 0

        def value(sums: Floats) -> Floats:
            hits, gold, predicted = np.split(sums, 3, axis=-1)
            counted = (gold + predicted > 0) | ~occurs
            scores = ratio(2 * hits, gold + predicted)
            if self.labels is not None:
                scores, counted = scores[..., self.labels], counted[..., self.labels]
            return ratio(scores.sum(-1), counted.sum(-1))

        return value

    def within(self, part: SufficientStatistics) -> MacroF1:
        """Macro-F1 over the labels that are gold in the part."""
        gold = np.split(part.total(), 3)[1]
        return MacroF1(np.flatnonzero(gold))


class MicroF1(_OfLabelCounts):
    """F1 of all decisions together.

    Why: others report it. It equals accuracy if every record has an answer; a missing answer lowers only recall.
    Formula: 2 hits / (gold + predicted), each summed over labels. Range 0 to 1, higher is better.
    Source: scikit-learn's `f1_score(average="micro")`.
    """

    name, title, worst, best = "micro_f1", "Micro-F1", 0.0, 1.0

    def of_counts(self, hits: Floats, gold: Floats, predicted: Floats) -> Floats:
        """Each (..., K) -> (...)."""
        return ratio(2 * hits.sum(-1), gold.sum(-1) + predicted.sum(-1))


class WeightedF1(_OfLabelCounts):
    """Mean of the labels' F1, each weighted by how often it is gold.

    Why: others report it. Common labels dominate it; read macro-F1 for rare ones.
    Formula: sum over labels of gold / n times 2 hits / (gold + predicted). Range 0 to 1, higher is better. Source:
    scikit-learn's `f1_score(average="weighted")`.
    """

    name, title, worst, best = "weighted_f1", "Weighted F1", 0.0, 1.0

    def of_counts(self, hits: Floats, gold: Floats, predicted: Floats) -> Floats:
        """Each (..., K) -> (...)."""
        return ratio((gold * ratio(2 * hits, gold + predicted)).sum(-1), gold.sum(-1))


class Mcc(_OfLabelCounts):
    """Matthews correlation of gold and predicted labels.

    Why: 0 for any system that ignores the text, even with unbalanced labels, where accuracy flatters.
    Formula: (n hits - sum_k gold_k predicted_k) / sqrt((n^2 - sum_k predicted_k^2)(n^2 - sum_k gold_k^2)), no answer
    counting as one more predicted label; 0 if a factor is 0. Range -1 to 1, higher is better. Source: Gorodkin 2004.
    """

    name, title, worst, best = "mcc", "Matthews correlation", -1.0, 1.0

    def of_counts(self, hits: Floats, gold: Floats, predicted: Floats) -> Floats:
        """Each (..., K) -> (...)."""
        n = gold.sum(-1)
        unanswered = n - predicted.sum(-1)
        covariance = n * hits.sum(-1) - (gold * predicted).sum(-1)
        spread = (n**2 - (predicted**2).sum(-1) - unanswered**2) * (n**2 - (gold**2).sum(-1))
        return ratio(covariance, np.sqrt(np.maximum(spread, 0.0)))

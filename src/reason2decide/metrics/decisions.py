"""Metrics of the decision: how often it is right, and whether it is right for every label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reason2decide.metrics.base import Examples, Floats, Integers, Metric, NotComputed, SufficientStatistics


def label_indices(examples: Examples) -> tuple[Integers, Integers]:
    """Gold and predicted labels as indices into the declared label set, each of shape (n,).

    Raises:
        NotComputed: the label set is open, or records with choices of their own left the declared set.
    """
    if examples.labels.is_open:
        raise NotComputed("the label set is open (each record brings its own choices), so there are no common labels")
    index = {label: i for i, label in enumerate(examples.labels.values)}
    gold = [index.get(record.label or "", -1) for record in examples.records]
    predicted = [index.get(prediction.predicted_label, -1) for prediction in examples.predictions]
    outside = sum(min(pair) < 0 for pair in zip(gold, predicted, strict=True))
    if outside:
        raise NotComputed(
            f"{outside} of {len(gold)} records have a gold or predicted label from choices of their own, "
            "outside the declared label set"
        )
    return np.array(gold, np.int64), np.array(predicted, np.int64)


def confusion_matrix(examples: Examples) -> Integers:
    """Counts (K, K) over the declared labels: rows are gold labels, columns predicted ones.

    Raises:
        NotComputed: as `label_indices`.
    """
    gold, predicted = label_indices(examples)
    size = len(examples.labels.values)
    return np.bincount(gold * size + predicted, minlength=size * size).reshape(size, size)


def per_label_scores(matrix: Integers, labels: Sequence[str]) -> Mapping[str, Mapping[str, float | int]]:
    """Precision, recall, F1 and support (gold count) of each label from a confusion matrix (K, K).

    A ratio whose denominator is zero is 0, as with scikit-learn's `zero_division=0`.
    """
    hits, gold, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    precision, recall, f1 = _ratio(hits, predicted), _ratio(hits, gold), _ratio(2 * hits, gold + predicted)
    return {
        label: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(gold[i]),
        }
        for i, label in enumerate(labels)
    }


def _ratio(numerator: Floats | Integers, denominator: Floats | Integers) -> Floats:
    result: Floats = np.divide(
        numerator, denominator, out=np.zeros(np.shape(numerator)), where=np.asarray(denominator) > 0
    )
    return result


class Accuracy(Metric):
    """Share of records whose predicted label is the gold one.

    Why: the plainest question, and the only one that open label sets allow. It hides rare labels; see macro-F1.
    Formula: right / n. Range 0 to 1, higher is better. Source: the paper's accuracy.
    """

    name, title, worst, best = "accuracy", "Accuracy", 0.0, 1.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (right, 1), of which only two differ."""
        pairs = zip(examples.records, examples.predictions, strict=True)
        right = np.array([record.label == prediction.predicted_label for record, prediction in pairs], np.int64)
        return SufficientStatistics(np.array([[0.0, 1.0], [1.0, 1.0]]), right, np.arange(len(right)))

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 2) -> (...)."""
        return _ratio(sums[..., 0], sums[..., 1])


class MacroF1(Metric):
    """Mean over the declared labels of each label's F1.

    Why: triage labels are unbalanced, and the rare ones are the urgent ones; here each label weighs the same.
    Formula: mean over labels of 2 hits / (gold + predicted). The mean is over the *declared* label set, not over the
    strings seen: a label absent from gold and predictions alike counts as F1 = 0, as with scikit-learn's
    `f1_score(labels=declared, average="macro", zero_division=0)`. Range 0 to 1, higher is better.
    Source: the paper's macro-F1, except that the authors' code takes the mean over gold and predicted strings.
    """

    name, title, worst, best = "macro_f1", "Macro-F1", 0.0, 1.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows of 3K: hits, gold counts and predicted counts by label; one distinct row per confusion cell seen."""
        gold, predicted = label_indices(examples)
        size = len(examples.labels.values)
        cells, row_of = np.unique(gold * size + predicted, return_inverse=True)
        cell_gold, cell_predicted = np.divmod(cells, size)
        rows = np.zeros((len(cells), 3, size))
        at = np.arange(len(cells))
        rows[at, 0, cell_gold] = cell_gold == cell_predicted
        rows[at, 1, cell_gold] = 1
        rows[at, 2, cell_predicted] = 1
        return SufficientStatistics(rows.reshape(len(cells), -1), row_of.reshape(-1), np.arange(len(gold)))

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 3K) -> (...)."""
        hits, gold, predicted = np.split(sums, 3, axis=-1)
        means: Floats = _ratio(2 * hits, gold + predicted).mean(axis=-1)
        return means

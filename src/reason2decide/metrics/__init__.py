"""The metrics of an evaluation. To add one, write its class and enter it in `METRICS`; nothing else knows the list."""

from reason2decide.metrics.base import Examples, Metric, NotComputed, SufficientStatistics
from reason2decide.metrics.decisions import Accuracy, MacroF1, confusion_matrix, per_label_scores
from reason2decide.metrics.overlap import Bleu, Chrf

METRICS: tuple[Metric, ...] = (Accuracy(), MacroF1(), Bleu(), Chrf())

__all__ = [
    "METRICS",
    "Accuracy",
    "Bleu",
    "Chrf",
    "Examples",
    "MacroF1",
    "Metric",
    "NotComputed",
    "SufficientStatistics",
    "confusion_matrix",
    "per_label_scores",
]

"""Signs that a system has learnt little, which figures hide: one label, one reason, no better than a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from reason2decide.data.sources.choices import plain
from reason2decide.data.words import units
from reason2decide.evaluation.baselines import COMPARED, TITLES
from reason2decide.evaluation.metrics import METRICS
from reason2decide.evaluation.metrics.base import Examples
from reason2decide.evaluation.results import Baseline, MetricValue, Results

FEW = 20  # ours: records or reasons of which repetition says something
EMPTY = 0.01  # ours: share of reasons that may give none
REPEATED = 0.1  # ours: share of all reasons that one of them may have


def warnings_on(results: Results, examples: Examples) -> tuple[str, ...]:
    """What a reader must know before any figure; `examples` are those of the results, or a sample of them."""
    return (*_on_labels(results), *_on_reasons(examples), *_on_baselines(results.metrics, results.baselines))


def _on_labels(results: Results) -> Iterator[str]:
    if not results.confusion_labels:
        return
    matrix = np.array(results.confusion_matrix)
    gold, decided, unanswered = matrix.sum(1) + results.unanswered, matrix.sum(0), sum(results.unanswered)
    count = int(gold.sum())
    if not decided.any():
        yield f"none of the {count} records got a valid answer"
        return
    if np.count_nonzero(decided) == 1 and not unanswered and np.count_nonzero(gold) > 1:
        yield f"all {count} records get the label {results.confusion_labels[decided.argmax()]!r}, whatever their text"
        return
    for label, of_gold, of_decided in zip(results.confusion_labels, gold.tolist(), decided, strict=True):
        if of_gold >= FEW and not of_decided:
            yield f"{label!r} is the gold label of {of_gold} records and is never decided"


def _on_reasons(examples: Examples) -> Iterator[str]:
    reasons = [text for prediction in examples.predictions if (text := (prediction.rationale or "").strip())]
    source = examples.rationale_source
    gold = [record.rationales.get(source or "", "").strip() for record in examples.records]
    if not reasons:
        return
    share = _most_frequent(reasons)
    if len(reasons) >= FEW and share > max(REPEATED, 2 * _most_frequent([text for text in gold if text])):
        # Not which: warnings stand in model cards too, which are published.
        yield f"{round(share * len(reasons))} of {len(reasons)} reasons are the same"
    pairs = zip(examples.predictions, examples.records, strict=True)
    empty = sum(_is_no_reason(p.rationale.strip(), r.choices_or(examples.labels)) for p, r in pairs if p.rationale)
    if empty > EMPTY * len(reasons):
        yield f"{empty} of {len(reasons)} reasons are only a label, or have no word"


def _is_no_reason(text: str, labels: Sequence[str]) -> bool:
    """Whether a rationale gives no reason: it equals a label, or has no word of two letters."""
    words = units(text)
    return bool(text) and (
        plain(text) in map(plain, labels) or not any(len(word) > 1 and not word.isdigit() for word in words)
    )


def _most_frequent(texts: Sequence[str]) -> float:
    """The share of the most frequent of the texts; 0 of none."""
    return Counter(texts).most_common(1)[0][1] / len(texts) if texts else 0.0


def _on_baselines(metrics: Mapping[str, MetricValue], baselines: Sequence[Baseline]) -> Iterator[str]:
    name = next((name for name in COMPARED if name in metrics and metrics[name].value is not None), None)
    title = next((metric.title for metric in METRICS if metric.name == name), "")
    for baseline in baselines:
        if name is None or name not in baseline.differences:
            continue
        gap, own, theirs = baseline.differences[name], metrics[name].value, baseline.metrics[name].value
        if gap.low <= 0:
            verdict = "worse than" if gap.high < 0 else "not shown to be better than"
            yield (
                f"{title} is {verdict} {TITLES[baseline.name]}: {own:.3f} against {theirs:.3f}, "
                f"difference {gap.difference:+.3f} (95 % interval {gap.low:+.3f} to {gap.high:+.3f})"
            )

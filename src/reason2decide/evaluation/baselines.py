"""What a system must beat: always the most frequent label, and a bag of words, both learnt from the training split.

Neither writes a reason. A model that does not beat them has learnt little from its texts, whatever its other figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sampling import some
from reason2decide.data.words import WORD
from reason2decide.errors import MissingExtraError, NotComputed
from reason2decide.evaluation.comparison import System, differences
from reason2decide.evaluation.measure import Evaluation, values_of
from reason2decide.evaluation.metrics import METRICS
from reason2decide.evaluation.results import Baseline, PairedDifference
from reason2decide.evaluation.settings import Settings
from reason2decide.evaluation.sums import statistics_of
from reason2decide.model.phrase_reader import PhraseReader
from reason2decide.model.reason_reader import require_common_labels

MOST_RECORDS = 20_000  # ours: training records that a bag of words learns from; more change it little
COMPARED = ("macro_f1", "accuracy", "under_triage")  # ours: what decisions are judged by first


def beside(evaluation: Evaluation, train: Iterable[Record], settings: Settings) -> tuple[Baseline, ...]:
    """Both baselines on the evaluated records, and the system's paired differences from them."""
    examples = evaluation.examples
    learnt, found = some(train, MOST_RECORDS), []
    metrics = [metric for metric in METRICS if metric.name in COMPARED]
    system = System("system", (), (evaluation.statistics,), evaluation.group_of)
    for name, decide in BASELINES.items():
        try:
            require_common_labels([*learnt, *examples.records])
            predictions = decide(learnt, examples.labels, examples.records)
        except (NotComputed, MissingExtraError) as reason:
            found.append(Baseline(name, reason=str(reason)))
            continue
        own = replace(examples, predictions=predictions, probes=None, rationale_source=None)
        statistics, _ = statistics_of(metrics, own)
        values = values_of(
            [metric for metric in metrics if metric.name in statistics], statistics, evaluation.group_of, settings
        )
        paired = differences(
            system, System(name, (), (statistics,), evaluation.group_of), settings.resamples, settings.seed
        )
        gaps = {gap.metric: PairedDifference(gap.difference, gap.low, gap.high) for gap in paired}
        found.append(Baseline(name, values, gaps))
    return tuple(found)


def majority(learnt: Sequence[Record], labels: LabelSet, records: Sequence[Record]) -> list[Prediction]:
    """The most frequent training label for every record; of equals, the first of the label set."""
    counts = Counter(record.label for record in learnt)
    label = max(labels.values, key=lambda label: counts[label])
    return [Prediction(record.id, label) for record in records]


def bag_of_words(learnt: Sequence[Record], labels: LabelSet, records: Sequence[Record]) -> list[Prediction]:
    """Logistic regression on runs of one to three words; classes are balanced, which serves macro-F1.

    Raises:
        NotComputed: training has fewer than two labels, or no word.
        MissingExtraError: scikit-learn is not installed.
    """
    if len({record.label for record in learnt}) < 2 or not any(WORD.search(record.text) for record in learnt):
        raise NotComputed("the training split has fewer than two labels, or no word to learn from")
    reader = PhraseReader.fit(
        [(record.text,) for record in learnt], [str(record.label) for record in learnt], [1.0] * len(learnt)
    )
    read = reader.read([(record.text,) for record in records])
    return [Prediction(record.id, label) for record, label in zip(records, read, strict=True)]


Decide = Callable[[Sequence[Record], LabelSet, Sequence[Record]], list[Prediction]]
BASELINES: Mapping[str, Decide] = {"majority": majority, "bag_of_words": bag_of_words}
TITLES = {"majority": "always the most frequent label", "bag_of_words": "a bag of words"}

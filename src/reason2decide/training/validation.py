"""What the validation split is for: to select a checkpoint, and to calibrate the finished model.

A checkpoint is selected by losses with gold conditioning labels, accuracy, macro-F1, or decision and reason together.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reason2decide.console import ProgressBar, say
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sampling import some_explained
from reason2decide.errors import NotComputed
from reason2decide.evaluation.metrics import Accuracy, Examples, MacroF1
from reason2decide.method.losses import joint_loss
from reason2decide.model.batches import in_batches
from reason2decide.model.calibration import DIGITS, Calibration
from reason2decide.model.engines.torch import TorchEngine
from reason2decide.model.label_scores import leading_labels, score_labels
from reason2decide.model.reason_reader import Lessons, ReasonReader
from reason2decide.training.batches import BatchLimit, cut
from reason2decide.training.features import Example, SplitFeatures
from reason2decide.training.objective import Objective
from reason2decide.training.processes import Processes

REASONS_READ = 1000  # ours: gold rationales of validation from which the threshold of their check is set


@torch.no_grad()
def validate(
    objective: Objective,
    features: SplitFeatures,
    limit: BatchLimit,
    processes: Processes,
    between_batches: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """Token-mean losses; accuracy and, over a declared label set, macro-F1. The same on every process.

    `between_batches` is told which share of the batches is done, and may raise to stop early.
    """
    stage, encoder = objective.stage, objective.encoder
    architecture = objective.scorer()
    model = architecture.model
    was_training = model.training
    model.eval()
    order = np.lexsort((features.rationale_lengths, features.prompt_lengths))
    bounds = cut(features.prompt_lengths[order], features.rationale_lengths[order], limit)
    batches = [order[begin:end].tolist() for begin, end in pairwise(bounds)]
    sums = {"label_loss": 0.0, "rationale_loss": 0.0}
    found: list[tuple[int, str]] = []
    try:
        shared_out = batches[processes.rank :: processes.count]
        for done, rows in enumerate(shared_out):
            if between_batches is not None:
                between_batches(done / len(shared_out))
            examples = [features[row] for row in rows]
            with objective.computing():
                if stage.learns_labels:
                    batch = objective.predict_batch(examples)
                    loss, reading = objective.label_loss(batch, 1, architecture)
                    assert reading is not None, "kept where no gradient is"
                    sums["label_loss"] += float(loss)
                    candidates = [encoder.candidates(example.choices) for example in examples]
                    leading = leading_labels(
                        score_labels(architecture, reading, [prompt.lead for prompt in batch.prompts], candidates)
                    )()
                    found += [(row, e.choices[own.best]) for row, e, own in zip(rows, examples, leading, strict=True)]
                if stage.learns_rationales and any(len(example.rationale) for example in examples):
                    batch = objective.gold_explain_batch(examples)
                    sums["rationale_loss"] += float(objective.rationale_loss(batch, 1, architecture))
    finally:
        model.train(was_training)
    totals = dict(zip(sums, processes.sum_numbers(sums.values()), strict=True))
    tokens = {"label_loss": features.targets.lengths.sum(), "rationale_loss": features.rationale_lengths.sum()}
    learnt = {"label_loss": stage.learns_labels, "rationale_loss": stage.learns_rationales}
    metrics = {key: totals[key] / int(tokens[key]) for key in totals if learnt[key] and tokens[key]}
    metrics["loss"] = joint_loss(metrics.get("label_loss", 0.0), metrics.get("rationale_loss", 0.0), stage.alpha)
    if stage.learns_labels:
        decided = sorted(item for part in processes.gather(found) for item in part)
        metrics |= _scores([features[row] for row, _ in decided], [label for _, label in decided], features.labels)
        metrics["decision_and_reason"] = decision_and_reason(metrics)
    return metrics


def decision_and_reason(metrics: Mapping[str, float]) -> float:
    """sqrt(macro-F1 · P(gold rationale token | y*)): how good decisions and reasons are together (ours).

    The geometric mean of two shares between 0 and 1, so that neither makes up for the other. Without macro-F1 it is
    accuracy's, without rationales that alone.
    """
    decisions = metrics.get("macro_f1", metrics["accuracy"])
    if "rationale_loss" not in metrics:
        return decisions
    return math.sqrt(decisions * math.exp(-metrics["rationale_loss"]))


def _scores(examples: Sequence[Example], predicted: Sequence[str], labels: LabelSet) -> dict[str, float]:
    """Accuracy, and macro-F1 if labels are common to all records."""
    judged = Examples(
        [Record(example.id, "", example.label, choices=example.choices) for example in examples],
        [Prediction(example.id, label) for example, label in zip(examples, predicted, strict=True)],
        labels,
    )
    scores = {}
    for metric in (Accuracy(), MacroF1()):
        with contextlib.suppress(NotComputed):
            scores[metric.name] = float(metric.aggregate(metric.statistics(judged).total()))
    return scores


def calibrate(model: Any, features: SplitFeatures, source: str | None, reader: ReasonReader | None) -> Calibration:
    """Calibrate the probabilities of a finished model, scored by the engine that runs it in use.

    With a reader, also how much the gold rationales of a source support their labels.
    """
    encoder = features.encoder
    engine = TorchEngine(model, encoder.tokenizer)
    gold = np.zeros(len(features), int)
    bar = ProgressBar("calibrating on validation", len(features))

    def scores(rows: Sequence[int]) -> list[NDArray[np.float64]]:
        examples = [features[row] for row in rows]
        gold[rows] = [example.choices.index(example.label) for example in examples]
        found = engine.score_labels(
            [encoder.decide(example.text) for example in examples],
            [encoder.candidates(example.choices) for example in examples],
        )
        bar.advance(len(rows))
        return found

    with bar:
        found = in_batches(features.prompt_lengths, scores)
    calibration = Calibration.fit(found, gold.tolist())
    if reader is None or source is None:
        return calibration
    explained = some_explained(features.records, source, REASONS_READ)
    supports = reader.supports([r.rationales[source] for r in explained], [str(r.label) for r in explained])
    return replace(calibration, reason_supports=supports.round(DIGITS))


def fit_reason_reader(records: Iterable[Record], labels: LabelSet, source: str | None) -> ReasonReader | None:
    """A reader of reasons learnt from the training split; None where there is nothing to learn from, which is said.

    Of records' own choices nothing is learnt: their reasons are checked by what they name (`reason_checks.py`).
    """
    if source is None or labels.is_open:
        return None
    try:
        return ReasonReader.fit(Lessons.of(records, labels, source), labels, source)
    except NotComputed as error:
        say(f"reasons of this model cannot be checked: {error}")
        return None

"""What picks a checkpoint: losses with gold conditioning labels, accuracy and macro-F1 on the validation split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from reason2decide.batches import BatchLimit, cut
from reason2decide.features import SplitFeatures
from reason2decide.labels import best_labels, score_labels
from reason2decide.losses import joint_loss
from reason2decide.metrics import Accuracy, Examples, MacroF1, NotComputed
from reason2decide.objective import Objective
from reason2decide.predictions import Prediction
from reason2decide.processes import Processes


@torch.no_grad()
def validate(
    objective: Objective,
    features: SplitFeatures,
    limit: BatchLimit,
    processes: Processes,
    between_batches: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Token-mean losses; accuracy and, over a declared label set, macro-F1. The same on every process.

    `between_batches` may raise to break off.
    """
    stage, encoder = objective.stage, objective.encoder
    model = objective.scorer()
    was_training = model.training
    model.eval()
    order = np.lexsort((features.rationale_lengths, features.prompt_lengths))
    bounds = cut(features.prompt_lengths[order], features.rationale_lengths[order], limit)
    batches = [order[begin:end].tolist() for begin, end in pairwise(bounds)]
    sums = {"label_loss": 0.0, "rationale_loss": 0.0}
    found: list[tuple[int, str]] = []
    try:
        for rows in batches[processes.rank :: processes.count]:
            if between_batches is not None:
                between_batches()
            examples = [features[row] for row in rows]
            with objective.computing():
                if stage.learns_labels:
                    batch = objective.predict_batch(examples)
                    loss, states = objective.label_loss(batch, 1, model)
                    sums["label_loss"] += float(loss)
                    candidates = [encoder.candidates(example.choices) for example in examples]
                    best = best_labels(score_labels(model, states, batch.attention_mask, candidates))
                    found += [(row, e.choices[own]) for row, e, own in zip(rows, examples, best(), strict=True)]
                if stage.learns_rationales and any(len(example.rationale) for example in examples):
                    batch, _ = objective.explain_batch(examples, [example.label for example in examples])
                    sums["rationale_loss"] += float(objective.rationale_loss(batch, 1, model))
    finally:
        model.train(was_training)
    totals = dict(zip(sums, processes.sum_numbers(sums.values()), strict=True))
    tokens = {"label_loss": features.targets.lengths.sum(), "rationale_loss": features.rationale_lengths.sum()}
    learnt = {"label_loss": stage.learns_labels, "rationale_loss": stage.learns_rationales}
    metrics = {key: totals[key] / int(tokens[key]) for key in totals if learnt[key] and tokens[key]}
    label_loss, rationale_loss = (torch.tensor(metrics.get(key, 0.0), dtype=torch.float64) for key in totals)
    metrics["loss"] = float(joint_loss(label_loss, rationale_loss, stage.alpha))
    if stage.learns_labels:
        decided = sorted(item for part in processes.gather(found) for item in part)
        records = [features.records[row] for row, _ in decided]
        predictions = [Prediction(record.id, label) for record, (_, label) in zip(records, decided, strict=True)]
        judged = Examples(records, predictions, features.labels)
        for metric in (Accuracy(), MacroF1()):
            with contextlib.suppress(NotComputed):
                metrics[metric.name] = float(metric.aggregate(metric.statistics(judged).total()))
    return metrics

"""What the validation split is for: to pick a checkpoint by, and to calibrate the finished model.

A checkpoint is picked by losses with gold conditioning labels, accuracy and macro-F1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from reason2decide.data.predictions import Prediction
from reason2decide.errors import NotComputed
from reason2decide.evaluation.metrics import Accuracy, Examples, MacroF1
from reason2decide.method.losses import joint_loss
from reason2decide.model.calibration import Calibration
from reason2decide.model.label_scores import best_labels, score_labels
from reason2decide.training.batches import BatchLimit, cut
from reason2decide.training.features import SplitFeatures
from reason2decide.training.objective import Objective
from reason2decide.training.processes import Processes


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


CALIBRATED_AT_ONCE = 32  # ours: records a batch


@torch.no_grad()
def calibrate(model: Any, features: SplitFeatures, device: torch.device) -> Calibration:
    """Fit the probabilities of a finished model, which runs as it will at use: in float32, without dropout."""
    encoder = features.encoder
    model.to(device).eval()
    scores, gold = [], []
    order = np.argsort(features.prompt_lengths, kind="stable").tolist()
    for begin in range(0, len(order), CALIBRATED_AT_ONCE):
        examples = [features[row] for row in order[begin : begin + CALIBRATED_AT_ONCE]]
        prompts = [torch.tensor(encoder.predict_ids(example.text)) for example in examples]
        input_ids = pad_sequence(prompts, batch_first=True, padding_value=encoder.tokenizer.pad_token_id).to(device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        mask = (torch.arange(input_ids.shape[1], device=device)[None] < lengths[:, None]).long()
        states = model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
        found = score_labels(model, states, mask, [encoder.candidates(example.choices) for example in examples])
        scores += [own.cpu().numpy().astype(np.float64) for own in found]
        gold += [example.choices.index(example.label) for example in examples]
    return Calibration.fit(scores, gold)

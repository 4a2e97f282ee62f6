"""What a stage will do, from its configuration and data: its batches, and when it validates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.errors import ConfigError
from reason2decide.method.methods import Stage
from reason2decide.training.batches import BatchLimit, BatchPlan
from reason2decide.training.config import Config
from reason2decide.training.features import SplitFeatures

VALIDATION_SHARE = 0.1  # ours: of the time of a stage
PASSES_PER_STEP = 3  # forward, and backward at twice its cost


def batch_limit(config: Config, stage: Stage, features: SplitFeatures) -> BatchLimit:
    """Maximum size of a batch of this stage: in records as configured, or in `batch_tokens`."""
    tokens = config.of("batch_tokens", stage.name)
    return BatchLimit(config.of("batch_size", stage.name) if tokens is None else len(features), tokens)


def batch_plan(config: Config, stage: Stage, features: SplitFeatures, processes: int) -> BatchPlan:
    """The batches of this stage.

    Raises:
        ConfigError: as `BatchPlan`.
    """
    # A record without a rationale has nothing to teach a stage that learns rationales only.
    rows = np.arange(len(features)) if stage.learns_labels else features.with_rationale
    if config.train_records is not None:
        rows = rows[np.isin(rows, drawn_records(len(features), config.train_records, config.seed))]
        if not len(rows):
            raise ConfigError(
                f"none of the train_records = {config.train_records} records drawn has a rationale for {stage.name} "
                "to learn from; ask for more"
            )
    rationales = features.widest_rationales_of(np.arange(len(features)))
    targets = np.maximum(features.targets.lengths if stage.learns_labels else 0, rationales)
    return BatchPlan(
        rows,
        features.prompt_lengths[rows],
        targets[rows],
        batch_limit(config, stage, features),
        batches_per_step=config.of("gradient_accumulation", stage.name) * processes,
        processes=processes,
        seed=config.seed,
        name_of=features.id_of,
    )


def validation_interval(config: Config, stage: Stage, plan: BatchPlan, validation: SplitFeatures) -> int:
    """Steps between validations of a stage: as configured, else a twentieth of the stage, or more where validation
    would take over a tenth of the time (ours).

    Time is counted in tokens: a step costs three passes over its own, validation one over its split.
    """
    configured = config.of("evaluate_every", stage.name)
    if configured is not None:
        return int(configured)
    steps = int(config.of("steps", stage.name))
    tokens_per_step = (plan.prompts + plan.targets).sum() / max(1, plan.steps_per_epoch)
    tokens = int(validation.prompt_lengths.sum()) + int(validation.rationale_lengths.sum())
    affordable = math.ceil(tokens / (VALIDATION_SHARE * PASSES_PER_STEP * tokens_per_step))
    return int(min(steps, max(1, steps // 20, affordable)))


def drawn_records(records: int, wanted: int, seed: int) -> NDArray[np.integer[Any]]:
    """The records in a reduced training split (ours): a smaller one is part of a larger one.

    Raises:
        ConfigError: there are fewer records than wanted.
    """
    if wanted > records:
        raise ConfigError(f"train_records = {wanted}, but the training split has {records} records; ask for fewer")
    return np.random.default_rng(seed).permutation(records)[:wanted]

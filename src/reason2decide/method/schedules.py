"""What changes over Stage 2: the task weight alpha_t, the sampling probability pi_t, and the draw of y~."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

GATE_SLOPE = 10.0  # Reason2Decide-C
GATE_REACH = 2.0  # ours: thresholds to search, beyond [0, 1]; sigmoid(20) is 1
GATE_BISECTIONS = 40  # ours: to 1e-12
CYCLE_TEMPERATURE_END = 0.5  # Reason2Decide-C


def alpha_at(step: int, *, alpha: float, warmup_steps: int) -> float:
    """alpha_t: rises linearly from 0 to `alpha` over the warm-up, then stays constant (paper, "Stage 2 loss").

    Args:
        step: optimizer steps done before this one, from 0.
    """
    if step >= warmup_steps:
        return alpha
    return alpha * step / warmup_steps


def sampling_probability_at(step: int, *, cap: float, warmup_steps: int, ramp_steps: int) -> float:
    """pi_t: 0 during the warm-up, then min(cap, share of the ramp done) (paper, "scheduled sampling").

    The slope is that of a ramp to 1, capped at `cap`, as in the authors' code: with the default cap of 0.9 the cap is
    reached after nine tenths of the ramp.

    Args:
        step: optimizer steps done before this one, from 0.
    """
    if step < warmup_steps:
        return 0.0
    ramp_done = (step - warmup_steps) / ramp_steps if ramp_steps else 1.0
    return min(cap, ramp_done)


def uniform_draw(seed: int, step: int, record_id: str, purpose: str = "") -> float:
    """A number in [0, 1) that depends on (seed, step, record id, purpose) alone (ours).

    So a record's draw does not depend on the batch layout, the number of processes or a restart.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{record_id}{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def takes_predicted_label(sampling_probability: float, seed: int, step: int, record_id: str) -> bool:
    """Whether y~ is the model's own label y^ (true, with probability pi_t) or the gold label y* (paper, "y~")."""
    return uniform_draw(seed, step, record_id) < sampling_probability


def takes_part(part: str, share: float, seed: int, step: int, record_id: str) -> bool:
    """Whether a record takes part in a part of a step's loss, with probability `share`, independent of y~ (ours)."""
    return uniform_draw(seed, step, record_id, f"/{part}") < share


def confidence_gate(confidence: float | NDArray[np.float64], threshold: float) -> Any:
    """sigmoid(10 (confidence - threshold)): how readily a prediction is shown (Reason2Decide-C)."""
    return 1 / (1 + np.exp(-GATE_SLOPE * (np.asarray(confidence) - threshold)))


def gate_threshold(
    sampling_probability: float, confidences: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    """The threshold at which the mean gate over these confidences is the sampling probability (ours).

    Reason2Decide-C takes the mean confidence and multiplies the gate by pi_t: about half of the intended share of
    predictions is then shown. This threshold keeps the share and moves it to confident predictions.

    Args:
        confidences, weights: of recent predictions, (n,), as a histogram; the weights need not add up to 1.
    """
    low, high = -GATE_REACH, 1 + GATE_REACH
    for _ in range(GATE_BISECTIONS):
        middle = (low + high) / 2
        mean = float(np.average(confidence_gate(confidences, middle), weights=weights))
        low, high = (middle, high) if mean > sampling_probability else (low, middle)
    return (low + high) / 2


def cycle_temperature_at(step: int, *, warmup_steps: int, steps: int) -> float:
    """The temperature of the cycle's Gumbel-softmax: 1 to 0.5, exponentially, after the warm-up (Reason2Decide-C)."""
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return float(CYCLE_TEMPERATURE_END ** min(1.0, max(0.0, done)))


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """The learning rate: rises linearly from 0 to `peak` over the warm-up, then falls linearly to 0 (authors' code).

    Args:
        step: optimizer steps done before this one, from 0.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * max(0, steps - step) / max(1, steps - warmup_steps)


def dropout_seed(seed: int, stage: str, step: int, process: int) -> int:
    """The seed of one process's dropout in one step (ours): with it, there is no random state to save."""
    digest = hashlib.blake2b(f"{seed}/{stage}/{step}/{process}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

"""Which label the rationale task is shown: the gold one or the model's own, by record and step (paper, "y~").

Labels are scored, not generated, from what the predict pass has read, and only for the rows that need them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reason2decide.method.methods import Stage
from reason2decide.method.schedules import (
    confidence_gate,
    gate_threshold,
    sampling_probability_at,
    takes_part,
    takes_predicted_label,
)
from reason2decide.model.architectures import Architecture
from reason2decide.model.architectures.readings import TextReading
from reason2decide.model.label_scores import leading_labels, score_labels
from reason2decide.model.padding import on_device
from reason2decide.model.prompt_encoder import PromptEncoder, TokenPrompt
from reason2decide.training.features import Example

WINDOW_SHARE = 30  # Reason2Decide-C: 1,000 of 30,000 steps, here a thirtieth of the stage
BINS = 100  # ours: of confidences in [0, 1]
BIN_CENTRES = (np.arange(BINS) + 0.5) / BINS


@dataclass(frozen=True)
class ShownLabels:
    """y~ of each row of a batch, and what a step's log counts of it.

    `rivals` has y- of the rows that L_post is taken of: the model's wrong label, else its second choice. Some rows with
    a rationale for y- are shown that.
    """

    labels: list[str]
    rivals: Mapping[int, str] = field(default_factory=dict)
    drawn: Sequence[int] = ()  # rows that are shown y^
    wrong: int = 0  # of these, where y^ is not y*
    confidences: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))  # histogram


class ConfidenceWindow:
    """Histograms of the confidence of y^ over windows of steps: those of the last whole window set the gate.

    They are the same on every process and after a restart, since windows are counted in steps.
    """

    def __init__(self, steps: int) -> None:
        self.length = max(1, steps // WINDOW_SHARE)
        self.windows: dict[int, NDArray[np.float64]] = {}

    def begins(self, step: int) -> bool:
        """Whether a step is the first of a window, so that all before it must have been added."""
        return step % self.length == 0

    def add(self, step: int, histogram: NDArray[np.float64]) -> None:
        """Count a step's confidences, of all processes."""
        window = step // self.length
        self.windows[window] = self.windows.get(window, np.zeros(BINS)) + histogram
        self.windows.pop(window - 2, None)

    def share_of(self, step: int, sampling_probability: float) -> Callable[[float], float] | None:
        """The probability of showing a prediction, by its confidence; None while no window has ended."""
        counts = self.windows.get(step // self.length - 1)
        if counts is None or not counts.sum():
            return None
        threshold = gate_threshold(sampling_probability, BIN_CENTRES, counts)
        return lambda confidence: float(confidence_gate(confidence, threshold))

    def to_json(self) -> dict[str, list[float]]:
        """The histograms by window, for a checkpoint."""
        return {str(window): counts.tolist() for window, counts in self.windows.items()}

    def restore(self, value: Mapping[str, Sequence[float]]) -> None:
        """Take back what `to_json` returned."""
        self.windows = {int(window): np.array(counts) for window, counts in value.items()}


class LabelChooser:
    """Chooses y~ of each row, and y- where L_post is taken.

    Args:
        scorer: returns the architecture of the model that scores labels. All processes call it equally often.
        steps: of the stage.
        dropout: whether any layer has it.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        stage: Stage,
        scorer: Callable[[], Architecture],
        *,
        steps: int,
        seed: int,
        dropout: bool,
    ) -> None:
        self.encoder, self.stage, self.scorer, self.seed = encoder, stage, scorer, seed
        # Without dropout at all, what the predict pass has read is what the model reads at use.
        self._reads_again = dropout and not stage.conditioning_dropout
        self._warmup_steps, self._ramp_steps = stage.warmup_steps(steps), stage.ramp_steps(steps)
        self.window = ConfidenceWindow(steps) if stage.adaptive_sampling else None

    def sampling_probability(self, step: int) -> float:
        """pi_t of this stage."""
        return sampling_probability_at(
            step, cap=self.stage.sampling_cap, warmup_steps=self._warmup_steps, ramp_steps=self._ramp_steps
        )

    @torch.no_grad()
    def ask(
        self, examples: Sequence[Example], step: int, prompts: Sequence[TokenPrompt], reading: TextReading | None
    ) -> Callable[[], ShownLabels]:
        """Score what labels are needed, and return a function that waits for them; no gradient is kept.

        Args:
            prompts, reading: the predict prompts and what was read of their texts; None reads them again.
        """
        gold = [example.label for example in examples]
        pi = self.sampling_probability(step)
        gate = self.window.share_of(step, pi) if self.window is not None and pi > 0 else None
        explained = [row for row, example in enumerate(examples) if len(example.rationale)]
        takes = self._taking("posterior", self._posterior_share, explained, examples, step)
        argues = [row for row in explained if examples[row].contrasts]
        argues = self._taking("contrast", self.stage.contrast_share, argues, examples, step)
        draws = [row for row in explained if gate or takes_predicted_label(pi, self.seed, step, examples[row].id)]
        if not (pi or self._posterior_share or self.stage.contrast_share):
            return lambda: ShownLabels(gold)
        scorer = self.scorer()
        rows = sorted({*draws, *takes, *argues})
        if not rows:
            return lambda: ShownLabels(gold)
        with scoring(scorer.model, dropout=self.stage.conditioning_dropout):
            if reading is None or self._reads_again:
                read_texts = scorer.read([prompts[row].text for row in rows])
            else:
                read_texts = reading.rows(on_device(torch.tensor(rows), reading.mask.device))
            candidates = [self.encoder.candidates(examples[row].choices) for row in rows]
            read = leading_labels(score_labels(scorer, read_texts, [prompts[row].lead for row in rows], candidates))

        def shown() -> ShownLabels:
            leading = dict(zip(rows, read(), strict=True))
            labels, drawn = list(gold), []
            for row in draws:
                own = leading[row]
                if gate is None or takes_predicted_label(gate(own.confidence), self.seed, step, examples[row].id):
                    labels[row] = examples[row].choices[own.best]
                    drawn.append(row)
            wrong = sum(labels[row] != gold[row] for row in drawn)
            rivals = {
                row: rival_of(examples[row].label, *(examples[row].choices[i] for i in (own.best, own.second)))
                for row, own in leading.items()
            }
            for row in argues:
                if rivals[row] in examples[row].contrasts:
                    labels[row] = rivals[row]
            confidences = np.array([own.confidence for own in leading.values()])
            return ShownLabels(
                labels,
                {row: rivals[row] for row in takes},
                drawn,
                wrong,
                confidences=np.histogram(confidences, BINS, (0.0, 1.0))[0].astype(float),
            )

        return shown

    def _taking(
        self, part: str, share: float, rows: Sequence[int], examples: Sequence[Example], step: int
    ) -> list[int]:
        """The rows that take part in a part of the loss."""
        return [row for row in rows if takes_part(part, share, self.seed, step, examples[row].id)]

    @property
    def _posterior_share(self) -> float:
        return self.stage.posterior_share if self.stage.posterior_weight else 0.0


def rival_of(gold: str, best: str, second: str) -> str:
    """y-: the model's label where it is wrong, else its second choice (ours)."""
    return second if best == gold else best


@contextlib.contextmanager
def scoring(model: Any, *, dropout: bool) -> Iterator[None]:
    """The model as label scoring needs it: with or without dropout, and with the caches that checkpointing forbids."""
    checkpointing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    was_training = model.training
    for module in checkpointing:
        module.gradient_checkpointing = False
    model.train(dropout)
    try:
        yield
    finally:
        model.train(was_training)
        for module in checkpointing:
            module.gradient_checkpointing = True

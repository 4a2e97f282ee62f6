"""The loss of one stage on one batch, and its gradient: forward passes, counts.

    loss_t = alpha_t · L_label + (1 - alpha_t) · (L_rationale + lambda · L_post) + gamma · L_cycle

L_label and L_rationale are means over the gold target tokens of the whole step, L_post and L_cycle over its records
with a rationale. A row that is left out of L_rationale, or has another target, does not change what the sum is divided
by, so the loss does not depend on how a step is cut into batches.

Each task's gradient is computed as soon as its loss is, so that one task's activations are kept at a time. Where both
tasks read the same text, it is read once, and gradients of both go back through that reading together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reason2decide.method.conditioning import target_for
from reason2decide.method.losses import (
    IGNORED,
    joint_loss,
    label_posterior_loss,
    token_log_likelihood,
    token_mean_cross_entropy,
)
from reason2decide.method.methods import Stage
from reason2decide.method.schedules import alpha_at, cycle_temperature_at
from reason2decide.model.architectures import Architecture, Run
from reason2decide.model.architectures.readings import TextReading
from reason2decide.model.padding import on_device, padded
from reason2decide.model.prompt_encoder import PromptEncoder, TokenPrompt
from reason2decide.training.cycle import cycle_loss
from reason2decide.training.dropout import FastDropout
from reason2decide.training.features import Example
from reason2decide.training.shown_labels import BINS, LabelChooser, ShownLabels

LOSSES = ("label_loss", "rationale_loss", "posterior_loss", "cycle_loss")


@dataclass(frozen=True)
class StepSize:
    """What a whole optimizer step's sums are divided by, over all its batches and processes."""

    label_tokens: int  # target tokens of labels
    rationale_tokens: int  # target tokens of gold rationales
    explained: int  # records with a rationale


@dataclass(frozen=True)
class Padded:
    """Prompts and targets of one forward pass, padded to the longest of each; tensors are on the device."""

    prompts: Sequence[TokenPrompt]
    ids: Tensor  # (rows, longest lead and target), what is read after the text: all but the target's last token
    target_ids: Tensor  # of the same shape, the target's token after each of `ids`; `IGNORED` where there is none
    followed_tokens: int  # of leads and targets, without padding

    def tokens(self, *, texts: bool) -> tuple[int, int]:
        """Number of tokens, with those of the texts or without; and the same with padding."""
        lengths = [len(prompt.text) for prompt in self.prompts] if texts else [0]
        return sum(lengths) + self.followed_tokens, len(lengths) * max(lengths) + self.ids.numel()

    @property
    def texts(self) -> list[Sequence[int]]:
        """What is read first in each row."""
        return [prompt.text for prompt in self.prompts]


@dataclass
class Counts:
    """What one batch adds to the counts of its step, in rows and tokens."""

    explained: int = 0  # rows with a rationale
    drawn: int = 0  # of these, shown the model's own label
    drawn_wrong: int = 0  # of these, where it is not the gold one
    contrasted: int = 0  # rows that learn a rationale for another label than the gold one
    skipped: int = 0  # rows left out since there is no rationale for the label shown
    tokens: int = 0
    padded_tokens: int = 0

    def passed(self, batch: Padded, *, texts: bool = True) -> None:
        """Count a forward pass, over its texts or only over what follows them."""
        tokens, padded_tokens = batch.tokens(texts=texts)
        self.tokens += tokens
        self.padded_tokens += padded_tokens


@dataclass(frozen=True)
class Tally:
    """What one batch adds to its step: shares of the mean losses, counts, and a histogram of confidences."""

    losses: Mapping[str, Tensor]
    counts: Counts
    confidences: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))


class Objective:
    """One stage's loss over one model.

    Args:
        architecture: of the model that is trained; `forward` runs it (itself, or a compiled form of it).
        scorer: returns that of the model that scores labels: the same, or a whole copy if weights are sharded. All
            processes call it equally often.
        steps: of the stage; its schedules are shares of them.
        dropout: whether any layer has it; `fast_dropout` replaces the library's on a CPU.
    """

    def __init__(
        self,
        architecture: Architecture,
        encoder: PromptEncoder,
        stage: Stage,
        *,
        forward: Run,
        scorer: Callable[[], Architecture],
        steps: int,
        seed: int,
        device: torch.device,
        dropout: bool,
        fast_dropout: bool,
        bfloat16: bool,
    ) -> None:
        self.architecture, self.encoder, self.stage = architecture, encoder, stage
        self.forward, self.scorer = forward, scorer
        self.steps, self.warmup_steps, self.device = steps, stage.warmup_steps(steps), device
        self.labels = LabelChooser(encoder, stage, scorer, steps=steps, seed=seed, dropout=dropout)
        self._fast_dropout = fast_dropout
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)

    @property
    def model(self) -> Any:
        """What is trained."""
        return self.architecture.model

    def alpha(self, step: int) -> float:
        """alpha_t of this stage."""
        return alpha_at(step, alpha=self.stage.alpha, warmup_steps=self.warmup_steps)

    def joint(self, losses: Mapping[str, Any], step: int) -> Any:
        """The weighted sum of `LOSSES` in a step, floats or tensors."""
        rationale = losses["rationale_loss"] + self.stage.posterior_weight * losses["posterior_loss"]
        joint = joint_loss(losses["label_loss"], rationale, self.alpha(step))
        return joint + self._cycle_weight(step) * losses["cycle_loss"]

    def _cycle_weight(self, step: int) -> float:
        """gamma: 0 during the warm-up (Reason2Decide-C)."""
        return self.stage.cycle_weight if step >= self.warmup_steps else 0.0

    # ---- training

    def backward(self, examples: Sequence[Example], step: int, size: StepSize) -> Tally:
        """Add this batch's share of the gradient of the step's loss (paper, "Stage 2 loss") to the parameters'."""
        with self.computing():
            return self._backward(examples, step, size)

    def _backward(self, examples: Sequence[Example], step: int, size: StepSize) -> Tally:
        losses, counts = dict.fromkeys(LOSSES, torch.zeros((), device=self.device)), Counts()
        shown = ShownLabels([example.label for example in examples])
        read_shown: Callable[[], ShownLabels] = lambda: shown  # noqa: E731
        shared: TextReading | None = None
        if self.stage.learns_labels:
            predict = self.predict_batch(examples)
            label_loss, reading = self.label_loss(predict, size.label_tokens)
            if self.stage.needs_labels_shown:
                read_shown = self.labels.ask(examples, step, predict.prompts, reading)
            label_part = self.joint({**losses, "label_loss": label_loss}, step)
            if self.encoder.form.shares_text and self.stage.learns_rationales:
                shared = reading
            if shared is None:
                torch.autograd.backward(label_part)
            losses["label_loss"] = label_loss.detach()
            counts.passed(predict)
        if self.stage.learns_rationales:
            shown = read_shown()
            leaf = None if shared is None else shared.leaf()
            own = self.explained(examples, shown, step, size, counts, leaf)
            torch.autograd.backward(self.joint({**dict.fromkeys(LOSSES, 0.0), **own}, step))
            if shared is not None and leaf is not None:
                _backward_together(label_part, shared, leaf)
            losses |= {name: loss.detach() for name, loss in own.items()}
            counts.drawn, counts.drawn_wrong = len(shown.drawn), shown.wrong
        return Tally(losses, counts, shown.confidences)

    def explained(
        self,
        examples: Sequence[Example],
        shown: ShownLabels,
        step: int,
        size: StepSize,
        counts: Counts,
        reading: TextReading | None = None,
    ) -> dict[str, Tensor]:
        """L_rationale, L_post and L_cycle of a batch, those that the stage has, from one pass over its rationales.

        L_post reads r* under y* and y-: two more rows, or one where the row is shown y* anyway.

        Args:
            reading: of the examples' texts, where they were read; None reads them.
        """
        targets = [
            target_for(label, own.label, own.rationale, own.contrasts, self.stage.on_disagreement)
            for label, own in zip(shown.labels, examples, strict=True)
        ]
        learnt = [row for row, target in enumerate(targets) if target is not None and len(target)]
        rows: list[tuple[int, str, Any]] = [(row, shown.labels[row], targets[row]) for row in learnt]
        places = {row: place for place, row in enumerate(learnt) if shown.labels[row] == examples[row].label}
        pairs = []
        for row, rival in shown.rivals.items():
            if row not in places:
                places[row] = len(rows)
                rows.append((row, examples[row].label, examples[row].rationale))
            pairs.append((places[row], len(rows)))
            rows.append((row, rival, examples[row].rationale))
        rows = rows or [(0, examples[0].label, [IGNORED])]
        batch = self.explain_batch(examples, rows)
        counts.passed(batch, texts=reading is None)
        counts.explained += sum(len(example.rationale) > 0 for example in examples)
        counts.contrasted += sum(shown.labels[row] != examples[row].label for row in learnt)
        counts.skipped += counts.explained - len(learnt)
        own = len(learnt)
        if reading is None:
            logits, _ = self.architecture.learn(batch.texts, batch.ids, self.forward)
        else:
            places_of_texts = on_device(torch.tensor([row for row, *_ in rows]), self.device)
            logits, _ = self.architecture.extend(reading.rows(places_of_texts), batch.ids, self.forward)
        losses = {
            "rationale_loss": token_mean_cross_entropy(logits[:own], batch.target_ids[:own], size.rationale_tokens)
        }
        if pairs:
            likelihood = token_log_likelihood(logits, batch.target_ids).sum(-1)
            of_gold, of_rival = likelihood[[place for place, _ in pairs]], likelihood[[place for _, place in pairs]]
            of = self.stage.posterior_share * size.explained
            losses["posterior_loss"] = label_posterior_loss(of_gold, of_rival).sum() / of
        if self._cycle_weight(step) and learnt:
            temperature = cycle_temperature_at(step, warmup_steps=self.warmup_steps, steps=self.steps)
            given = [label for _, label, _ in rows[:own]]
            recovered = cycle_loss(
                self.architecture, self.encoder, logits[:own], batch.target_ids[:own], given, temperature
            )
            losses["cycle_loss"] = recovered.sum() / max(1, size.explained)
        return losses

    # ---- passes

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Run forward passes in the configured precision, and on a CPU with fast dropout."""
        with self._autocast, FastDropout() if self._fast_dropout else contextlib.nullcontext():
            yield

    def predict_batch(self, examples: Sequence[Example]) -> Padded:
        """The prompts that ask for a label, and the gold labels."""
        return self._padded(
            [self.encoder.decide(example.text) for example in examples],
            [self.encoder.label_ids(example.label) for example in examples],
        )

    def explain_batch(self, examples: Sequence[Example], rows: Sequence[tuple[int, str, Any]]) -> Padded:
        """The prompts that ask for a rationale (given a label if the stage conditions on it), and the targets.

        Args:
            rows: index of the example, label, target ids; at least one, if without a target, so that all processes run
                equally many passes.
        """
        conditioned = self.stage.explain == "conditioned"
        prompts = [self.encoder.explain(examples[row].text, label if conditioned else None) for row, label, _ in rows]
        return self._padded(prompts, [target for *_, target in rows])

    def gold_explain_batch(self, examples: Sequence[Example]) -> Padded:
        """The same with gold labels and gold rationales, of the examples that have one."""
        rows = [(row, own.label, own.rationale) for row, own in enumerate(examples) if len(own.rationale)]
        return self.explain_batch(examples, rows)

    def label_loss(
        self, batch: Padded, tokens: int, architecture: Architecture | None = None
    ) -> tuple[Tensor, TextReading | None]:
        """L_pred (paper), and the reading of the texts."""
        logits, reading = self._learn(batch, architecture)
        return token_mean_cross_entropy(logits, batch.target_ids, tokens), reading

    def rationale_loss(self, batch: Padded, tokens: int, architecture: Architecture | None = None) -> Tensor:
        """L_expl (paper), or the Stage 1 loss if prompts are unconditioned."""
        return token_mean_cross_entropy(self._learn(batch, architecture)[0], batch.target_ids, tokens)

    def _learn(self, batch: Padded, architecture: Architecture | None) -> tuple[Tensor, TextReading | None]:
        if architecture is None:
            keep = self.encoder.form.shares_text and self.stage.learns_rationales
            return self.architecture.learn(batch.texts, batch.ids, self.forward, keep=keep)
        return architecture.learn(batch.texts, batch.ids)

    def _padded(self, prompts: Sequence[TokenPrompt], targets: Sequence[Sequence[int] | np.ndarray]) -> Padded:
        """Pad what follows the texts on the right."""
        start, filler = self.architecture.start, self.encoder.tokenizer.pad_token_id
        opened = [(*start, *prompt.lead) for prompt in prompts]
        learnt = [np.asarray(target, np.int64) for target in targets]
        followed = [np.append(lead, target[:-1]) for lead, target in zip(opened, learnt, strict=True)]
        wanted = [np.append([IGNORED] * (len(lead) - 1), target) for lead, target in zip(opened, learnt, strict=True)]
        ids, _ = padded(followed, filler, self.device)
        target_ids, _ = padded(wanted, IGNORED, self.device)
        followed_tokens = sum(len(prompt.lead) for prompt in prompts)
        followed_tokens += sum(len(target) for target in targets if target[0] != IGNORED)
        return Padded(prompts, ids, target_ids, followed_tokens)


def _backward_together(loss: Tensor, reading: TextReading, leaf: TextReading) -> None:
    """Add the gradient of a loss and, through a reading, of all that was computed from its leaf."""
    pairs = [
        (own, cut.grad)
        for own, cut in zip(reading.tensors, leaf.tensors, strict=True)
        if own.requires_grad and cut.grad is not None
    ]
    torch.autograd.backward([loss, *(own for own, _ in pairs)], [None, *(gradient for _, gradient in pairs)])

"""The loss of one stage on one batch, and its gradient: forward passes, conditioning labels, counts.

    loss_t = alpha_t · L_label + (1 - alpha_t) · L_rationale

Both are means over the gold target tokens of the whole step. A row that is left out of L_rationale, or has another
target, does not change what the sum is divided by, so the loss does not depend on how a step is cut into batches.

Conditioning labels are scored, not generated, from the encoder states of the predict pass and for the drawn rows
only. Each task's gradient is computed as soon as its loss is, so that one task's activations are kept at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reason2decide.method.conditioning import target_for
from reason2decide.method.losses import IGNORED, joint_loss, token_mean_cross_entropy
from reason2decide.method.methods import Stage
from reason2decide.method.schedules import alpha_at, sampling_probability_at, takes_predicted_label
from reason2decide.model.label_scores import best_labels, score_labels
from reason2decide.model.padding import on_device, padded
from reason2decide.model.prompt_encoder import PromptEncoder
from reason2decide.training.dropout import FastDropout
from reason2decide.training.features import Example


@dataclass(frozen=True)
class TargetTokens:
    """Target tokens of each task in a whole optimizer step, over all its batches and processes."""

    label: int
    rationale: int


@dataclass(frozen=True)
class Padded:
    """Prompts and targets of one forward pass, padded to the longest of each, on the device."""

    input_ids: Tensor  # (rows, longest prompt)
    attention_mask: Tensor  # (rows, longest prompt), 1 where there is text
    target_ids: Tensor  # (rows, longest target), `IGNORED` where there is none
    tokens: int  # without padding

    @property
    def size(self) -> int:
        """Tokens with padding."""
        return self.input_ids.numel() + self.target_ids.numel()


@dataclass(frozen=True)
class Tally:
    """What one batch adds to its step: shares of the two mean losses, and counts."""

    label_loss: Tensor
    rationale_loss: Tensor
    explained: int = 0  # rows with a rationale
    drawn: int = 0  # of these, shown the model's own label
    drawn_wrong: int = 0  # of these, where it is not the gold one
    skipped: int = 0  # of these, left out since there is no rationale for the label shown
    tokens: int = 0
    padded_tokens: int = 0


class Objective:
    """One stage's loss over one model.

    Args:
        model: what is trained; `forward` runs it (itself, or a compiled form of it).
        scorer: returns the model that scores labels: the same, or a whole copy if weights are sharded. All processes
            call it equally often.
        steps: of the stage; its schedules are shares of them.
        conditioning_dropout: whether y^ is predicted with dropout on, as in the step (authors' code), or without, which
            takes an extra encoder pass over the drawn rows.
    """

    def __init__(
        self,
        model: Any,
        encoder: PromptEncoder,
        stage: Stage,
        *,
        forward: Any,
        scorer: Callable[[], Any],
        steps: int,
        seed: int,
        device: torch.device,
        fast_dropout: bool,
        bfloat16: bool,
        conditioning_dropout: bool,
    ) -> None:
        self.model, self.encoder, self.stage, self.forward, self.scorer = model, encoder, stage, forward, scorer
        self.warmup_steps, self.ramp_steps = stage.warmup_steps(steps), stage.ramp_steps(steps)
        self.seed, self.device, self.conditioning_dropout = seed, device, conditioning_dropout
        self._fast_dropout = fast_dropout
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)

    def alpha(self, step: int) -> float:
        """alpha_t of this stage."""
        return alpha_at(step, alpha=self.stage.alpha, warmup_steps=self.warmup_steps)

    def sampling_probability(self, step: int) -> float:
        """pi_t of this stage."""
        return sampling_probability_at(
            step, cap=self.stage.sampling_cap, warmup_steps=self.warmup_steps, ramp_steps=self.ramp_steps
        )

    # ---- training

    def backward(self, examples: Sequence[Example], step: int, tokens: TargetTokens) -> Tally:
        """Add this batch's share of the gradient of the step's loss (paper, "Stage 2 loss") to the parameters'."""
        with self.computing():
            return self._backward(examples, step, tokens)

    def _backward(self, examples: Sequence[Example], step: int, tokens: TargetTokens) -> Tally:
        alpha, zero = self.alpha(step), torch.zeros((), device=self.device)
        label_loss, rationale_loss, seen, padded = zero, zero, 0, 0
        drawn: list[int] = []
        read_predicted: Callable[[], list[int]] = list
        if self.stage.learns_labels:
            predict = self.predict_batch(examples)
            label_loss, states = self.label_loss(predict, tokens.label)
            drawn, read_predicted = self._predict_conditioning(examples, step, predict, states)
            torch.autograd.backward(joint_loss(label_loss, zero, alpha))
            seen, padded = predict.tokens, predict.size
        wrong = explained = skipped = 0
        if self.stage.learns_rationales:
            labels = [example.label for example in examples]
            for row, best in zip(drawn, read_predicted(), strict=True):
                labels[row] = examples[row].choices[best]
                wrong += labels[row] != examples[row].label
            targets = [
                target_for(shown, own.label, own.rationale, own.contrasts, self.stage.on_disagreement)
                for shown, own in zip(labels, examples, strict=True)
            ]
            explain, learnt = self.explain_batch(examples, labels, targets)
            explained = sum(len(example.rationale) > 0 for example in examples)
            skipped = explained - learnt
            rationale_loss = self.rationale_loss(explain, tokens.rationale)
            torch.autograd.backward(joint_loss(zero, rationale_loss, alpha))
            seen, padded = seen + explain.tokens, padded + explain.size
        return Tally(label_loss.detach(), rationale_loss.detach(), explained, len(drawn), wrong, skipped, seen, padded)

    @torch.no_grad()
    def _predict_conditioning(
        self, examples: Sequence[Example], step: int, predict: Padded, states: Tensor
    ) -> tuple[list[int], Callable[[], list[int]]]:
        """The rows whose y~ is y^ (paper, "y~"), and a function that waits for their y^; no gradient."""
        pi = self.sampling_probability(step)
        if self.stage.explain != "conditioned" or pi == 0:
            return [], list
        scorer = self.scorer()
        rows = [
            row
            for row, example in enumerate(examples)
            if len(example.rationale) and takes_predicted_label(pi, self.seed, step, example.id)
        ]
        if not rows:
            return [], list
        index = on_device(torch.tensor(rows), self.device)
        mask = predict.attention_mask[index]
        with _scoring(scorer, dropout=self.conditioning_dropout):
            if self.conditioning_dropout:
                states = states[index]
            else:
                states = scorer.get_encoder()(input_ids=predict.input_ids[index], attention_mask=mask).last_hidden_state
            candidates = [self.encoder.candidates(examples[row].choices) for row in rows]
            return rows, best_labels(score_labels(scorer, states, mask, candidates))

    # ---- passes

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Run forward passes in the configured precision, and on a CPU with fast dropout."""
        with self._autocast, FastDropout() if self._fast_dropout else contextlib.nullcontext():
            yield

    def predict_batch(self, examples: Sequence[Example]) -> Padded:
        """The prompts that ask for a label, and the gold labels."""
        return self._padded(
            [self.encoder.predict_ids(example.text) for example in examples],
            [self.encoder.label_ids(example.label) for example in examples],
        )

    def explain_batch(
        self, examples: Sequence[Example], labels: Sequence[str], targets: Sequence[np.ndarray | None] | None = None
    ) -> tuple[Padded, int]:
        """The prompts that ask for a rationale (given `labels` if the stage conditions on them), and how many.

        Targets are the gold rationales unless given; a row without one is left out. Without any, one row without
        targets stands in, so that all processes run equally many passes.
        """
        written = [example.rationale for example in examples] if targets is None else targets
        rows = [row for row, target in enumerate(written) if target is not None and len(target)]
        given = [labels[row] if self.stage.explain == "conditioned" else None for row in rows or [0]]
        prompts = [
            self.encoder.explain_ids(examples[row].text, label) for row, label in zip(rows or [0], given, strict=True)
        ]
        learnt: list[Any] = [written[row] for row in rows]
        return self._padded(prompts, learnt or [[IGNORED]]), len(rows)

    def label_loss(self, batch: Padded, tokens: int, model: Any = None) -> tuple[Tensor, Tensor]:
        """L_pred (paper), and the encoder's states (rows, longest prompt, width)."""
        output = self._forward(batch, model)
        return token_mean_cross_entropy(output.logits, batch.target_ids, tokens), output.encoder_last_hidden_state

    def rationale_loss(self, batch: Padded, tokens: int, model: Any = None) -> Tensor:
        """L_expl (paper), or the Stage 1 loss if prompts are unconditioned."""
        return token_mean_cross_entropy(self._forward(batch, model).logits, batch.target_ids, tokens)

    def _forward(self, batch: Padded, model: Any) -> Any:
        # Decoder inputs rather than `labels`: the model would also compute its own loss, which nobody reads.
        return (model or self.forward)(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels=batch.target_ids),
            use_cache=False,
        )

    def _padded(self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int] | np.ndarray]) -> Padded:
        """Pad both on the right."""
        input_ids, attention_mask = padded(prompts, self.encoder.tokenizer.pad_token_id, self.device)
        target_ids, _ = padded(targets, IGNORED, self.device)
        tokens = sum(map(len, prompts)) + sum(len(target) for target in targets if target[0] != IGNORED)
        return Padded(input_ids, attention_mask, target_ids, tokens)


@contextlib.contextmanager
def _scoring(model: Any, *, dropout: bool) -> Iterator[None]:
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

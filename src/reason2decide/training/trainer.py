"""One stage of any method, from its first step or a checkpoint to its best weights.

A step follows the paper: the batches' gradients, one clipped update. Around it come validation, early stopping,
checkpoints, the log, and signals that ask to stop.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from reason2decide.console import ProgressBar
from reason2decide.errors import DivergedError, Interrupted
from reason2decide.files import link_or_copy, new_file
from reason2decide.method.methods import Stage
from reason2decide.method.schedules import dropout_seed, learning_rate_at
from reason2decide.model.architectures.kinds import architecture_of
from reason2decide.model.padding import on_device
from reason2decide.signals import StopSignals
from reason2decide.training import memory
from reason2decide.training.base import blank_copy, has_dropout, load_weights, set_attention
from reason2decide.training.batches import BatchLimit, BatchPlan, cut
from reason2decide.training.checkpoints import (
    BEST,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    CheckpointState,
    remove_old_checkpoints,
    write_checkpoint,
)
from reason2decide.training.compiled import compiled
from reason2decide.training.config import Config
from reason2decide.training.dropout import dropout_contexts
from reason2decide.training.features import SplitFeatures
from reason2decide.training.objective import LOSSES, Counts, Objective, StepSize, Tally
from reason2decide.training.optimizers import clip_gradients, new_optimizer
from reason2decide.training.processes import (
    Processes,
    WholeCopy,
    load_optimizer_state,
    shard,
    whole_optimizer_state,
    whole_weights,
)
from reason2decide.training.run_log import RunLog
from reason2decide.training.stage_plan import batch_limit, validation_interval
from reason2decide.training.validation import validate

LOG_TOGETHER = 10  # ours: steps whose log rows are written together, so that not each waits for the device


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share."""

    config: Config
    run: Path
    processes: Processes
    log: RunLog
    signals: StopSignals
    identity: Mapping[str, Any]
    versions: Mapping[str, str]
    bfloat16: bool


@dataclass(frozen=True)
class _StepRow:
    """The results of a step, its tensors still on the device."""

    step: int
    values: Tensor  # the sums of this process's `Tally`s, float64: losses, counts, confidences
    gradient_norm: Tensor
    learning_rate: float
    seconds: float


class StageTrainer:
    """Trains one `Stage`: loss_t = alpha_t · L_label + (1 - alpha_t) · L_rationale, whatever the method.

    Losses are means over the target tokens of the whole optimizer step, each task counting its own. The best
    checkpoint is selected only after warm-up and ramp have ended; early stopping starts then too.

    Args:
        model: the base or the stage before, whole; the trainer takes it over. With adapters, they are in it.
        finished: summaries of the stages before, for checkpoints.
        checkpoint: the one to resume from.
    """

    def __init__(
        self,
        context: RunContext,
        stage: Stage,
        model: Any,
        train: SplitFeatures,
        validation: SplitFeatures,
        plan: BatchPlan,
        *,
        finished: Mapping[str, Any],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        config, processes = context.config, context.processes
        self.context, self.stage, self.finished = context, stage, finished
        self.config, self.processes, self.device = config, processes, processes.device
        self.features, self.validation = train, validation
        self.steps: int = config.of("steps", stage.name)
        self.step = self.validated_step = self.best_step = self.worse_in_a_row = 0
        self.stopped = False
        self.selection: str = stage.selection
        self.best_value: float | None = None
        self.best_weights = context.run / stage.name / BEST
        self._pending: list[_StepRow] = []
        self._note = ""
        self._last_checkpoint = -1

        self.limit = batch_limit(config, stage, train)
        self.plan = plan
        if checkpoint is not None:
            load_weights(model, checkpoint.tensors(MODEL), trained_only=self._adapters_only)
        self.model, scorer = self._placed(model)
        if config.gradient_checkpointing:
            again = {"context_fn": dropout_contexts} if self.device.type == "cpu" else {}
            self.model.activation_checkpointing_enable({"use_reentrant": False, **again})
        self.optimizer = new_optimizer(self.model, config)
        self.objective = Objective(
            architecture_of(self.model, train.encoder.tokenizer.pad_token_id),
            train.encoder,
            stage,
            forward=compiled(self.model) if config.compile else self.model,
            scorer=lambda: architecture_of(scorer(), train.encoder.tokenizer.pad_token_id),
            steps=self.steps,
            seed=config.seed,
            device=self.device,
            dropout=has_dropout(model),
            fast_dropout=self.device.type == "cpu" and has_dropout(model) and not config.compile,
            bfloat16=context.bfloat16,
        )
        if checkpoint is not None:
            self._restore(checkpoint)

    # ---- preparation

    @property
    def _adapters_only(self) -> bool:
        """Whether checkpoints hold adapters alone; the weights beside them are the base's."""
        return self.config.lora is not None

    @property
    def _sharded(self) -> bool:
        return self.config.fsdp and self.processes.count > 1

    def _placed(self, model: Any) -> tuple[Any, Any]:
        """The model on its device, sharded if configured, and a function that returns the one that scores labels."""
        if self.device.type == "cpu":
            # With dropout, the fused CPU kernels of attention fall back to ones slower than the plain form.
            set_attention(model, "eager" if has_dropout(model) else "sdpa")
        model.train()
        if not self._sharded:
            model.to(self.device)
            return model, lambda: model
        copy = WholeCopy(model)
        copy.model.to(self.device)
        sharded = shard(model)
        return sharded, lambda: copy.refresh(sharded)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        load_optimizer_state(self.model, self.optimizer, checkpoint.tensors(OPTIMIZER))
        self.step, self.validated_step, self.stopped = state.step, state.validated_step, state.stopped
        self.selection, self.best_value, self.best_step = state.selection, state.best_value, state.best_step
        self.worse_in_a_row = state.worse_in_a_row
        if (window := self.objective.labels.window) is not None:
            window.restore(state.confidences or {})
        self._last_checkpoint = state.step
        if self.processes.is_main and (checkpoint.path / BEST).exists():
            self.best_weights.unlink(missing_ok=True)
            link_or_copy(checkpoint.path / BEST, self.best_weights)

    @cached_property
    def memory_plan(self) -> memory.MemoryPlan:
        """What the stage takes, and how much of a batch is computed at a time; said when first asked for."""
        return memory.plan_memory(
            self.stage.name,
            self.objective,
            self.optimizer,
            self.features,
            self.plan.widest(),
            divisible=not self._sharded,  # every pass of sharded weights is one of all processes
        )

    # ---- the loop

    def train(self) -> Any:
        """Train to the end or until validation has stopped improving; return a whole model with the best weights.

        Raises:
            DivergedError: a loss or the gradient became infinite or not a number.
            Interrupted: a signal asked to stop; a checkpoint was written.
        """
        plan = self.memory_plan
        every = validation_interval(self.config, self.stage, self.plan, self.validation)
        checkpoint_every = self.config.of("checkpoint_every", self.stage.name) or every
        with ProgressBar(self.stage.name, self.steps, "steps", done=self.step) as bar:
            while True:
                due = self.step % every == 0 or self.step == self.steps
                if due and self.validated_step < self.step:
                    self._validate(bar)
                at_end = self.stopped or self.step == self.steps
                if self.step and (self.step % checkpoint_every == 0 or at_end):
                    self._checkpoint()
                if at_end:
                    break
                self._stop_if_asked()
                self.train_step()
                bar.advance(note=self._note)
        memory.report_peak(self.stage.name, self.device, plan.estimate)
        return self._best_model()

    def train_step(self) -> None:
        """One optimizer step: the gradients of its batches, one clipped update (paper, "Stage 2 loss")."""
        started, step = time.perf_counter(), self.step
        window = self.objective.labels.window
        if window is not None and window.begins(step):
            self._write_rows()
        batches = self.plan.step(step)
        rows = np.concatenate(batches)
        labels, rationales = self.features.target_lengths_of(rows)
        size = StepSize(int(labels.sum()), int(rationales.sum()), int(np.count_nonzero(rationales)))
        torch.manual_seed(dropout_seed(self.config.seed, self.stage.name, step, self.processes.rank))
        tallies = [
            self.objective.backward([self.features[row] for row in part], step, size)
            for batch in batches[self.processes.rank :: self.processes.count]
            for part in self._passes(batch)
        ]
        self.processes.sum_gradients(self.model)
        norm = clip_gradients(self.model, self.config.max_grad_norm)
        rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._pending.append(_StepRow(step, _summed(tallies), norm, rate, time.perf_counter() - started))
        if len(self._pending) >= LOG_TOGETHER:
            self._write_rows()

    def _passes(self, batch: NDArray[np.integer[Any]]) -> Iterator[list[int]]:
        """The records of a batch in parts that fit into memory together."""
        prompts = self.features.prompt_lengths_of(batch)
        rationales = self.features.widest_rationales_of(batch)
        limit = BatchLimit(len(batch), None if self._sharded else self.memory_plan.pass_tokens)
        for begin, end in pairwise(cut(prompts, rationales, limit)):
            yield batch[begin:end].tolist()

    def _learning_rate(self, step: int) -> float:
        warmup = int(self.config.of("learning_rate_warmup", self.stage.name) * self.steps)
        return learning_rate_at(
            step, peak=self.config.of("learning_rate", self.stage.name), warmup_steps=warmup, steps=self.steps
        )

    # ---- the log

    def _write_rows(self) -> None:
        """Write a row for each step since the last call; wait for the device, and the other processes, once."""
        rows, self._pending = self._pending, []
        if not rows:
            return
        sums = self.processes.sum(torch.stack([row.values for row in rows])).tolist()
        norms = torch.stack([row.gradient_norm for row in rows]).tolist()
        for row, values, norm in zip(rows, sums, norms, strict=True):
            losses, counts, confidences = _parts(values)
            self._require_finite(
                row.step, {**{name.replace("_", " "): losses[name] for name in LOSSES}, "gradient norm": norm}
            )
            if (window := self.objective.labels.window) is not None:
                window.add(row.step, confidences)
            content = {"loss": self.objective.joint(losses, row.step)}
            content |= {name: losses[name] for name in self.stage.losses}
            content |= {
                "alpha": self.objective.alpha(row.step),
                "sampling_probability": self.objective.labels.sampling_probability(row.step),
            }
            if self.stage.explain == "conditioned":
                content |= {
                    "drawn_share": counts.drawn / max(counts.explained, 1),
                    "drawn_wrong_share": counts.drawn_wrong / max(counts.drawn, 1),
                }
            if self.stage.on_disagreement != "gold":
                content |= {
                    "drawn_wrong": counts.drawn_wrong,
                    "contrasted": counts.contrasted,
                    "skipped": counts.skipped,
                }
            content |= {
                "learning_rate": row.learning_rate,
                "grad_norm": norm,
                "seconds": row.seconds,
                "tokens_per_second": counts.tokens / row.seconds,
                "padding_share": 1 - counts.tokens / counts.padded_tokens,
                "peak_memory_bytes": float(memory.peak_bytes(self.device)),
            }
            self._log({"event": "train", "step": row.step + 1, **content})
            self._note = f"loss {content['loss']:.3f}"

    def _log(self, row: Mapping[str, Any]) -> None:
        if self.processes.is_main:
            self.context.log.write(self.stage.name, row)

    def _require_finite(self, step: int, values: Mapping[str, float]) -> None:
        bad = [f"the {what} is {value}" for what, value in values.items() if not math.isfinite(value)]
        if bad:
            ids = [self.features.id_of(row) for batch in self.plan.step(step) for row in batch.tolist()]
            raise DivergedError(
                f"{self.stage.name}: {' and '.join(bad)} at step {step + 1}, whose records are {', '.join(ids)}; train "
                "again with a smaller learning_rate or a longer learning_rate_warmup, or check these records"
            )

    # ---- validation, checkpoints, the end

    def _validate(self, bar: ProgressBar) -> None:
        """Measure on the validation split; keep the best weights and count towards stopping."""
        self._write_rows()

        def between(share: float) -> None:
            bar.advance(0, f"validating, {share:.0%}")
            if self.processes.count == 1:  # several have different numbers of batches; they stop between steps only
                self._stop_if_asked()

        limit = BatchLimit(self.limit.records, min(self.limit.tokens or sys.maxsize, self.memory_plan.pass_tokens))
        metrics = validate(self.objective, self.validation, limit, self.processes, between)
        if not math.isfinite(metrics["loss"]):
            raise DivergedError(
                f"{self.stage.name}: the validation loss is {metrics['loss']} after step {self.step}; train again with "
                "a smaller learning_rate or a longer learning_rate_warmup"
            )
        self.validated_step = self.step
        self._log({"event": "validation", "step": self.step, **metrics})
        if self.step < self.stage.select_step(self.steps):
            return
        # If each record has its own choices there is no macro-F1: accuracy selects the checkpoint (ours).
        self.selection = self.stage.selection if self.stage.selection in metrics else "accuracy"
        value, sign = metrics[self.selection], -1 if self.selection == "rationale_loss" else 1
        if self.best_value is None or sign * value > sign * self.best_value:
            self.best_value, self.best_step, self.worse_in_a_row = value, self.step, 0
            weights = whole_weights(self.model, trained_only=self._adapters_only)
            if self.processes.is_main:
                with new_file(self.best_weights, force=True) as file:
                    save_file(weights, file)
        else:
            self.worse_in_a_row += 1
            self.stopped = self.worse_in_a_row >= self.stage.patience

    def _checkpoint(self) -> Path | None:
        """Write a checkpoint unless this step has one; return its path."""
        self._write_rows()
        if self._last_checkpoint == self.step:
            return None
        model = whole_weights(self.model, trained_only=self._adapters_only)
        optimizer = whole_optimizer_state(self.model, self.optimizer)
        path = None
        if self.processes.is_main:
            state = CheckpointState(
                stage=self.stage.name,
                step=self.step,
                validated_step=self.validated_step,
                stopped=self.stopped,
                selection=self.selection,
                best_value=self.best_value,
                best_step=self.best_step,
                worse_in_a_row=self.worse_in_a_row,
                confidences=None if self.objective.labels.window is None else self.objective.labels.window.to_json(),
                finished=self.finished,
                identity=self.context.identity,
                versions=self.context.versions,
            )
            best = self.best_weights if self.best_value is not None else None
            path = write_checkpoint(self.context.run, state, model, optimizer, best)
            remove_old_checkpoints(self.context.run, self.stage.name, self.config.keep_checkpoints)
        self.processes.wait()
        self._last_checkpoint = self.step
        return path

    def _stop_if_asked(self) -> None:
        """If a signal asked to stop, write a checkpoint and raise `Interrupted`."""
        received = self.context.signals.received
        if self.processes.count > 1:
            # All must stop at the same step; they agree at a step where they synchronise anyway.
            if self.step % LOG_TOGETHER:
                return
            received = max((number for number in self.processes.gather(received) if number), default=None)
        if received is not None:
            if not self.step:
                raise Interrupted(received, f"{self.stage.name} had not begun")
            self._checkpoint()
            raise Interrupted(received, f"saved {self.stage.name} at step {self.step}")

    def _best_model(self) -> Any:
        self.processes.wait()  # until the main process has written the weights
        model = self.model if self._adapters_only else blank_copy(self.model)
        load_weights(model, load_file(self.best_weights), trained_only=self._adapters_only)
        return model

    @property
    def summary(self) -> dict[str, Any]:
        """The bundle's summary of the stage."""
        return {
            "steps": self.step,
            "selection": self.selection,
            "best_step": self.best_step,
            "best_value": self.best_value,
            "records": len(self.plan.rows),
            "records_with_rationale": int(np.isin(self.plan.rows, self.features.with_rationale).sum()),
            "cut_texts": str(self.features.cut_texts),
            "cut_rationales": str(self.features.cut_rationales),
        }


def _summed(tallies: Sequence[Tally]) -> Tensor:
    """The sums of the tallies' losses, counts and confidences in their order, float64, on the device."""
    losses = torch.stack([torch.stack([tally.losses[name] for name in LOSSES]) for tally in tallies]).double().sum(0)
    counts = np.sum([[*astuple(tally.counts), *tally.confidences] for tally in tallies], axis=0)
    return torch.cat([losses, on_device(torch.from_numpy(counts), losses.device)])


def _parts(values: Sequence[float]) -> tuple[dict[str, float], Counts, NDArray[np.float64]]:
    """The losses, counts and confidences that `_summed` put together."""
    counted = len(LOSSES) + len(fields(Counts))
    counts = Counts(*(int(value) for value in values[len(LOSSES) : counted]))
    return dict(zip(LOSSES, values, strict=False)), counts, np.array(values[counted:])

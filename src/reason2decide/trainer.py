"""One stage of any method on the Hugging Face `Trainer`: joint loss, conditioning labels, validation, log."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Subset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments

from reason2decide.console import ProgressBar
from reason2decide.errors import DivergedError
from reason2decide.features import Example, PromptEncoder, SplitFeatures
from reason2decide.labels import best_label, score_labels
from reason2decide.losses import IGNORED, joint_loss, token_mean_cross_entropy
from reason2decide.methods import Stage
from reason2decide.metrics import Accuracy, Examples, MacroF1, NotComputed
from reason2decide.predictions import Prediction
from reason2decide.records import Record
from reason2decide.schedules import alpha_at, sampling_probability_at, takes_predicted_label


@dataclass
class StageLog:
    """The run's log, one JSON object a line; training rows are means since the row before."""

    path: Path
    stage: str
    _batches: list[dict[str, float | Tensor]] = field(default_factory=list)
    _steps: set[int] = field(default_factory=set)

    def batch(self, step: int, values: dict[str, float | Tensor]) -> None:
        """Keep the values of one batch of a step; tensors stay on their device until the row is written."""
        self._batches.append(values)
        self._steps.add(step)

    def train_row(self, step: int, extra: dict[str, float]) -> None:
        """Write the means of what was given since the last row.

        A batch's loss is its share of its step's mean, so losses add up over batches and are averaged over steps.
        """
        means = {}
        for key in dict.fromkeys(key for batch in self._batches for key in batch):
            values = [float(batch[key]) for batch in self._batches if key in batch]
            means[key] = sum(values) / (len(self._steps) if key.endswith("_loss") else len(values))
        self._batches, self._steps = [], set()
        self.write({"event": "train", "step": step, **means, **extra})

    def write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"stage": self.stage, **row}, allow_nan=False) + "\n")


class StageTrainer(Trainer):  # type: ignore[misc]
    """Trains one `Stage`: loss_t = alpha_t · L_label + (1 - alpha_t) · L_rationale, whatever the method.

    Losses are means over the target tokens of the whole optimizer step, each task counting its own. Conditioning
    labels are scored, not generated, from the encoder states of the predict forward, for the drawn rows only.
    The best checkpoint is sought only after warm-up and ramp have ended, and so does early stopping.
    """

    control: TrainerControl
    loss_is_scaled_for_ga = True  # the losses divide by the tokens of all accumulated batches

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        stage: Stage,
        encoder: PromptEncoder,
        train: SplitFeatures,
        validation: SplitFeatures,
        log: StageLog,
    ) -> None:
        self.stage, self.encoder, self.stage_log = stage, encoder, log
        examples: Any = train
        progress = self.progress = StageProgress(stage.name)
        super().__init__(
            model=model,
            args=args,
            # A record without a rationale has nothing to teach a stage that learns rationales only.
            train_dataset=examples if stage.learns_labels else Subset(examples, train.with_rationale.tolist()),
            eval_dataset=validation,
            data_collator=self.collate,
            processing_class=encoder.tokenizer,
            callbacks=[progress],
        )
        self.remove_callback(PrinterCallback)
        self.warmup_steps = stage.warmup_steps(args.max_steps)
        self.ramp_steps = stage.ramp_steps(args.max_steps)
        self.selection: str = stage.selection
        self.best_value: float | None = None
        self.best_step = 0
        self._worse_in_a_row = 0

    @property
    def best_weights(self) -> Path:
        """Where the best checkpoint's weights are kept."""
        return Path(self.args.output_dir) / "best"

    def train(self, *arguments: Any, **settings: Any) -> Any:
        """As the Trainer's own, with the progress bar closed whatever happens."""
        try:
            return super().train(*arguments, **settings)
        finally:
            self.progress.close()

    # ---- batches

    def collate(self, examples: list[Example]) -> dict[str, Any]:
        """Tensors of what does not depend on the step; the explain prompts do, and are built when it is known."""
        predict = [self.encoder.predict_ids(example.text) for example in examples]
        input_ids, attention_mask = self._padded(predict)
        return {
            "examples": examples,
            "predict_input_ids": input_ids,
            "predict_attention_mask": attention_mask,
            "label_target_ids": _targets([self.encoder.label_ids(example.label) for example in examples]),
        }

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Tensor]:
        """The batches of one optimizer step and its number of (label, rationale) target tokens over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.tensor(
            [
                sum(int((batch["label_target_ids"] != IGNORED).sum()) for batch in batches),
                sum(len(example.rationale) for batch in batches for example in batch["examples"]),
            ],
            device=device,
        )
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(0)
        return batches, counts

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Input ids and attention mask, (rows, longest), padded on the right."""
        tensors = [torch.as_tensor(np.asarray(row, np.int64)) for row in rows]
        lengths = torch.tensor([len(row) for row in tensors])
        input_ids = pad_sequence(tensors, batch_first=True, padding_value=self.encoder.tokenizer.pad_token_id)
        return input_ids, (torch.arange(input_ids.shape[1])[None] < lengths[:, None]).long()

    # ---- the loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """The joint loss of one batch at the current step (paper, "Stage 2 loss")."""
        assert num_items_in_batch is not None and not return_outputs
        step, stage, examples = self.state.global_step, self.stage, inputs["examples"]
        alpha = alpha_at(step, alpha=stage.alpha, warmup_steps=self.warmup_steps)
        pi = sampling_probability_at(
            step, cap=stage.sampling_cap, warmup_steps=self.warmup_steps, ramp_steps=self.ramp_steps
        )
        label_tokens, rationale_tokens = num_items_in_batch
        label_loss = rationale_loss = torch.zeros((), device=self.args.device)
        encoder_states = None
        if stage.learns_labels:
            label_loss, encoder_states = self._label_loss(model, inputs, label_tokens)
        log: dict[str, float | Tensor] = {"alpha": alpha, "sampling_probability": pi}
        explained = [row for row, example in enumerate(examples) if len(example.rationale)]
        if stage.learns_rationales and explained:
            conditioning: dict[int, str | None] = dict.fromkeys(explained)
            if stage.explain == "conditioned":
                drawn = [r for r in explained if takes_predicted_label(pi, self.args.seed, step, examples[r].id)]
                predicted = self._predicted_labels(model, inputs, encoder_states, drawn)
                conditioning = {row: predicted.get(row, examples[row].label) for row in explained}
                wrong = sum(label != examples[row].label for row, label in predicted.items())
                log |= {"drawn_share": len(drawn) / len(explained), "drawn_wrong_share": wrong / max(len(drawn), 1)}
            rationale_loss = self._rationale_loss(model, examples, conditioning, rationale_tokens)
        loss = joint_loss(label_loss, rationale_loss, alpha)
        if stage.learns_labels:
            log["label_loss"] = label_loss.detach()
        if stage.learns_rationales:
            log["rationale_loss"] = rationale_loss.detach()
        self.stage_log.batch(step, log)
        # Data parallelism averages gradients, and the losses were divided by the tokens of all processes.
        scaled: Tensor = loss * self.accelerator.num_processes
        return scaled

    def _label_loss(self, model: Any, inputs: dict[str, Any], tokens: Tensor | int) -> tuple[Tensor, Tensor]:
        output = self._forward(
            model, inputs["predict_input_ids"], inputs["predict_attention_mask"], inputs["label_target_ids"]
        )
        loss = token_mean_cross_entropy(output.logits, inputs["label_target_ids"], tokens)
        return loss, output.encoder_last_hidden_state

    def _rationale_loss(
        self, model: Any, examples: list[Example], conditioning: dict[int, str | None], tokens: Tensor | int
    ) -> Tensor:
        rows = list(conditioning)
        prompts = [self.encoder.explain_ids(examples[row].text, conditioning[row]) for row in rows]
        input_ids, attention_mask = (tensor.to(self.args.device) for tensor in self._padded(prompts))
        target_ids = _targets([examples[row].rationale for row in rows]).to(self.args.device)
        output = self._forward(model, input_ids, attention_mask, target_ids)
        return token_mean_cross_entropy(output.logits, target_ids, tokens)

    def _forward(self, model: Any, input_ids: Tensor, attention_mask: Tensor, target_ids: Tensor) -> Any:
        # Decoder inputs rather than `labels`: the model would compute a loss of its own that nobody reads.
        shift = self.accelerator.unwrap_model(model).prepare_decoder_input_ids_from_labels
        return model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=shift(labels=target_ids))

    def _predicted_labels(
        self, model: Any, inputs: dict[str, Any], encoder_states: Tensor | None, rows: list[int]
    ) -> dict[int, str]:
        """y^ of the drawn rows, without gradient; the decoder without dropout (ours)."""
        if not rows:
            return {}
        assert encoder_states is not None, "a stage with conditioned rationales learns labels too"
        examples = [inputs["examples"][row] for row in rows]
        plain = self.accelerator.unwrap_model(model)
        plain.eval()
        scores = score_labels(
            plain,
            encoder_states[rows].detach(),
            inputs["predict_attention_mask"][rows],
            [self.encoder.candidates(example.choices) for example in examples],
        )
        plain.train()
        return {r: e.choices[best_label(own)] for r, e, own in zip(rows, examples, scores, strict=True)}

    # ---- validation

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Losses and macro-F1 on the validation split; keeps the best weights and counts towards stopping."""
        metrics = self._validation_metrics(self.eval_dataset)
        self._require_finite(metrics["loss"])
        self.stage_log.write({"event": "validation", "step": self.state.global_step, **metrics})
        if self.state.global_step >= self.warmup_steps + self.ramp_steps:
            # Where each record has its own choices there is no macro-F1: accuracy picks the checkpoint (ours).
            self.selection = self.stage.selection if self.stage.selection in metrics else "accuracy"
            value, sign = metrics[self.selection], -1 if self.selection == "rationale_loss" else 1
            if self.best_value is None or sign * value > sign * self.best_value:
                self.best_value, self.best_step, self._worse_in_a_row = value, self.state.global_step, 0
                self.accelerator.unwrap_model(self.model).save_pretrained(self.best_weights)
            else:
                self._worse_in_a_row += 1
                self.control.should_training_stop |= self._worse_in_a_row >= self.stage.patience
        self.model.train()
        reported = {f"eval_{key}": value for key, value in metrics.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, reported)
        return reported

    @torch.no_grad()
    def _validation_metrics(self, features: SplitFeatures) -> dict[str, float]:
        """Token-mean losses with gold conditioning labels; accuracy and, over a declared label set, macro-F1."""
        model, stage, encoder = self.model.eval(), self.stage, self.encoder
        order = np.argsort(features.texts.lengths, kind="stable")
        size = self.args.per_device_eval_batch_size
        totals = {"label_loss": 0.0, "rationale_loss": 0.0}
        tokens = {"label_loss": 0, "rationale_loss": 0}
        records: list[Record] = []
        predicted: list[Prediction] = []
        for begin in range(0, len(order), size):
            rows = [int(index) for index in order[begin : begin + size]]
            examples = [features[row] for row in rows]
            batch = self._prepare_inputs(self.collate(examples))
            with self.accelerator.autocast():
                if stage.learns_labels:
                    loss, states = self._label_loss(model, batch, 1)
                    totals["label_loss"] += float(loss)
                    tokens["label_loss"] += int((batch["label_target_ids"] != IGNORED).sum())
                    candidates = [encoder.candidates(example.choices) for example in examples]
                    scores = score_labels(model, states, batch["predict_attention_mask"], candidates)
                    records += [features.records[row] for row in rows]
                    predicted += [
                        Prediction(e.id, e.choices[best_label(own)]) for e, own in zip(examples, scores, strict=True)
                    ]
                explained = [row for row, example in enumerate(examples) if len(example.rationale)]
                if stage.learns_rationales and explained:
                    conditioned = stage.explain == "conditioned"
                    labels = {row: examples[row].label if conditioned else None for row in explained}
                    totals["rationale_loss"] += float(self._rationale_loss(model, examples, labels, 1))
                    tokens["rationale_loss"] += sum(len(examples[row].rationale) for row in explained)
        metrics = {key: totals[key] / tokens[key] for key in totals if tokens[key]}
        metrics["loss"] = float(
            joint_loss(
                torch.tensor(metrics.get("label_loss", 0.0)),
                torch.tensor(metrics.get("rationale_loss", 0.0)),
                stage.alpha,
            )
        )
        if predicted:
            judged = Examples(records, predicted, features.labels)
            for metric in (Accuracy(), MacroF1()):
                with contextlib.suppress(NotComputed):
                    metrics[metric.name] = float(metric.aggregate(metric.statistics(judged).total()))
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Send the Trainer's own log rows to the run's log."""
        if "loss" in logs:
            self._require_finite(logs["loss"])
            self._require_finite(logs.get("grad_norm", 0.0), "gradient norm")
            keys = ("loss", "grad_norm", "learning_rate")
            self.stage_log.train_row(self.state.global_step, {key: logs[key] for key in keys if key in logs})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _require_finite(self, value: float, what: str = "loss") -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"{self.stage.name}: the {what} is {value} at step {self.state.global_step}; "
                "train again with a smaller learning_rate, or a longer learning_rate_warmup"
            )


def _targets(rows: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """Target ids (rows, longest), padded with `IGNORED`."""
    tensors = [torch.as_tensor(np.asarray(row, np.int64)) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=IGNORED)


class StageProgress(TrainerCallback):  # type: ignore[misc]
    """The stage's progress bar, and a validation at the last step whatever the interval."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.bar: ProgressBar | None = None

    def close(self) -> None:
        """End the bar, which gives the terminal its cursor back."""
        if self.bar is not None:
            self.bar.__exit__()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = ProgressBar(self.stage, state.max_steps, "steps").__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.bar is not None
        self.bar.advance()
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"

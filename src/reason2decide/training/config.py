"""The training configuration: every key with its default and source, a frozen and fully resolved object.

Most keys may be one value for every stage or a table by stage (`steps = {stage1 = 500, stage2 = 300}`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from reason2decide.method.conditioning import OnDisagreement
from reason2decide.method.methods import METHODS, Layout, Selection, Stage, method_named
from reason2decide.model.hub import SCRATCH
from reason2decide.model.prompt_encoder import Lengths
from reason2decide.training.base_defaults import completed, told

Precision = Literal["auto", "float32", "bfloat16"]
Optimizer = Literal["adamw", "adafactor"]
Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]
PER_STAGE: dict[str, Any] = {"stage": True}  # marks the keys that may be a table by stage
# Marks the keys that may change when a run is resumed: what is learnt does not depend on them.
FREE: dict[str, Any] = {"free": True}


def _conditioned(stage: Stage) -> bool:
    return stage.explain == "conditioned"


def _samples(stage: Stage) -> bool:
    return stage.sampling_cap > 0


def _learns_labels(stage: Stage) -> bool:
    return stage.learns_labels


# Which stages a single value of a key applies to, told by what the earlier keys have made of the stage.
_USES: dict[str, Callable[[Stage], bool]] = {
    "alpha": lambda stage: stage.learns_labels and stage.learns_rationales,
    "warmup_share": lambda stage: stage.warmup_share > 0,
    "ramp_share": lambda stage: stage.ramp_share > 0,
    "on_disagreement": _samples,
    "adaptive_sampling": _samples,
    "sampling_cap": _samples,
    "posterior_weight": _conditioned,
    "posterior_share": _conditioned,
    "cycle_weight": _conditioned,
    "contrast_share": lambda stage: stage.learns_contrasts,
    "conditioning_dropout": lambda stage: stage.needs_labels_shown,
    "selection": _learns_labels,
    "select_from": _learns_labels,
    "patience": lambda stage: True,
}


def _absolute(name: str) -> str:
    """Make a folder's path absolute, so that a configuration means the same everywhere; leave a hub name as is."""
    return str(Path(name).absolute()) if name != SCRATCH and Path(name).is_dir() else name


def _spread(value: Any) -> Any:
    return value if isinstance(value, dict) else {"*": value}


PerStageInt = Annotated[dict[str, Annotated[int, Field(ge=1)]], BeforeValidator(_spread)]
PerStageShare = Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], BeforeValidator(_spread)]
PerStagePositive = Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_spread)]
PerStageWeight = Annotated[dict[str, Annotated[float, Field(ge=0)]], BeforeValidator(_spread)]
PerStageBool = Annotated[dict[str, bool], BeforeValidator(_spread)]
PerStageRule = Annotated[dict[str, OnDisagreement], BeforeValidator(_spread)]
PerStageSelection = Annotated[dict[str, Selection], BeforeValidator(_spread)]
PerStageText = Annotated[dict[str, str], BeforeValidator(_spread)]


class Encoder(BaseModel):
    """A base made from an encoder: BERT-like ones lend the decoder their weights, others get a thin new one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: Annotated[str, AfterValidator(_absolute)] = Field(
        description="encoder to warm-start from: hub name or local folder"
    )


class Lora(BaseModel):
    """Low-rank adapters beside frozen weights (Hu et al. 2021), merged into them at the end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, description="rank of the adapters (ours)")
    alpha: float | None = Field(None, gt=0, description="scale of the adapters, divided by rank (ours: twice the rank)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate before the adapters (peft's default)")
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="layers to adapt, by the end of their names (Hu et al. 2021: those of queries and values)",
    )
    weights: Literal["float32", "nf4"] = Field(
        "float32", description='how frozen weights are held; "nf4": in four bits (Dettmers et al. 2023) (ours)'
    )

    @property
    def scale(self) -> float:
        """`alpha`, or what stands for it."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank

    @property
    def bits(self) -> int:
        """Bits that a frozen weight takes."""
        return 4 if self.weights == "nf4" else 32


class Config(BaseModel):
    """The configuration of a training run. A file needs the first five keys only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description=f"training method: one of {', '.join(METHODS)}")
    base: Annotated[str, AfterValidator(_absolute)] | Encoder = Field(
        description="base model, an encoder-decoder or decoder-only: hub name, local folder, or `tiny` (small, from "
        'scratch); or an encoder: {encoder = "..."}'
    )
    dataset: Annotated[Path, AfterValidator(Path.absolute)] = Field(
        description="dataset folder; a relative path starts at the configuration file's folder"
    )
    rationale_source: PerStageText = Field(
        {}, description="source of the rationales to learn from; sft needs none", json_schema_extra=PER_STAGE
    )
    steps: PerStageInt = Field(
        description="number of optimizer steps (authors: stage1 50000, stage2 30000, sft 30000)",
        json_schema_extra=PER_STAGE,
    )
    layout: Layout | None = Field(
        None,
        description="two-prompt: each task has its own prompt (paper); one-pass: the text is read once, and the "
        "rationale follows the label in one answer (ours, default of r2d-skip, r2d-posterior, r2d-contrast and both)",
    )
    train_records: int | None = Field(
        None, ge=1, description="number of training records to learn from, drawn by the seed (ours: all)"
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, record order, dropout and the draws of y~ (ours)")
    batch_size: PerStageInt = Field(
        {},
        description=f"records per batch and process, computed in parts that fit into memory: {told('batch_size')}",
        json_schema_extra=PER_STAGE,
    )
    batch_tokens: PerStageInt = Field(
        {},
        description="tokens per batch and process, padding and targets included; replaces batch_size (ours: off)",
        json_schema_extra=PER_STAGE,
    )
    gradient_accumulation: PerStageInt = Field(
        {"*": 1}, description="batches per optimizer step (authors' code)", json_schema_extra=PER_STAGE
    )
    learning_rate: PerStagePositive = Field(
        {},
        description=f"peak learning rate, which falls linearly to 0: {told('learning_rate')}",
        json_schema_extra=PER_STAGE,
    )
    learning_rate_warmup: PerStageShare = Field(
        {},
        description=f"share of steps over which the learning rate rises from 0: {told('learning_rate_warmup')}",
        json_schema_extra=PER_STAGE,
    )
    optimizer: Optimizer = Field("adamw", description="optimizer: adamw, or adafactor for less memory (authors: adamw)")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the optimizer, decoupled (Trainer's default)")
    max_grad_norm: float = Field(
        1.0, gt=0, description="largest gradient norm; larger gradients are clipped (Trainer's default)"
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description=f"dropout rate, which replaces the base's: {told('dropout')}"
    )
    precision: Precision = Field(
        "auto",
        description="precision of the computation: float32, bfloat16, or auto: bfloat16 if the GPU supports it, "
        "float32 on a CPU (ours; T5 overflows in float16)",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, about a third slower (ours)"
    )
    compile: bool = Field(False, description="run the forward passes through torch.compile (ours)")
    fsdp: bool = Field(False, description="shard gradients and optimizer states over the processes (ours)")
    lora: Lora | None = Field(None, description="train low-rank adapters only (ours: off, all weights are trained)")
    alpha: PerStageShare = Field(
        {},
        description="weight of the label loss after the warm-up (paper: 0.7 in stage2; dss 0.5)",
        json_schema_extra=PER_STAGE,
    )
    warmup_share: PerStageShare = Field(
        {},
        description="share of steps over which alpha rises from 0 (paper: 0.05 in stage2)",
        json_schema_extra=PER_STAGE,
    )
    ramp_share: PerStageShare = Field(
        {}, description="share of steps over which pi rises from 0 (paper: 0.6 in stage2)", json_schema_extra=PER_STAGE
    )
    sampling_cap: PerStageShare = Field(
        {},
        description="largest pi, the probability of the model's own label (paper: 0.9 in stage2)",
        json_schema_extra=PER_STAGE,
    )
    on_disagreement: PerStageRule = Field(
        {},
        description="what is learnt under a label that is not gold: gold (paper), skip, or contrast: the record's "
        "rationale for that label, else skip",
        json_schema_extra=PER_STAGE,
    )
    conditioning_dropout: PerStageBool = Field(
        {},
        description="predict y^ with dropout on (authors' code; r2d) or without, in an extra encoder pass (ours)",
        json_schema_extra=PER_STAGE,
    )
    contrast_share: PerStageShare = Field(
        {},
        description="share of records that learn the contrast of the model's wrong label or second choice, where they "
        "have one (ours: 0.25 in r2d-contrast)",
        json_schema_extra=PER_STAGE,
    )
    posterior_weight: PerStageWeight = Field(
        {},
        description="lambda, weight of the label's posterior given the gold rationale (ours: 0.1 in r2d-posterior)",
        json_schema_extra=PER_STAGE,
    )
    posterior_share: PerStageShare = Field(
        {}, description="share of records a step takes that posterior of (ours: 0.25)", json_schema_extra=PER_STAGE
    )
    adaptive_sampling: PerStageBool = Field(
        {}, description="show confident predictions more often (Reason2Decide-C)", json_schema_extra=PER_STAGE
    )
    cycle_weight: PerStageWeight = Field(
        {},
        description="weight of recovering the label from the rationale (Reason2Decide-C: 0.1)",
        json_schema_extra=PER_STAGE,
    )
    selection: PerStageSelection = Field(
        {},
        description="what picks the best checkpoint: macro_f1 (paper), rationale_loss, or decision_and_reason: "
        "sqrt(macro-F1 x P(gold rationale token))",
        json_schema_extra=PER_STAGE,
    )
    select_from: PerStageShare = Field(
        {},
        description="share of steps from which checkpoints count (ours: 0.65 in every last stage, as in r2d)",
        json_schema_extra=PER_STAGE,
    )
    evaluate_every: PerStageInt = Field(
        {},
        description="steps between validations (ours: a twentieth of the stage, or what takes a tenth of its time)",
        json_schema_extra=PER_STAGE,
    )
    checkpoint_every: PerStageInt = Field(
        {},
        description="steps between checkpoints (ours: same as evaluate_every)",
        json_schema_extra=PER_STAGE | FREE,
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="number of newest checkpoints to keep per stage (ours)", json_schema_extra=FREE
    )
    report_to: tuple[Tracker, ...] = Field(
        (), description="trackers to log to besides RUN/log.jsonl (ours: none)", json_schema_extra=FREE
    )
    patience: PerStageInt = Field(
        {},
        description="validations without improvement before stopping early (authors: stage1 3, else 5)",
        json_schema_extra=PER_STAGE,
    )
    lengths: Lengths = Field(Lengths(), description="limits in tokens")

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_the_base(cls, content: Any) -> Any:
        return completed(content) if isinstance(content, dict) else content

    def stages(self) -> tuple[Stage, ...]:
        """The method's stages with this configuration's settings in place of the paper's.

        A single value applies to the stages that use the setting: `alpha = 0.6` leaves r2d's Stage 1 alone, as does
        `sampling_cap = 0.5` the ablation without sampling.
        """
        return tuple(self._set(stage) for stage in method_named(self.method).stages)

    def _set(self, stage: Stage) -> Stage:
        for key, used in _USES.items():
            values: dict[str, Any] = getattr(self, key)
            if stage.name in values or ("*" in values and used(stage)):
                change: dict[str, Any] = {key: values.get(stage.name, values.get("*"))}
                stage = replace(stage, **change)
        return stage

    @property
    def without_effect(self) -> list[str]:
        """The keys with a single value that no stage of the method uses."""
        stages = self.stages()
        return [key for key, used in _USES.items() if "*" in getattr(self, key) and not any(map(used, stages))]

    def of(self, key: str, stage: str) -> Any:
        """The value of a per-stage key for one stage, else the default; None if there is neither."""
        values: dict[str, Any] = getattr(self, key)
        field = type(self).model_fields[key]
        default = None if field.is_required() else field.default.get("*")
        return values.get(stage, values.get("*", default))

    @property
    def one_pass(self) -> bool:
        """Whether the text is read once for both tasks, and the rationale follows the label."""
        return self.chosen_layout == "one-pass"

    @property
    def chosen_layout(self) -> Layout:
        """The layout asked for, else the method's."""
        return self.layout or method_named(self.method).layout

    @property
    def base_name(self) -> str:
        """The base's name, for messages and the bundle."""
        return self.base if isinstance(self.base, str) else f"encoder {self.base.encoder}"

    def identity(self) -> dict[str, Any]:
        """All that decides what is learnt, except the data: settings of the whole run, and of each stage."""
        fields = type(self).model_fields
        free = {key for key, field in fields.items() if (field.json_schema_extra or {}).get("free")}  # type: ignore[union-attr]
        per_stage = {key for key, field in fields.items() if is_per_stage(field)}
        # A method is defined by its stages: two methods with the same first stage learn the same in it.
        common = self.model_dump(mode="json", exclude=free | per_stage | {"dataset", "method"}, exclude_none=True)
        common["layout"] = self.chosen_layout
        stage_keys = per_stage - free - {field.name for field in dataclass_fields(Stage)}
        stages = {
            stage.name: asdict(stage) | {key: self.of(key, stage.name) for key in sorted(stage_keys)}
            for stage in self.stages()
        }
        return {"common": common, "stages": stages}

    def to_toml(self) -> str:
        """The whole configuration as TOML, defaults included; reading it gives the same object."""
        content = self.model_dump(mode="json", exclude_none=True)
        collapsed = {
            key: value["*"] if isinstance(value, dict) and set(value) == {"*"} else value
            for key, value in content.items()
            if value != {}
        }
        return tomli_w.dumps(collapsed)


# Keys whose value is a table of keys.
TABLES: dict[str, type[BaseModel]] = {"lengths": Lengths, "lora": Lora, "base": Encoder}


def is_per_stage(field: Any) -> bool:
    """Whether a key may be a table by stage."""
    return bool((field.json_schema_extra or {}).get("stage"))

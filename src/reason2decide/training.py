"""Run a method's stages in order, from a configuration to a bundle.

RUN/
  run.json              versions, data hashes, what was started when
  config.toml           the configuration, defaults included
  log.jsonl             losses, schedules and validations of every stage
  tokens/               token ids, read by memory map
  STAGE/best/           the best weights of each stage
  bundle/               the result
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, TrainingArguments, set_seed

from reason2decide import __version__
from reason2decide.base import load_base, silence_transformers
from reason2decide.bundle import Manifest, save_bundle
from reason2decide.config import Config
from reason2decide.console import say, warn
from reason2decide.errors import ConfigError, DataError
from reason2decide.features import PromptEncoder, SplitFeatures, Truncation
from reason2decide.files import new_folder, require_absent
from reason2decide.methods import Stage
from reason2decide.records import Dataset, JsonlRecords
from reason2decide.trainer import StageLog, StageTrainer

LOG_ROWS_PER_STAGE = 200  # ours: enough for a curve


def train(config: Config, out: Path, *, force: bool = False) -> Path:
    """Train as configured into the run folder `out`, which appears when it is complete; return its bundle's path.

    While it lasts the run stands beside `out`, in a folder whose name begins with `.` and its name.

    Raises:
        ConfigError, DataError, BaseModelError: the configuration, its data or its base cannot be used.
        DivergedError: a loss became infinite or not a number.
        OutputError: `out` exists and `force` is false, or is not a run folder.
    """
    silence_transformers()
    _require_one_process()
    _use_bfloat16(config.precision)  # refuses what this machine cannot do before anything is read
    require_absent(out, "run.json", force=force)
    dataset = Dataset.open(config.dataset)
    dataset.verify()
    sources = {
        stage.name: config.of("rationale_source", stage.name) for stage in config.stages() if stage.learns_rationales
    }
    records = {name: dataset.split(name) for name in ("train", "validation")}
    for source in set(sources.values()):
        dataset.require_source(source)
        for split in records.values():
            _require_rationales(split, source)
    _require_several_labels(records["train"])

    say(f"base {config.base}; method {config.method}; dataset {dataset.info.name}")
    model, tokenizer = load_base(
        config.base, texts=lambda: _texts(dataset, set(sources.values())), seed=config.seed, dropout=config.dropout
    )
    _require_positions(model, config)
    encoder = PromptEncoder(tokenizer, config.lengths)
    _require_scorable_labels(dataset, encoder)
    with new_folder(out, "run.json", force=force) as run:
        _describe_run(run, config, dataset)
        train_split, validation = (
            SplitFeatures(split, dataset.info.labels, encoder, run / "tokens") for split in records.values()
        )
        _report_cuts("texts", "input", train_split.cut_texts)
        training: dict[str, Any] = {}
        for stage in config.stages():
            source = sources.get(stage.name)
            model, training[stage.name] = _train_stage(
                config, stage, model, train_split.with_source(source), validation.with_source(source), run
            )
        manifest = Manifest(
            method=config.method,
            base=config.base,
            labels=dataset.info.labels,
            lengths=config.lengths,
            rationale_sources=sources,
            dataset={"name": dataset.info.name, "sha256": dict(dataset.hashes)},
            training=training,
            versions=versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        save_bundle(
            run / "bundle", manifest, model, tokenizer, config_toml=config.to_toml(), training_log=run / "log.jsonl"
        )
    say(f"bundle: {out / 'bundle'}")
    return out / "bundle"


def _train_stage(
    config: Config, stage: Stage, model: Any, train_split: SplitFeatures, validation: SplitFeatures, run: Path
) -> tuple[Any, dict[str, Any]]:
    """Train one stage; return the model with its best weights, and what the bundle says of the stage."""
    say(f"{stage.name}: {config.of('steps', stage.name)} steps")
    if stage.learns_rationales:
        _report_rationales(stage, train_split)
    trainer = StageTrainer(
        model=model,
        args=training_arguments(config, stage, run / stage.name),
        stage=stage,
        encoder=train_split.encoder,
        train=train_split,
        validation=validation,
        log=StageLog(run / "log.jsonl", stage.name),
    )
    trainer.train()
    say(f"{stage.name}: best {trainer.selection} {trainer.best_value:.4f} at step {trainer.best_step}")
    best = AutoModelForSeq2SeqLM.from_pretrained(trainer.best_weights, dtype=torch.float32)
    return best, {
        "steps": trainer.state.global_step,
        "selection": trainer.selection,
        "best_step": trainer.best_step,
        "best_value": trainer.best_value,
        "records": len(train_split),
        "records_with_rationale": len(train_split.with_rationale),
        "cut_texts": str(train_split.cut_texts),
        "cut_rationales": str(train_split.cut_rationales),
    }


def training_arguments(config: Config, stage: Stage, folder: Path) -> TrainingArguments:
    """The Trainer's own settings for one stage; checkpoints and logs are ours, hence off here."""
    steps = config.of("steps", stage.name)
    batch_size = config.of("batch_size", stage.name)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=config.of("gradient_accumulation", stage.name),
        learning_rate=config.of("learning_rate", stage.name),
        warmup_steps=int(config.of("learning_rate_warmup", stage.name) * steps),
        lr_scheduler_type="linear",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=_use_bfloat16(config.precision),
        eval_strategy="steps",
        eval_steps=config.evaluate_every_of(stage.name),
        logging_steps=max(1, steps // LOG_ROWS_PER_STAGE),
        save_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def versions() -> dict[str, str]:
    """Versions of what computes, for the record."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    found = {"reason2decide": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _use_bfloat16(precision: str) -> bool:
    has_it = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and not has_it:
        raise ConfigError("precision = 'bfloat16' needs a GPU that has it, and none was found; use 'auto' or 'float32'")
    return has_it if precision == "auto" else precision == "bfloat16"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def _texts(dataset: Dataset, sources: set[str]) -> Iterator[str]:
    """Everything of the training split that a tokenizer should know: texts, labels, rationales."""
    yield from dataset.info.labels.values
    for record in dataset.split("train"):
        yield record.text
        yield record.label or ""
        yield from (text for source, text in record.rationales.items() if source in sources)


def _require_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("training by several processes is not supported yet; start r2d without torchrun")


def _require_several_labels(records: JsonlRecords) -> None:
    labels = set()
    for record in records:
        labels.add(record.label)
        if len(labels) > 1:
            return
    raise ConfigError(f"every record of {records.path} has the label {labels.pop()!r}; a decision needs two")


def _require_rationales(records: JsonlRecords, source: str) -> None:
    if not any(source in record.rationales for record in records):
        raise DataError(
            f"no record of {records.path} has a rationale of source {source!r}; import the data with another --split, "
            "or name another rationale_source"
        )


def _require_scorable_labels(dataset: Dataset, encoder: PromptEncoder) -> None:
    """Refuse labels that are too long or alike before training starts, each record's own choices included."""
    encoder.candidates(dataset.info.labels.values)
    for split in ("train", "validation"):
        for record in dataset.split(split):
            if record.choices is not None:
                encoder.candidates(record.choices)


def _require_positions(model: Any, config: Config) -> None:
    """Refuse lengths over what a base with learnt positions (BART) can read; T5's positions are relative."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for key in ("input", "rationale"):
        if limit is not None and getattr(config.lengths, key) > limit:
            raise ConfigError(
                f"lengths.{key} is {getattr(config.lengths, key)}, but the base {config.base!r} has {limit} positions; "
                f"set lengths.{key} to at most {limit}"
            )


def _report_cuts(what: str, key: str, cuts: Truncation) -> None:
    if cuts.cut:
        warn(f"{cuts} {what} of the training split were cut; raise lengths.{key} to keep them whole")


def _report_rationales(stage: Stage, features: SplitFeatures) -> None:
    _report_cuts("rationales", "rationale", features.cut_rationales)
    missing = len(features) - len(features.with_rationale)
    if missing:
        use = "train the label only" if stage.learns_labels else "teach this stage nothing"
        say(f"{stage.name}: {missing} of {len(features)} records have no rationale of the wanted source; they {use}")


def _describe_run(run: Path, config: Config, dataset: Dataset) -> None:
    started = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "dataset": {"name": dataset.info.name, "sha256": dict(dataset.hashes)},
        "device": _device(),
    }
    (run / "run.json").write_text(json.dumps(started, indent=2), "utf-8")
    (run / "config.toml").write_text(config.to_toml(), "utf-8")
    set_seed(config.seed)

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
import platform
import shutil
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
from reason2decide.errors import ConfigError, DataError, OutputError
from reason2decide.features import PromptEncoder, SplitFeatures
from reason2decide.methods import Stage
from reason2decide.records import Dataset, JsonlRecords
from reason2decide.trainer import StageLog, StageTrainer

LOG_ROWS_PER_STAGE = 200  # ours: enough for a curve


def train(config: Config, out: Path, *, force: bool = False) -> Path:
    """Train as configured into the run folder `out`; return the path of the bundle.

    Raises:
        ConfigError, DataError, BaseModelError: the configuration, its data or its base cannot be used; said before
            anything is written.
        OutputError: `out` exists and `force` is false, or is not a run folder.
    """
    silence_transformers()
    dataset = Dataset.open(config.dataset)
    dataset.verify()
    stages = config.stages()
    sources = {stage.name: config.of("rationale_source", stage.name) for stage in stages if stage.learns_rationales}
    for source in sources.values():
        dataset.require_source(source)
    splits = {name: dataset.split(name) for name in ("train", "validation")}
    for records in splits.values():
        for source in set(sources.values()):
            _require_rationales(records, source)
    _require_several_labels(dataset)
    _check_run_folder(out, force)

    say(f"base {config.base}; method {config.method}; dataset {dataset.info.name}")
    model, tokenizer = load_base(
        config.base, texts=lambda: _texts(dataset, set(sources.values())), seed=config.seed, dropout=config.dropout
    )
    encoder = PromptEncoder(tokenizer, config.lengths)
    encoder.candidates(dataset.info.labels.values)  # refuses labels that are too long or alike before training starts
    _start_run(out, config, dataset)

    training: dict[str, Any] = {}
    for stage in stages:
        say(f"{stage.name}: {config.of('steps', stage.name)} steps")
        source = sources.get(stage.name)
        train_split, validation = (
            SplitFeatures(records, dataset.info.labels, encoder, source, out / "tokens") for records in splits.values()
        )
        _report_features(stage, train_split, source)
        trainer = StageTrainer(
            model=model,
            args=training_arguments(config, stage, out / stage.name),
            stage=stage,
            encoder=encoder,
            train=train_split,
            validation=validation,
            log=StageLog(out / "log.jsonl", stage.name),
        )
        trainer.train()
        model = AutoModelForSeq2SeqLM.from_pretrained(trainer.best_weights, dtype=torch.float32)
        training[stage.name] = {
            "steps": trainer.state.global_step,
            "selection": trainer.selection,
            "best_step": trainer.best_step,
            "best_value": trainer.best_value,
            "records": len(train_split),
            "records_with_rationale": len(train_split.with_rationale),
            "cut_texts": str(train_split.cut_texts),
            "cut_rationales": str(train_split.cut_rationales),
        }
        say(f"{stage.name}: best {trainer.selection} {trainer.best_value:.4f} at step {trainer.best_step}")

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
        out / "bundle", manifest, model, tokenizer, config_toml=config.to_toml(), training_log=out / "log.jsonl"
    )
    say(f"bundle: {out / 'bundle'}")
    return out / "bundle"


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


def _require_several_labels(dataset: Dataset) -> None:
    labels = set()
    for record in dataset.split("train"):
        labels.add(record.label)
        if len(labels) > 1:
            return
    raise ConfigError(f"every training record of {dataset.path} has the label {labels.pop()!r}; a decision needs two")


def _require_rationales(records: JsonlRecords, source: str) -> None:
    if not any(source in record.rationales for record in records):
        raise DataError(
            f"no record of {records.path} has a rationale of source {source!r}; import the data with another --split, "
            "or name another rationale_source"
        )


def _report_features(stage: Stage, features: SplitFeatures, source: str | None) -> None:
    if features.cut_texts.cut:
        warn(f"{stage.name}: {features.cut_texts} texts were cut; raise lengths.input to keep them whole")
    if features.cut_rationales.cut:
        warn(f"{stage.name}: {features.cut_rationales} rationales were cut; raise lengths.rationale to keep them whole")
    missing = len(features) - len(features.with_rationale)
    if source is not None and missing:
        use = "train the label only" if stage.learns_labels else "teach this stage nothing"
        say(f"{stage.name}: {missing} of {len(features)} records have no rationale of source {source!r}; they {use}")


def _check_run_folder(out: Path, force: bool) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not force:
            raise OutputError(f"the run folder {out} exists already; give another with --out, or --force to replace it")
        if not (out / "run.json").is_file():
            raise OutputError(
                f"{out} is not a run folder (no run.json), so --force will not delete it; remove it yourself"
            )


def _start_run(out: Path, config: Config, dataset: Dataset) -> None:
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    started = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "dataset": {"name": dataset.info.name, "sha256": dict(dataset.hashes)},
        "device": _device(),
    }
    (out / "run.json").write_text(json.dumps(started, indent=2), "utf-8")
    (out / "config.toml").write_text(config.to_toml(), "utf-8")
    set_seed(config.seed)

"""Run a method's stages in order, from a configuration to a bundle; go on where a run was broken off.

RUN/
  run.json                   versions, data hashes, what was started when
  config.toml                the configuration, defaults included
  log.jsonl                  every step's losses, schedules and speed, and every validation
  STAGE/best.safetensors     the best weights of each stage
  STAGE/checkpoint-STEP/     where to go on from (checkpoints.py)
  bundle/                    the result
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from reason2decide import __version__
from reason2decide.console import say, set_quiet, warn
from reason2decide.data.records import Dataset, JsonlRecords
from reason2decide.errors import CheckpointError, ConfigError, DataError, OutputError
from reason2decide.files import link_or_copy, locked, new_folder, remove_leftovers
from reason2decide.method.methods import Stage
from reason2decide.model.hub import silence_transformers
from reason2decide.model.manifest import Manifest
from reason2decide.model.prompt_encoder import PromptEncoder, Truncation, tokenizer_hash
from reason2decide.signals import StopSignals
from reason2decide.training.base import load_base
from reason2decide.training.checkpoints import (
    MANIFEST,
    Checkpoint,
    newest_checkpoint,
    read_checkpoint,
    require_same_run,
)
from reason2decide.training.config import Config
from reason2decide.training.features import SplitFeatures, TokenCache
from reason2decide.training.lora import require_targets
from reason2decide.training.processes import Processes
from reason2decide.training.run_log import RunLog, keep_rows
from reason2decide.training.save import save_bundle
from reason2decide.training.trainer import RunContext, StageTrainer, batch_plan
from reason2decide.training.validation import calibrate

AUTO = "auto"  # resume from the newest intact checkpoint, or start where there is none
LOCK = ".lock"
TOKENS = ".tokens"  # the token cache of a dataset folder


def train(
    config: Config, out: Path, *, resume: str | None = None, first_stage_of: Path | None = None, force: bool = False
) -> Path:
    """Train as configured in the run folder `out`; return its bundle's path.

    Args:
        resume: a checkpoint folder of this run to go on from, or `auto`.
        first_stage_of: another run, whose first stage is taken over if it is just what this one's would be.
        force: replace the run that stands in `out`.

    Raises:
        ConfigError, DataError, BaseModelError: the configuration, its data or its base cannot be used.
        CheckpointError: the checkpoint is damaged, or of another configuration or other data.
        DivergedError: a loss or a gradient became infinite or not a number.
        Interrupted: a signal asked to stop; a checkpoint was written.
        OutputError: `out` exists and neither `resume` nor `force` is given, or another training is at work there.
    """
    silence_transformers()
    processes = Processes()
    if not processes.is_main:
        set_quiet(True)
    bfloat16 = _use_bfloat16(config.precision)  # refuses what this machine cannot do before anything is read
    if resume is not None and force:
        raise ConfigError("--resume goes on with a run, --force replaces it; give one of the two")
    if processes.is_main:
        _require_free(out, resuming=resume is not None, force=force)
    if processes.is_main and resume not in (None, AUTO):
        _require_checkpoint_of(out, Path(str(resume)))
    if config.lora and config.fsdp:
        raise ConfigError("lora and fsdp together are not supported; adapters are small: leave fsdp out")
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

    say(f"base {config.base_name}; method {config.method}; dataset {dataset.info.name}")
    model, tokenizer = load_base(config.base, texts=lambda: _texts(dataset), seed=config.seed, dropout=config.dropout)
    _require_positions(model, config)
    encoder = PromptEncoder(tokenizer, config.lengths)
    with contextlib.ExitStack() as stack:
        with processes.local_main_first():
            cache = TokenCache(stack.enter_context(_cache_folder(dataset)), tokenizer)
            train_split, validation = (
                SplitFeatures(split, dataset.hashes[name], dataset.info.labels, encoder, cache)
                for name, split in records.items()
            )
            for source in set(sources.values()):
                train_split.with_source(source), validation.with_source(source)
        _report_cuts("texts", "input", train_split.cut_texts)
        features = {stage.name: train_split.with_source(sources.get(stage.name)) for stage in config.stages()}
        plans = {
            stage.name: batch_plan(config, stage, features[stage.name], processes.count) for stage in config.stages()
        }
        if config.lora:
            require_targets(model, config.lora)
        identity = {
            **config.identity(),
            "data": dict(dataset.hashes),
            "tokenizer": tokenizer_hash(tokenizer),
            "processes": processes.count,
            "precision": "bfloat16" if bfloat16 else "float32",
        }
        if processes.is_main:
            stack.enter_context(_run_folder(out, force=force and resume is None))
        if first_stage_of is not None and processes.is_main:
            _take_over(first_stage_of, config, out, identity)
        processes.wait()
        checkpoint = _checkpoint(config, out, AUTO if first_stage_of is not None else resume, processes)
        if checkpoint is not None:
            require_same_run(checkpoint, identity)
            if resume == AUTO and _is_complete(config, checkpoint, out):
                say(f"{out} is complete; nothing is left to train")
                return out / "bundle"
        if processes.is_main:
            _describe_run(out, config, dataset, checkpoint)
            _forget_after(checkpoint, config, out / "log.jsonl")
        processes.wait()
        context = RunContext(
            config,
            out,
            processes,
            RunLog(out / "log.jsonl", config.report_to if processes.is_main else (), config.identity()),
            stack.enter_context(StopSignals()),
            identity,
            versions(),
            bfloat16,
        )
        training: dict[str, Any] = dict(checkpoint.state.finished) if checkpoint else {}
        for stage in config.stages():
            if stage.name in training:
                continue
            if stage.learns_rationales:
                _report_rationales(stage, features[stage.name])
            trainer = StageTrainer(
                context,
                stage,
                model,
                features[stage.name],
                validation.with_source(sources.get(stage.name)),
                plans[stage.name],
                finished=training,
                checkpoint=checkpoint if checkpoint and checkpoint.state.stage == stage.name else None,
            )
            say(f"{stage.name}: {trainer.steps} steps" + (f", from step {trainer.step}" if trainer.step else ""))
            model = trainer.train()
            training = {**training, stage.name: trainer.summary}
            say(f"{stage.name}: best {trainer.selection} {trainer.best_value:.4f} at step {trainer.best_step}")
        context.log.close()
        manifest = Manifest(
            method=config.method,
            base=config.base_name,
            labels=dataset.info.labels,
            lengths=config.lengths,
            rationale_sources=sources,
            dataset={
                "name": dataset.info.name,
                "sha256": dict(dataset.hashes),
                "records": {name: len(split) for name, split in records.items()},
                "provenance": dict(dataset.info.provenance),
            },
            training=training,
            versions=versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if processes.is_main:
            say("calibrating on validation")
            save_bundle(
                out / "bundle",
                manifest,
                model,
                tokenizer,
                calibrate(model, validation, processes.device),
                config_toml=config.to_toml(),
                training_log=out / "log.jsonl",
            )
    processes.end()
    say(f"bundle: {out / 'bundle'}")
    return out / "bundle"


# ---- the run folder


def _require_free(out: Path, *, resuming: bool, force: bool) -> None:
    """Refuse a path that holds anything but a run, and a run unless it is to be gone on with or replaced."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give the path of a folder for the run")
    if not out.exists() or all(path.name == LOCK for path in out.iterdir()):
        return
    if not (out / "run.json").exists():
        raise OutputError(f"{out} holds files but no run (it has no run.json); give another path")
    if not (resuming or force):
        hint = "is complete" if (out / "bundle").exists() else "was broken off: --resume auto goes on with it"
        raise OutputError(f"the run {out} exists already and {hint}; give another path, or --force to replace it")


def _require_checkpoint_of(run: Path, path: Path) -> None:
    if path.resolve().parent.parent != run.resolve():
        raise CheckpointError(
            f"{path} is not a checkpoint of the run {run}; expected {run / 'STAGE' / 'checkpoint-STEP'}, or auto"
        )
    read_checkpoint(path)


@contextlib.contextmanager
def _run_folder(out: Path, *, force: bool) -> Iterator[None]:
    """Hold the run folder for this training alone; with `force`, emptied."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {out}: {error.strerror}") from None
    with locked(out / LOCK, f"another training is at work in {out}; let it end, or give another path"):
        if force:
            for path in out.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in (out, *(path for path in out.iterdir() if path.is_dir())):
            remove_leftovers(folder)
        yield


def _checkpoint(config: Config, run: Path, resume: str | None, processes: Processes) -> Checkpoint | None:
    """The checkpoint to go on from, chosen by the main process, read by each."""
    if resume is None:
        return None
    found: Path | None = Path(resume)
    if resume == AUTO:
        found = None
        if processes.is_main:
            checkpoint, passed_over = newest_checkpoint(run, [stage.name for stage in config.stages()])
            for problem in passed_over:
                warn(f"passed over: {problem}")
            found = checkpoint.path if checkpoint else None
            say(f"resuming from {found}" if found else f"no checkpoint in {run} to resume from: starting afresh")
        found = processes.gather(found)[0]
    return read_checkpoint(found) if found is not None else None


def _take_over(other: Path, config: Config, run: Path, identity: Mapping[str, Any]) -> None:
    """Link the first stage of another run, which has ended, into this one, unless this one has begun.

    Raises:
        CheckpointError: that stage has not ended, or it is not what this run's would be.
    """
    first = config.stages()[0].name
    if next(run.glob("*/checkpoint-*"), None) is not None:
        return
    checkpoint, _ = newest_checkpoint(other, [first])
    if checkpoint is None or not _has_ended(config, checkpoint) or len(config.stages()) == 1:
        raise CheckpointError(f"{other} has no finished {first} that is followed by another stage in this run")
    require_same_run(checkpoint, identity)
    with new_folder(run / first / checkpoint.path.name, MANIFEST, force=False) as folder:
        for file in checkpoint.path.iterdir():
            link_or_copy(file, folder / file.name)
    shutil.copy(other / "log.jsonl", run / "log.jsonl")


def _has_ended(config: Config, checkpoint: Checkpoint) -> bool:
    """Whether nothing of the checkpoint's stage is left to train."""
    return checkpoint.state.stopped or checkpoint.state.step == config.of("steps", checkpoint.state.stage)


def _is_complete(config: Config, checkpoint: Checkpoint, run: Path) -> bool:
    is_last = checkpoint.state.stage == config.stages()[-1].name
    return is_last and _has_ended(config, checkpoint) and (run / "bundle" / "manifest.json").exists()


def _forget_after(checkpoint: Checkpoint | None, config: Config, log: Path) -> None:
    """Drop from the log what came after the checkpoint."""
    state = checkpoint.state if checkpoint else None

    def keep(row: Mapping[str, Any]) -> bool:
        if state is None or row["stage"] != state.stage:
            return state is not None and row["stage"] in state.finished
        return bool(row["step"] <= (state.step if row["event"] == "train" else state.validated_step))

    keep_rows(log, keep)


@contextlib.contextmanager
def _cache_folder(dataset: Dataset) -> Iterator[Path]:
    """Where token tables are kept: beside the records they were made of, or nowhere for long."""
    folder = dataset.path / TOKENS
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        say(f"cannot write in {dataset.path}: its texts are tokenised for this run only")
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    yield folder


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


def _texts(dataset: Dataset) -> Iterator[str]:
    """Everything of the training split that a tokenizer should know: texts, labels, rationales.

    Those of all sources, so that runs that learn from other ones have the same base.
    """
    yield from dataset.info.labels.values
    for record in dataset.split("train"):
        yield record.text
        yield record.label or ""
        yield from record.rationales.values()


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


def _require_positions(model: Any, config: Config) -> None:
    """Refuse lengths over what a base with learnt positions (BART, BERT) can read; T5's positions are relative."""
    parts = {"input": model.get_encoder().config, "rationale": model.get_decoder().config}
    for key, part in parts.items():
        limit = getattr(part, "max_position_embeddings", None)
        if limit is not None and getattr(config.lengths, key) > limit:
            raise ConfigError(
                f"lengths.{key} is {getattr(config.lengths, key)}, but the base {config.base_name!r} has {limit} "
                f"positions; set lengths.{key} to at most {limit}"
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


def _describe_run(run: Path, config: Config, dataset: Dataset, checkpoint: Checkpoint | None) -> None:
    now, file = datetime.now(UTC).isoformat(timespec="seconds"), run / "run.json"
    description: dict[str, Any] = {
        "started": now,
        "versions": versions(),
        "dataset": {"name": dataset.info.name, "sha256": dict(dataset.hashes)},
        "device": _device(),
    }
    if checkpoint is not None and file.exists():
        description = json.loads(file.read_text("utf-8"))
        going_on = {"at": now, "from": f"{checkpoint.state.stage} step {checkpoint.state.step}", "versions": versions()}
        description["resumed"] = [*description.get("resumed", []), going_on]
    file.write_text(json.dumps(description, indent=2), "utf-8")
    (run / "config.toml").write_text(config.to_toml(), "utf-8")

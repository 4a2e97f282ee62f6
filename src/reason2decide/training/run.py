"""Run a method's stages in order, from a configuration to a bundle; resume an interrupted run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from reason2decide.console import say, set_quiet, warn
from reason2decide.errors import ConfigError
from reason2decide.method.methods import Stage
from reason2decide.model.hub import silence_transformers
from reason2decide.model.manifest import Manifest
from reason2decide.model.threads import limit_threads
from reason2decide.signals import StopSignals
from reason2decide.training.checkpoints import Checkpoint, require_same_run
from reason2decide.training.config import Config
from reason2decide.training.features import SplitFeatures
from reason2decide.training.learnt import complaints
from reason2decide.training.lora import add_adapters, merge_adapters
from reason2decide.training.preparation import Prepared, prepared, report_cuts
from reason2decide.training.processes import Processes
from reason2decide.training.run_folder import (
    AUTO,
    BUNDLE,
    LOG,
    chosen_checkpoint,
    describe_run,
    first_stage,
    forget_after,
    has_begun,
    is_complete,
    remove_passed_over,
    require_checkpoint_of,
    require_free,
    run_folder,
    take_over,
    versions,
)
from reason2decide.training.run_log import RunLog, read_rows
from reason2decide.training.save import save_bundle
from reason2decide.training.trainer import RunContext, StageTrainer
from reason2decide.training.validation import calibrate, fit_reason_reader


def train(
    config: Config,
    out: Path,
    *,
    resume: str | None = None,
    first_stage_of: Path | None = None,
    records_from: Path | None = None,
    force: bool = False,
) -> Path:
    """Train as configured in the run folder `out`; return its bundle's path.

    Args:
        resume: a checkpoint folder of this run to resume from, or `auto`.
        first_stage_of: another run, whose first stage is reused if it is identical to this run's.
        records_from: a dataset folder to copy to the place that the configuration names, once the run has its folder.
        force: replace the run in `out`.

    Raises:
        ConfigError, DataError, BaseModelError: the configuration, its data or its base cannot be used.
        CheckpointError: the checkpoint is damaged, or has another configuration or other data.
        DivergedError: a loss or a gradient became infinite or not a number.
        Interrupted: a signal asked to stop; a checkpoint was written.
        OutputError: `out` exists and neither `resume` nor `force` is given, or another training is running there.
    """
    silence_transformers()
    processes = Processes()
    if not processes.is_main:
        set_quiet(True)
    if resume is not None and force:
        raise ConfigError("--resume continues a run, --force replaces it; give only one of the two")
    if first_stage_of is not None and resume not in (None, AUTO):
        raise ConfigError(
            "--first-stage-of goes on with another run's stage, --resume with this one's; give one of them"
        )
    if processes.is_main:
        require_free(out, resuming=resume is not None, force=force)
        if resume not in (None, AUTO):
            require_checkpoint_of(out, Path(str(resume)))
    with prepared(config, processes, records_from or config.dataset) as given, contextlib.ExitStack() as stack:
        if processes.is_main:
            taken = None
            if first_stage_of is not None and (force or not has_begun(out)):
                taken = first_stage(first_stage_of, config, out, given.identity)
            stack.enter_context(run_folder(out, config.dataset, force=force))
            if taken is not None:
                take_over(taken, out)
        processes.wait()
        checkpoint = chosen_checkpoint(config, out, AUTO if first_stage_of is not None else resume, processes)
        if checkpoint is not None:
            require_same_run(checkpoint, given.identity)
            if resume == AUTO and is_complete(config, checkpoint, out):
                say(f"{out} is complete; nothing is left to train")
                return out / BUNDLE
        if processes.is_main:
            remove_passed_over(out, config, checkpoint)
            if records_from is not None:  # not before a run of other data was refused, which has its own there
                given.dataset.copy_to(config.dataset, force=True)
        processes.wait()
        limit_threads(given.model.num_parameters())
        context = stack.enter_context(_opened(config, out, processes, given, checkpoint))
        model, summaries = _run_stages(context, given, checkpoint)
        processes.end()  # what is left takes one process, and may take longer than the others would wait
        if processes.is_main:
            context.signals.heed("all stages are trained, and the bundle is not written yet")
            _finish(context, given, model, summaries)
    say(f"bundle: {out / BUNDLE}")
    return out / BUNDLE


@contextlib.contextmanager
def _opened(
    config: Config, out: Path, processes: Processes, given: Prepared, checkpoint: Checkpoint | None
) -> Iterator[RunContext]:
    """Describe the run in its folder, trim the log to the checkpoint, open it, and catch stop signals."""
    if processes.is_main:
        describe_run(out, config, given.dataset, checkpoint)
        forget_after(checkpoint, config, out / LOG)
    processes.wait()
    steps = {stage.name: config.of("steps", stage.name) for stage in config.stages()}
    log = RunLog(out / LOG, config.report_to if processes.is_main else (), config.identity(), steps)
    with StopSignals() as signals:
        yield RunContext(config, out, processes, log, signals, given.identity, versions(), given.bfloat16)


def _run_stages(context: RunContext, given: Prepared, checkpoint: Checkpoint | None) -> tuple[Any, dict[str, Any]]:
    """Train the stages that the checkpoint has not finished; return the model and each stage's summary."""
    model, finished = given.model, dict(checkpoint.state.finished) if checkpoint else {}
    lora = context.config.lora
    if lora:
        add_adapters(model, lora, context.config.seed, torch.bfloat16 if given.bfloat16 else torch.float32)
    for stage in context.config.stages():
        if stage.name in finished:
            continue
        train, validation = given.features(stage.name)
        if stage.learns_rationales:
            _report_rationales(stage, train)
        begun = checkpoint if checkpoint and checkpoint.state.stage == stage.name else None
        plan = given.plans[stage.name]
        trainer = StageTrainer(
            context, stage, model, train, validation, plan, finished=dict(finished), checkpoint=begun
        )
        say(f"{stage.name}: {trainer.steps} steps" + (f", from step {trainer.step}" if trainer.step else ""))
        model = trainer.train()
        finished[stage.name] = trainer.summary
        say(f"{stage.name}: best {trainer.selection} {trainer.best_value:.4f} at step {trainer.best_step}")
        for complaint in _not_learnt(context, stage, validation) if context.processes.is_main else ():
            warn(complaint)
    context.log.close()
    if lora:
        merge_adapters(model)
    return model, finished


def _not_learnt(context: RunContext, stage: Stage, validation: SplitFeatures) -> Iterator[str]:
    """What a finished stage has not learnt, and what to try."""
    gold, labels = [str(record.label) for record in validation.records], validation.labels.values
    found = complaints(stage.name, read_rows(context.log.path), gold, len(labels))
    if found:
        config = context.config
        rate, steps = config.of("learning_rate", stage.name), config.of("steps", stage.name)
        yield (
            f"{stage.name} has learnt little: {'; '.join(found)}. Try a higher learning_rate (now {rate:g}), more "
            f"steps (now {steps}), or a pre-trained base; `r2d data check` shows labels and texts"
        )


def _finish(context: RunContext, given: Prepared, model: Any, summaries: Mapping[str, Any]) -> None:
    """Calibrate the finished model on validation and write the bundle."""
    config, dataset = context.config, given.dataset
    say("calibrating on validation")
    source = given.sources.get(config.stages()[-1].name)
    reader = fit_reason_reader(given.train.records, dataset.info.labels, source)
    calibration = calibrate(model, given.validation, source, reader)
    manifest = Manifest(
        method=config.method,
        base=config.base_name,
        labels=dataset.info.labels,
        lengths=config.lengths,
        rationale_sources=given.sources,
        dataset={
            "name": dataset.info.name,
            "sha256": dict(dataset.hashes),
            "records": {split.records.path.stem: len(split) for split in (given.train, given.validation)},
            "provenance": dict(dataset.info.provenance),
        },
        training=summaries,
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=dataset.info.recipe,
        prompt_form=given.train.encoder.form,
    )
    save_bundle(
        context.run / BUNDLE,
        manifest,
        model,
        given.tokenizer,
        calibration,
        reader=reader,
        config_toml=config.to_toml(),
        training_log=context.run / LOG,
    )


def _report_rationales(stage: Stage, features: SplitFeatures) -> None:
    report_cuts("rationales", "rationale", features.cut_rationales)
    missing = len(features) - len(features.with_rationale)
    if missing:
        use = "they train the label only" if stage.learns_labels else "this stage skips them"
        say(f"{stage.name}: {missing} of {len(features)} records have no rationale from the chosen source; {use}")

"""From a bundle, or from any system's predictions, to a folder of results: decide, probe, measure, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reason2decide.console import say, warn
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import Prediction, read_predictions, write_predictions
from reason2decide.data.records import JsonlRecords
from reason2decide.errors import NotComputed, UserError
from reason2decide.evaluation.asking import probe_simulators
from reason2decide.evaluation.baselines import beside
from reason2decide.evaluation.degenerate import warnings_on
from reason2decide.evaluation.measure import Evaluation, Origin, evaluate, require_usable
from reason2decide.evaluation.metrics.rationales import told
from reason2decide.evaluation.probes import (
    PREDICTIONS,
    PROBES,
    Probe,
    probes_about,
    probes_path,
    read_probes,
    write_probes,
)
from reason2decide.evaluation.readers import NamedChoices, RationaleReader, Simulators
from reason2decide.evaluation.results import (
    RESULTS,
    STATISTICS,
    Baseline,
    Results,
    save_statistics,
)
from reason2decide.evaluation.settings import DEFAULT_SETTINGS, Settings
from reason2decide.evaluation.slices import Column, Slicing
from reason2decide.files import new_folder, require_absent
from reason2decide.model.manifest import Manifest
from reason2decide.model.predictor import Predictor
from reason2decide.model.reading import ReadingSettings
from reason2decide.report import render_report, write_report_files
from reason2decide.report.model_card import model_card
from reason2decide.workflows.decisions import Decisions, decide_split, decided_elsewhere


def predictor_of(bundle: Path, settings: Settings) -> Predictor:
    """A bundle loaded with what the settings say of it; raises as `Predictor.load`."""
    reading = ReadingSettings(settings.long_texts, settings.input_tokens)
    return Predictor.load(
        bundle, reading, settings.reasons, error_rate=settings.error_rate, miscoverage=settings.miscoverage
    )


def evaluate_bundle(
    bundle: Path,
    dataset_path: Path,
    out: Path,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    card_answers: Mapping[str, str] = {},
    force: bool = False,
) -> Results:
    """Decide the records of a split with a bundle, and write the results folder `out` (`results.py` lists its files).

    Args:
        settings: without a `rationale_source`, that of the model's last stage is used.
        card_answers: what the model card cannot know by itself (`model_card.read_answers`).

    Raises:
        DataError: the dataset, its split, its labels or the source do not fit.
        BundleError: as `bundle.load_bundle`.
        OutputError: `out` exists and `force` is false.
    """
    require_absent(out, RESULTS, force=force)
    dataset = opened(dataset_path, settings)
    decided = decide_split(predictor_of(bundle, settings), dataset, settings, card_answers)
    return _measure_into(out, decided, dataset, force=force)


def evaluate_predictions(
    predictions: Sequence[Prediction],
    dataset_path: Path,
    out: Path,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    system: str,
    validation: Sequence[Prediction] | None = None,
    probes: Sequence[Probe] | None = None,
    force: bool = False,
) -> Results:
    """Measure any system's predictions and write the results folder `out`.

    Args:
        settings: without a `rationale_source`, the dataset's is used if it has a single one.
        system: its name.
        validation: predictions of the same system on the validation split: they fit temperature, threshold and sets.
        probes: further answers about the predictions.

    Raises:
        DataError: the dataset, its split or the predictions do not fit.
        OutputError: `out` exists and `force` is false.
    """
    require_absent(out, RESULTS, force=force)
    dataset = opened(dataset_path, settings)
    decided = decided_elsewhere(predictions, dataset, settings, system, validation, probes)
    return _measure_into(out, decided, dataset, force=force)


def evaluate_file(
    file: Path,
    dataset_path: Path,
    out: Path,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    system: str | None = None,
    validation_file: Path | None = None,
    force: bool = False,
) -> Results:
    """Measure a `predictions.jsonl` and write the results folder `out`; as `evaluate_predictions`.

    Probes next to the file (`probes_path`) are used, so that a results folder can be measured again. The system has the
    file's name unless another is given.
    """
    require_absent(out, RESULTS, force=force)
    predictions, beside = read_predictions(file), probes_path(file)
    probes = None
    if beside.is_file():
        found = read_probes(beside)
        probes = probes_about(found, predictions)
        if len(probes) < len(found):
            warn(
                f"{len(found) - len(probes)} of {len(found)} lines of {beside} are about other answers than those of "
                f"{file.name} and are not used; judge or evaluate the system again"
            )
    return evaluate_predictions(
        predictions,
        dataset_path,
        out,
        settings,
        system=system or file.stem,
        validation=read_predictions(validation_file) if validation_file is not None else None,
        probes=probes,
        force=force,
    )


def opened(path: Path, settings: Settings) -> DatasetFolder:
    """Open a dataset; check that its files are unchanged, and that it has the rationale source and columns asked for.

    Raises:
        DataError: it is not a dataset, or a check fails.
    """
    dataset = DatasetFolder.open(path)
    dataset.verify()
    if settings.rationale_source is not None:
        dataset.require_source(settings.rationale_source)
    # Before records are decided, which may take hours.
    require_usable(settings, dataset.info.labels)
    if settings.slices:
        records = dataset.split(settings.split)
        for text in settings.slices:
            Slicing.fit(records, Column.parse(text))
    return dataset


def measure(decided: Decisions, dataset: DatasetFolder) -> Evaluation:
    """Every metric of the decisions, with what simulators read from their rationales.

    Raises:
        DataError: the predictions do not fit the split.
    """
    split = decided.settings.split
    records = dataset.split(split)
    predictions = decided.predictions
    probes, unasked = _with_simulators(decided, dataset, records)
    evaluation = evaluate(
        predictions,
        records,
        dataset.info.labels,
        Origin(dataset.info.name, dataset.hashes[split], split, decided.system),
        decided.settings,
        calibration=decided.calibration,
        probes=probes,
    )
    cut = sum((prediction.tokens_read or 0) < (prediction.tokens or 0) for prediction in predictions)
    checked = [p.reason_supports for p in predictions if p.reason_supports is not None]
    baselines: tuple[Baseline, ...] = ()
    if "train" in dataset.hashes:
        say("fitting baselines on the training split")
        baselines = beside(evaluation, dataset.split("train"), decided.settings)
    results = replace(
        evaluation.results,
        notes=(
            *reading_notes(cut, len(records), checked.count(False), len(checked)),
            *decided.notes,
            *evaluation.results.notes,
            *unasked,
        ),
        baselines=baselines,
    )
    return replace(evaluation, results=replace(results, warnings=warnings_on(results, evaluation.examples)))


def reading_notes(cut: int, texts: int, unsupported: int, checked: int) -> tuple[str, ...]:
    """What a reader must know of how the model read its texts, and of its reasons."""
    return told(
        {
            f"{cut} of {texts} texts are longer than the model reads, and their rest was not read": cut,
            f"{unsupported} of {checked} reasons do not support the decision they are given for": unsupported,
        }
    )


def write_results(out: Path, evaluation: Evaluation, decided: Decisions, *, force: bool = False) -> None:
    """Write the results folder `out`, complete or not at all.

    Raises:
        OutputError: `out` exists and `force` is false.
    """
    results = evaluation.results
    with new_folder(out, RESULTS, force=force) as folder:
        if not decided.in_parts:
            write_predictions(folder / PREDICTIONS, decided.predictions)
        if decided.probes is not None:
            write_probes(folder / PROBES, decided.probes)
        (folder / RESULTS).write_text(json.dumps(results.to_json(), indent=2, ensure_ascii=False), "utf-8")
        save_statistics(folder / STATISTICS, evaluation.statistics, evaluation.group_of)
        if decided.manifest is not None:
            (folder / "model_card.md").write_text(model_card(decided.manifest, results, decided.card_answers), "utf-8")
        _report(folder, evaluation, decided)
    say(f"results: {out / RESULTS}, report: {out / 'report.html'}")


def _measure_into(out: Path, decided: Decisions, dataset: DatasetFolder, *, force: bool) -> Results:
    evaluation = measure(decided, dataset)
    write_results(out, evaluation, decided, force=force)
    return evaluation.results


def _report(folder: Path, evaluation: Evaluation, decided: Decisions) -> None:
    results = evaluation.results
    html = render_report(
        evaluation,
        training_log=decided.training_log,
        # A sample may lack the values of a column.
        columns=[] if decided.in_parts else [Column.parse(text) for text in decided.settings.slices],
        title=f"{decided.manifest.method if decided.manifest else decided.system} on {results.dataset}",
        description=_description(decided.manifest) if decided.manifest else {"System": decided.system},
    )
    (folder / "report.html").write_text(html, "utf-8")
    write_report_files(folder, evaluation, training_log=decided.training_log)


def _with_simulators(
    decided: Decisions, dataset: DatasetFolder, records: JsonlRecords
) -> tuple[Sequence[Probe] | None, tuple[str, ...]]:
    """The probes with the simulators' answers, and why simulators could not be asked."""
    if all(prediction.rationale is None for prediction in decided.predictions):
        return decided.probes, ()
    by_id = {prediction.id: prediction for prediction in decided.predictions}
    predictions = [by_id[record.id] for record in records if record.id in by_id]
    probe_of = {probe.id: probe for probe in decided.probes or ()}
    answered = [record for record in records if record.id in by_id]
    probes = [probe_of.get(record.id) or Probe(record.id) for record in answered]
    try:
        simulators = fit_simulators(dataset, decided.settings.rationale_source)
        return probe_simulators(simulators, answered, predictions, probes), ()
    except NotComputed as reason:
        return decided.probes, (f"simulators: not asked: {reason}",)


def fit_simulators(dataset: DatasetFolder, source: str | None) -> RationaleReader:
    """Simulators that have learnt from the rationales of a dataset's training split.

    Where each record has its own choices there is nothing to learn: the choice that a rationale names is read.

    Raises:
        NotComputed: there is none, or nothing in it to learn from; or a package is not installed.
    """
    if dataset.info.labels.is_open:
        return NamedChoices()
    if source is None:
        raise NotComputed("no rationale source is named for them to learn from")
    if "train" not in dataset.hashes:
        raise NotComputed("the dataset has no training split")
    say(f"training simulators on the {source} rationales of the training split")
    try:
        return Simulators.fit(dataset.split("train"), dataset.info.labels, source)
    except UserError as reason:
        raise NotComputed(str(reason)) from None


def _description(manifest: Manifest) -> dict[str, str]:
    sources = manifest.rationale_sources
    return {
        "Method": manifest.method,
        "Base": manifest.base,
        "Trained on": str(manifest.dataset["name"]),
        "Rationale sources": ", ".join(f"{stage}: {source}" for stage, source in sources.items()) or "none",
        "Created": manifest.created,
    }

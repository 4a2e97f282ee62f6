"""A system's decisions on a split, and what is known of the system: a bundle's, or decisions made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reason2decide.console import say, track, warn
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import Prediction
from reason2decide.data.recipe import InputRecipe, listed, made_of
from reason2decide.data.verdicts import Verdicts
from reason2decide.errors import DataError, NotComputed, UserError
from reason2decide.evaluation.asking import probe_model
from reason2decide.evaluation.examples import align
from reason2decide.evaluation.metrics.rationales import told
from reason2decide.evaluation.probes import Probe
from reason2decide.evaluation.settings import Settings
from reason2decide.model.bundle import read_training_log
from reason2decide.model.calibration import Calibration, label_distribution, log_probabilities
from reason2decide.model.manifest import Manifest
from reason2decide.model.predictor import Predictor


@dataclass(frozen=True)
class Decisions:
    """A system's decisions on one split, and what is known of the system.

    Where they are `in_parts`, which is where they stay, there are no predictions here.
    """

    system: str
    predictions: Sequence[Prediction]
    settings: Settings
    calibration: Calibration | None = None
    probes: Sequence[Probe] | None = None
    training_log: Sequence[Mapping[str, Any]] = ()
    manifest: Manifest | None = None
    card_answers: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    in_parts: bool = False


def decide_split(
    predictor: Predictor, dataset: DatasetFolder, settings: Settings, card_answers: Mapping[str, str] = {}
) -> Decisions:
    """Decide a split with a model, and probe it about its rationales.

    How it decides and explains are what it was loaded with, whatever the settings say of that.

    Raises:
        DataError: the dataset's labels are not the model's.
    """
    records, manifest = dataset.split(settings.split), predictor.bundle.manifest
    require_same_labels(manifest, dataset)
    settings = replace(with_source_of(settings, manifest, dataset), **predictor.settings)
    predictions = list(track(predictor.predict(records), f"deciding {settings.split}", len(records)))
    if predictor.cut_texts.cut:
        warn(f"{predictor.cut_texts} texts are longer than the model reads ({predictor.longest_prompt} tokens)")
    made, known = dataset.info.recipe, manifest.recipe
    notes = told(
        {
            f"{predictor.writer.cut} texts had less room beside the label to explain than for the decision": (
                predictor.writer.cut.cut
            ),
            f"texts are made of {_parts_of(made)} here, of {_parts_of(known)} in training": (
                made_of(made) != made_of(known)
            ),
        }
    )
    for note in notes:
        warn(note)
    probes = None
    if settings.probed and predictor.explains:
        say(f"probing the model about its rationales, for at most {settings.probed} records")
        verdicts = fit_verdicts(dataset, settings.rationale_source)
        probes = probe_model(
            predictor,
            records,
            predictions,
            seed=settings.seed,
            limit=settings.probed,
            insertions=settings.insertions,
            verdicts=verdicts,
        )
    return Decisions(
        system_of(manifest),
        predictions,
        settings,
        predictor.bundle.calibration,
        probes,
        read_training_log(predictor.bundle.path),
        manifest,
        card_answers,
        notes,
    )


def decided_elsewhere(
    predictions: Sequence[Prediction],
    dataset: DatasetFolder,
    settings: Settings,
    system: str,
    validation: Sequence[Prediction] | None = None,
    probes: Sequence[Probe] | None = None,
) -> Decisions:
    """Any system's predictions, calibrated if there are some on validation; as `evaluate_predictions`."""
    settings = with_single_source(settings, dataset)
    calibration = None
    if validation is not None:
        calibration = fit_calibration(validation, dataset)
        predictions = [_calibrated(prediction, calibration.temperature) for prediction in predictions]
    return Decisions(system, predictions, settings, calibration, probes)


def fit_calibration(predictions: Sequence[Prediction], dataset: DatasetFolder) -> Calibration:
    """Calibrate a system's probabilities by its predictions on the validation split.

    Raises:
        DataError: they do not fit the validation split, or have no probabilities.
    """
    examples = align(predictions, dataset.split("validation"), dataset.info.labels, None, "validation")
    pairs = zip(examples.records, examples.predictions, strict=True)
    given = [
        (record.label, prediction.predicted_label, prediction.probabilities)
        for record, prediction in pairs
        if prediction.probabilities is not None
    ]
    if not given:
        raise DataError("the predictions on validation have no probabilities, so they cannot calibrate anything")
    return Calibration.fit(
        [log_probabilities(p) for *_, p in given],
        [list(p).index(gold or "") for gold, _, p in given],
        [list(p).index(predicted) if predicted in p else None for _, predicted, p in given],
    )


def _calibrated(prediction: Prediction, temperature: float) -> Prediction:
    """With the probabilities that another temperature gives; what was deferred by those before is not known now."""
    if prediction.probabilities is None:
        return prediction
    p = label_distribution(log_probabilities(prediction.probabilities), temperature)
    probabilities = dict(zip(prediction.probabilities, p.tolist(), strict=True))
    return replace(prediction, probabilities=probabilities, deferred=None)


def fit_verdicts(dataset: DatasetFolder, source: str | None) -> Verdicts | None:
    """What states the decision in a dataset's rationales, if its training split can teach it."""
    if source is None or "train" not in dataset.hashes:
        return None
    try:
        return Verdicts.fit(dataset.split("train"), dataset.info.labels, source)
    except (NotComputed, UserError):  # the simulators, which need it too, say why
        return None


def _parts_of(recipe: InputRecipe | None) -> str:
    """What texts are made of, in a few words."""
    if recipe is None or not recipe.joins:
        return "whole notes" if recipe is None or recipe.source == "table" else f"{recipe.source} items"
    return listed(recipe.text)


def system_of(manifest: Manifest) -> str:
    """The name of a model in results."""
    return f"{manifest.method} ({manifest.base})"


def with_source_of(settings: Settings, manifest: Manifest, dataset: DatasetFolder) -> Settings:
    """The settings, with the source that the model was last trained on if none is named and the dataset has it."""
    if settings.rationale_source is None and manifest.rationale_source in dataset.info.rationale_sources:
        return replace(settings, rationale_source=manifest.rationale_source)
    return settings


def with_single_source(settings: Settings, dataset: DatasetFolder) -> Settings:
    """The settings, with the dataset's source if none is named and it has a single one."""
    sources = dataset.info.rationale_sources
    if settings.rationale_source is None and len(sources) == 1:
        return replace(settings, rationale_source=sources[0])
    return settings


def require_same_labels(manifest: Manifest, dataset: DatasetFolder) -> None:
    """Raise `DataError` if a model decides between other labels than those of a dataset."""
    if manifest.labels.values != dataset.info.labels.values:
        raise DataError(
            f"the model decides between {list(manifest.labels.values)}, the dataset {dataset.path} between "
            f"{list(dataset.info.labels.values)}; evaluate on a dataset with the same labels in the same order"
        )

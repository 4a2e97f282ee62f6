"""Measure a folder of parts, of any number of rows, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from reason2decide.batch.decided import DecidedFolder
from reason2decide.console import ProgressBar
from reason2decide.data.id_buckets import IdBuckets
from reason2decide.data.predictions import NO_ANSWER, Prediction, Undecided, prediction_of
from reason2decide.data.records import DatasetFolder, JsonlRecords
from reason2decide.errors import ConfigError, DataError, NotComputed
from reason2decide.evaluation.asking import probe_simulators
from reason2decide.evaluation.degenerate import warnings_on
from reason2decide.evaluation.examples import Mismatch, align
from reason2decide.evaluation.measure import Evaluation, Origin, metrics_of, results_of
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.metrics.rationales import has_rationale, told
from reason2decide.evaluation.pooling import UNITS, TallyPool
from reason2decide.evaluation.probes import Probe
from reason2decide.evaluation.readers import Simulators
from reason2decide.evaluation.results import RESULTS, Results
from reason2decide.evaluation.settings import DEFAULT_SETTINGS, Settings
from reason2decide.evaluation.slices import Column, Slicing
from reason2decide.files import require_absent
from reason2decide.model.bundle import read_calibration, read_training_log
from reason2decide.model.manifest import Manifest, described_bundle
from reason2decide.workflows.evaluate import (
    Decisions,
    fit_simulators,
    opened,
    reading_notes,
    require_same_labels,
    system_of,
    with_single_source,
    with_source_of,
    write_results,
)

AT_ONCE = 10_000  # ours: examples in memory, with their texts about 100 MB


def evaluate_parts(
    parts: str,
    dataset_path: Path,
    out: Path,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    bundle: Path | None = None,
    system: str | None = None,
    card_answers: Mapping[str, str] = {},
    force: bool = False,
) -> Results:
    """Measure the decisions of a folder of parts against the records of a split, and write the results folder `out`.

    Records and decisions are brought together by their ids, in files beside the temporary ones of the system. Rows that
    failed count as records without an answer. The report shows the cases of a random sample.

    Args:
        parts: the folder, a path or a URL.
        bundle: the model that decided, for its calibration and its card; None: without either.
        system: its name; None: that of the bundle, else of the folder.

    Raises:
        DataError: the parts are not complete, or do not fit the dataset, its split or the bundle.
        ConfigError: a setting needs all records at once.
        OutputError: `out` exists and `force` is false.
    """
    require_absent(out, RESULTS, force=force)
    if settings.bertscore_idf:
        raise ConfigError("--bertscore-idf weighs words by all records at once; leave it out with --parts")
    folder = DecidedFolder.open(parts)
    dataset = opened(dataset_path, replace(settings, slices=()))
    records = dataset.split(settings.split)
    manifest = None if bundle is None else _deciding(bundle, folder, parts)
    if manifest is not None:
        require_same_labels(manifest, dataset)
        settings = with_source_of(settings, manifest, dataset)
    else:
        settings = with_single_source(settings, dataset)
    decisions = Decisions(
        system or (system_of(manifest) if manifest is not None else Path(parts).name),
        (),
        settings,
        None if bundle is None or manifest is None else read_calibration(bundle, manifest),
        training_log=() if bundle is None else read_training_log(bundle),
        manifest=manifest,
        card_answers=card_answers,
        in_parts=True,
    )
    evaluation = _measured(folder, decisions, dataset, records)
    write_results(out, evaluation, decisions, force=force)
    return evaluation.results


def _deciding(bundle: Path, folder: DecidedFolder, parts: str) -> Manifest:
    """The manifest of a bundle.

    Raises:
        DataError: it is not the one that decided.
    """
    manifest = described_bundle(bundle)
    if manifest.sha256 != folder.job.model:
        raise DataError(f"{parts} was decided by another model than {bundle}; give the bundle or export that decided")
    return manifest


class _Readers:
    """Simulators, which learn from the training split as soon as there is a rationale to read."""

    def __init__(self, dataset: DatasetFolder, source: str | None) -> None:
        self._dataset, self._source = dataset, source
        self._simulators: Simulators | None = None
        self.notes: tuple[str, ...] = ()

    def probes(self, examples: Examples) -> Sequence[Probe] | None:
        """What they read from the rationales of examples; None if they are not asked."""
        if self._source is None or self.notes or not any(map(has_rationale, examples.predictions)):
            return None
        try:
            self._simulators = self._simulators or fit_simulators(self._dataset, self._source)
            blank = [Probe(record.id) for record in examples.records]
            return probe_simulators(self._simulators, examples.records, examples.predictions, blank)
        except NotComputed as reason:
            self.notes = (f"simulators: not asked: {reason}",)
            return None


@dataclass
class _Seen:
    """What is counted beside the metrics."""

    failed: int = 0
    cut: int = 0
    checked: int = 0
    unsupported: int = 0

    def count(self, prediction: Prediction) -> None:
        self.cut += (prediction.tokens_read or 0) < (prediction.tokens or 0)
        self.checked += prediction.reason_supports is not None
        self.unsupported += prediction.reason_supports is False


def _measured(folder: DecidedFolder, decisions: Decisions, dataset: DatasetFolder, records: JsonlRecords) -> Evaluation:
    settings, labels, calibration = decisions.settings, dataset.info.labels, decisions.calibration
    slicings = [Slicing.fit(records, Column.parse(text)) for text in settings.slices]
    pool = TallyPool(metrics_of(settings, labels, calibration), slicings, calibration)
    readers = _Readers(dataset, settings.rationale_source)
    sample, seen = None, _Seen()
    with ExitStack() as stack:
        count = max(1, -(-max(len(records), folder.job.rows) // AT_ONCE))
        gold, decided = (stack.enter_context(IdBuckets(count)) for _ in range(2))
        with ProgressBar("matching", len(records) + folder.job.rows, "rows") as bar:
            for row, record in enumerate(records):
                gold.add(record.id, str(row))
                bar.advance(1)
            for outcome in folder:
                prediction = _counted(outcome, seen)
                decided.add(prediction.id, json.dumps(prediction.to_json()))
                bar.advance(1)
        mismatch = Mismatch()
        for bucket in range(count):
            mismatch.add(
                [records[int(row)].id for row in gold.read(bucket)],
                [json.loads(line)["id"] for line in decided.read(bucket)],
            )
        mismatch.refuse(settings.split)
        with ProgressBar("measuring", len(records), "rows") as bar:
            for bucket in range(count):
                of_gold = [records[int(row)] for row in gold.read(bucket)]
                if not of_gold:
                    continue
                predictions = [prediction_of(json.loads(line)) for line in decided.read(bucket)]
                examples = align(predictions, of_gold, labels, settings.rationale_source, settings.split)
                examples = replace(examples, probes=readers.probes(examples))
                pool.add(examples)
                sample = sample or examples
                bar.advance(len(examples))
    assert sample is not None, "a split has records"
    origin = Origin(dataset.info.name, dataset.hashes[settings.split], settings.split, decisions.system)
    tally = pool.tally()
    results = results_of(tally, pool.metrics, labels, origin, settings, calibration=calibration)
    notes = (
        *told({f"{seen.failed} of {len(records)} rows failed, and count as records without an answer": seen.failed}),
        *reading_notes(seen.cut, len(records), seen.unsupported, seen.checked),
        f"intervals: {UNITS} random groups of records are resampled, not single ones",
        *results.notes,
        *readers.notes,
        "baselines: not fitted beside parts",
    )
    results = replace(results, notes=notes)
    return Evaluation(
        replace(results, warnings=warnings_on(results, sample)), sample, tally.count, tally.statistics, None
    )


def _counted(outcome: Prediction | Undecided, seen: _Seen) -> Prediction:
    """A row as a prediction; one that failed has no answer."""
    if isinstance(outcome, Undecided):
        seen.failed += 1
        return Prediction(outcome.id, NO_ANSWER)
    seen.count(outcome)
    return outcome

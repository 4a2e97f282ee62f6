"""Measure a folder of parts, of any number of rows, in bounded memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reason2decide.batch.decided import DecidedFolder
from reason2decide.batch.workers import available_memory, workers_for
from reason2decide.console import ProgressBar
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.id_buckets import IdBuckets
from reason2decide.data.predictions import NO_ANSWER, Prediction, Undecided, prediction_of
from reason2decide.data.records import JsonlRecords
from reason2decide.errors import ConfigError, DataError, NotComputed
from reason2decide.evaluation.asking import probe_simulators
from reason2decide.evaluation.degenerate import warnings_on
from reason2decide.evaluation.examples import Mismatch, align
from reason2decide.evaluation.measure import Evaluation, Origin, metrics_of, results_of
from reason2decide.evaluation.metrics import Examples, Metric
from reason2decide.evaluation.metrics.rationales import has_rationale, told
from reason2decide.evaluation.pooling import UNITS, SumPool
from reason2decide.evaluation.probes import Probe
from reason2decide.evaluation.readers import RationaleReader
from reason2decide.evaluation.results import RESULTS, Results
from reason2decide.evaluation.settings import DEFAULT_SETTINGS, Settings
from reason2decide.evaluation.slices import Column, ColumnValues, Slicing
from reason2decide.files import require_absent
from reason2decide.model.bundle import read_calibration, read_training_log
from reason2decide.model.calibration import Calibration
from reason2decide.model.manifest import Manifest, described_bundle
from reason2decide.parallel import cores, ordered
from reason2decide.workflows.decisions import (
    Decisions,
    require_same_labels,
    system_of,
    with_single_source,
    with_source_of,
)
from reason2decide.workflows.evaluate import fit_simulators, opened, reading_notes, write_results

AT_ONCE = 10_000  # ours: examples in memory, with their texts about 100 MB
PROCESS = 100_000_000  # ours: bytes that a process holds besides its libraries, as `batch.workers` counts them


def evaluate_parts(
    parts: str,
    dataset_path: Path,
    out: Path,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    bundle: Path | None = None,
    system: str | None = None,
    card_answers: Mapping[str, str] = {},
    workers: int = 1,
    force: bool = False,
) -> Results:
    """Measure the decisions of a folder of parts against the records of a split, and write the results folder `out`.

    Records and decisions are brought together by their ids, in files beside the temporary ones of the system. Rows that
    failed count as records without an answer. The report shows the cases of a random sample.

    Args:
        parts: the folder, a path or a URL.
        bundle: the model that decided, for its calibration and its card; None: without either.
        system: its name; None: that of the bundle, else of the folder.
        workers: processes that measure, with the same results; 0: one per core, as far as the memory goes.

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
    evaluation = _measured(folder, decisions, dataset, records, workers)
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


class _Reading:
    """What is counted of the decisions beside the metrics."""

    def __init__(self) -> None:
        self.failed = self.cut = self.checked = self.unsupported = 0

    def prediction(self, outcome: Prediction | Undecided) -> Prediction:
        """A row as a prediction; one that failed has no answer."""
        if isinstance(outcome, Undecided):
            self.failed += 1
            return Prediction(outcome.id, NO_ANSWER)
        self.cut += (outcome.tokens_read or 0) < (outcome.tokens or 0)
        self.checked += outcome.reason_supports is not None
        self.unsupported += outcome.reason_supports is False
        return outcome

    def notes(self, records: int) -> tuple[str, ...]:
        """What a reader must know of them."""
        failed = {f"{self.failed} of {records} rows failed, and count as records without an answer": self.failed}
        return *told(failed), *reading_notes(self.cut, records, self.unsupported, self.checked)


@dataclass(frozen=True)
class _Matched:
    """The records of a split and their decisions, in buckets in which those of one id are together."""

    records: JsonlRecords
    gold: IdBuckets
    decided: IdBuckets

    @classmethod
    def of(
        cls,
        records: JsonlRecords,
        folder: DecidedFolder,
        columns: Sequence[ColumnValues],
        reading: _Reading,
        temporary: Path,
    ) -> _Matched:
        """Read both through, once."""
        rows = len(records) + folder.job.rows
        count = max(1, -(-max(len(records), folder.job.rows) // AT_ONCE))
        gold, decided = (IdBuckets(temporary / name, count) for name in ("gold", "decided"))
        with ProgressBar("matching", rows, "rows") as bar:
            for row, record in enumerate(records):
                gold.add(record.id, json.dumps((row, record.id)))
                for column in columns:
                    column.add(record)
                bar.advance(1)
            for outcome in folder:
                prediction = reading.prediction(outcome)
                decided.add(prediction.id, json.dumps(prediction.to_json()))
                bar.advance(1)
        gold.flush()
        decided.flush()
        return cls(records, gold, decided)

    def require_same_ids(self, split: str) -> None:
        """Raise `DataError` unless each record has one decision."""
        mismatch = Mismatch()
        for bucket in range(self.gold.count):
            mismatch.add(
                [json.loads(line)[1] for line in self.gold.read(bucket)],
                [json.loads(line)["id"] for line in self.decided.read(bucket)],
            )
        mismatch.refuse(split)


@dataclass
class _Measure:
    """Measures a bucket.

    Args:
        unasked: why simulators read no rationales; None: they do, as soon as there is a rationale.
    """

    matched: _Matched
    dataset: DatasetFolder
    settings: Settings
    metrics: Sequence[Metric]
    slicings: Sequence[Slicing]
    calibration: Calibration | None
    simulators: RationaleReader | None = None
    unasked: str | None = None

    def __call__(self, bucket: int) -> SumPool:
        """The sums over its examples."""
        pool = SumPool(self.metrics, self.slicings, self.calibration)
        examples = self.examples(bucket)
        if examples is not None:
            pool.add(examples)
        return pool

    def examples(self, bucket: int) -> Examples | None:
        """The examples of a bucket, None if it has none."""
        records = [self.matched.records[json.loads(line)[0]] for line in self.matched.gold.read(bucket)]
        if not records:
            return None
        predictions = [prediction_of(json.loads(line)) for line in self.matched.decided.read(bucket)]
        source = self.settings.rationale_source
        examples = align(predictions, records, self.dataset.info.labels, source, self.settings.split)
        return replace(examples, probes=self._probes(examples, source))

    def _probes(self, examples: Examples, source: str | None) -> Sequence[Probe] | None:
        """What simulators read from the rationales; None if they are not asked."""
        if self.unasked is not None or not any(map(has_rationale, examples.predictions)):
            return None
        try:
            self.simulators = self.simulators or fit_simulators(self.dataset, source)
            blank = [Probe(record.id) for record in examples.records]
            return probe_simulators(self.simulators, examples.records, examples.predictions, blank)
        except NotComputed as reason:
            self.unasked = str(reason)
            return None


def _measured(
    folder: DecidedFolder, decisions: Decisions, dataset: DatasetFolder, records: JsonlRecords, workers: int
) -> Evaluation:
    settings, labels, calibration = decisions.settings, dataset.info.labels, decisions.calibration
    columns, reading = [ColumnValues(Column.parse(text)) for text in settings.slices], _Reading()
    with tempfile.TemporaryDirectory(prefix="reason2decide-") as temporary:
        matched = _Matched.of(records, folder, columns, reading, Path(temporary))
        matched.require_same_ids(settings.split)
        slicings = [column.slicing() for column in columns]
        measure = _Measure(matched, dataset, settings, metrics_of(settings, labels, calibration), slicings, calibration)
        # The first examples settle what metrics choose by them, and are shown as cases.
        buckets = iter(range(matched.gold.count))
        sample = next(examples for bucket in buckets if (examples := measure.examples(bucket)) is not None)
        pool = SumPool(measure.metrics, slicings, calibration)
        with ProgressBar("measuring", len(records), "rows") as bar:
            pool.add(sample)
            bar.advance(pool.count)
            processes = workers or workers_for(PROCESS, cores(), available_memory())
            for own in ordered(replace(measure, metrics=pool.metrics), buckets, processes):
                pool.merge(own)
                bar.advance(own.count)
    origin = Origin(dataset.info.name, dataset.hashes[settings.split], settings.split, decisions.system)
    sums = pool.sums()
    results = results_of(sums, pool.metrics, labels, origin, settings, calibration=calibration)
    notes = (
        *reading.notes(len(records)),
        f"intervals: {UNITS} random groups of records are resampled, not single ones",
        *results.notes,
        *([] if measure.unasked is None else [f"simulators: not asked: {measure.unasked}"]),
        "baselines: not fitted beside parts",
    )
    results = replace(results, notes=notes)
    return Evaluation(
        replace(results, warnings=warnings_on(results, sample)), sample, sums.count, sums.statistics, None
    )

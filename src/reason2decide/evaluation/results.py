"""Results of an evaluation as data: `results.json`, and the statistics that comparisons are computed from.

RESULTS/
  predictions.jsonl   the system's decisions
  probes.jsonl        further answers about them, if any were asked
  results.json        every metric with its interval, slices, curves, the signature
  statistics.npz      each metric's sufficient statistics: comparing two systems needs no texts
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reason2decide.errors import DataError
from reason2decide.evaluation.metrics.base import Integers, SufficientStatistics
from reason2decide.syntax import Malformed, parse_json
from reason2decide.version import __version__

RESULTS_FORMAT = 3
RESULTS, STATISTICS = "results.json", "statistics.npz"


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric's value on n examples with the ends of its 95 % interval.

    All three are None if it was not computed; the ends alone if no interval is known that holds
    (`Metric.has_interval`).
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Slice:
    """The metrics on the records of one value, or band of values, of a column.

    `absent_labels` are gold in none of them and are left out of macro-F1.
    """

    value: str
    n: int
    metrics: Mapping[str, MetricValue]
    absent_labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The evaluated system minus another on the same records, with the ends of its 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Baseline:
    """The metrics of a baseline, and the system's differences from it; without any, `reason` says why."""

    name: str
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    differences: Mapping[str, PairedDifference] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class CalibrationResults:
    """How probabilities were calibrated and what changed; `before` has the metrics of the raw ones, by name.

    `threshold` is the deferral threshold for the target `error_rate`, None if none reaches it on validation; `cutoff`
    is that of prediction sets for the chosen `miscoverage`. All come from validation.
    """

    temperature: float
    before: Mapping[str, float]
    error_rate: float
    threshold: float | None
    miscoverage: float
    cutoff: float


@dataclass(frozen=True)
class Results:
    """The results of an evaluation. `confusion_matrix` has gold labels as rows, predicted ones as columns.

    `unanswered` counts the records without a valid answer, by gold label. For open label sets these and `per_label`
    are empty. `reliability` and `risk_coverage` are the points of these curves, and `slices` are by column. `gaps` have
    for each column and metric the slices with the lowest and highest value, and the difference. `notes` say what was
    not computed, or counted specially, and why. `baselines` stand beside the system; `warnings` are what a reader must
    know before any figure.
    """

    system: str
    metrics: Mapping[str, MetricValue]
    per_label: Mapping[str, Mapping[str, float | int]]
    confusion_labels: tuple[str, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    unanswered: tuple[int, ...]
    signature: str
    dataset: str
    dataset_sha256: str
    split: str
    calibration: CalibrationResults | None = None
    reliability: tuple[Mapping[str, float], ...] = ()
    risk_coverage: tuple[Mapping[str, float], ...] = ()
    slices: Mapping[str, tuple[Slice, ...]] = field(default_factory=dict)
    gaps: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return {
            "results_format": RESULTS_FORMAT,
            "system": self.system,
            "metrics": {name: asdict(value) for name, value in self.metrics.items()},
            "per_label": {label: dict(scores) for label, scores in self.per_label.items()},
            "confusion": {
                "labels": list(self.confusion_labels),
                "matrix": [list(row) for row in self.confusion_matrix],
                "unanswered": list(self.unanswered),
            },
            "calibration": asdict(self.calibration) if self.calibration else None,
            "curves": {
                "reliability": [dict(point) for point in self.reliability],
                "risk_coverage": [dict(point) for point in self.risk_coverage],
            },
            "slices": {column: [asdict(part) for part in slices] for column, slices in self.slices.items()},
            "gaps": {column: {name: dict(gap) for name, gap in gaps.items()} for column, gaps in self.gaps.items()},
            "signature": self.signature,
            "dataset": {"name": self.dataset, "sha256": self.dataset_sha256},
            "split": self.split,
            "notes": list(self.notes),
            "baselines": [asdict(baseline) for baseline in self.baselines],
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Results:
        """Read the results that `to_json` returned.

        Raises:
            DataError: they have another format, or a key is missing or invalid.
        """
        found = value.get("results_format", 1)
        if found != RESULTS_FORMAT:
            raise DataError(
                f"these results have format {found}, this program reads {RESULTS_FORMAT}; evaluate again "
                f"with this version ({__version__})"
            )
        try:
            return cls(
                system=value["system"],
                metrics=_values(value["metrics"]),
                per_label={label: dict(scores) for label, scores in value["per_label"].items()},
                confusion_labels=tuple(value["confusion"]["labels"]),
                confusion_matrix=tuple(tuple(row) for row in value["confusion"]["matrix"]),
                unanswered=tuple(value["confusion"]["unanswered"]),
                signature=value["signature"],
                dataset=value["dataset"]["name"],
                dataset_sha256=value["dataset"]["sha256"],
                split=value["split"],
                calibration=CalibrationResults(**value["calibration"]) if value["calibration"] else None,
                reliability=tuple(value["curves"]["reliability"]),
                risk_coverage=tuple(value["curves"]["risk_coverage"]),
                slices={
                    column: tuple(
                        Slice(part["value"], part["n"], _values(part["metrics"]), tuple(part["absent_labels"]))
                        for part in slices
                    )
                    for column, slices in value["slices"].items()
                },
                gaps=value["gaps"],
                notes=tuple(value["notes"]),
                baselines=tuple(_baseline(entry) for entry in value.get("baselines", ())),
                warnings=tuple(value.get("warnings", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"a key of these results is missing or invalid ({error}); evaluate again with this version "
                f"({__version__})"
            ) from None


def _values(value: Mapping[str, Any]) -> dict[str, MetricValue]:
    return {name: MetricValue(**entry) for name, entry in value.items()}


def _baseline(value: Mapping[str, Any]) -> Baseline:
    gaps = {name: PairedDifference(**entry) for name, entry in value["differences"].items()}
    return Baseline(value["name"], _values(value["metrics"]), gaps, value["reason"])


def read_results(folder: Path) -> Results:
    """Read the results of a folder that `r2d evaluate` wrote.

    Raises:
        DataError: there are none, or they are of another version; the message names the file.
    """
    file = folder / RESULTS
    if not file.is_file():
        raise DataError(f"{folder} has no {RESULTS}; give a folder that `r2d evaluate` wrote")
    try:
        value = parse_json(file.read_bytes())
        if not isinstance(value, dict):
            raise DataError("these results are not a JSON object; evaluate again")
        return Results.from_json(value)
    except Malformed as error:
        raise DataError(f"{file} is {error}; evaluate again") from None
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def save_statistics(path: Path, statistics: Mapping[str, SufficientStatistics], group_of: Integers | None) -> None:
    """Write every metric's statistics and, if given, the groups of the records; numbers only."""
    arrays: dict[str, np.ndarray] = {} if group_of is None else {"group_of": group_of}
    for name, counts in statistics.items():
        arrays |= {f"{name}/rows": counts.rows, f"{name}/row_of": counts.row_of, f"{name}/positions": counts.positions}
        if counts.examples is not None:
            arrays[f"{name}/examples"] = np.array(counts.examples)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def load_statistics(path: Path) -> tuple[dict[str, SufficientStatistics], Integers | None]:
    """Read what `save_statistics` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [key.removesuffix("/rows") for key in arrays if key.endswith("/rows")]
            found = {
                name: SufficientStatistics(
                    arrays[f"{name}/rows"],
                    arrays[f"{name}/row_of"],
                    arrays[f"{name}/positions"],
                    examples=int(arrays[f"{name}/examples"]) if f"{name}/examples" in arrays else None,
                )
                for name in names
            }
            return found, arrays.get("group_of")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); evaluate again") from None

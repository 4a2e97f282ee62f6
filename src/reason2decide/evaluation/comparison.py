"""Compare systems on the same records: paired differences, tests, and the spread over seeds next to sampling error.

A system is one or more results folders, one per seed. Sampling error (which records happen to be in the test split)
and spread over seeds (which run happened to be trained) are different uncertainties and are never added up: intervals
and p values are of the mean over the given seeds, and the standard deviation over seeds is reported separately.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from reason2decide.errors import ConfigError, DataError
from reason2decide.evaluation.metrics import METRICS, Metric
from reason2decide.evaluation.metrics.base import Floats, Integers, SufficientStatistics
from reason2decide.evaluation.results import STATISTICS, Results, load_statistics, read_results
from reason2decide.evaluation.settings import RESAMPLES
from reason2decide.evaluation.statistics import (
    Aggregate,
    bootstrap_all,
    bootstrap_p,
    difference,
    holm,
    mcnemar_p,
    paired,
    percentile_interval,
    randomization_p,
)

FREE_PARTS = ("seed", "resamples", "ci")  # of a signature: they change intervals, not values
# Ours: one question each about decisions, safety and reasons. The first of a pair that is computed is taken.
PRIMARY = (("macro_f1", "accuracy"), ("under_triage",), ("simulated_consistency_no_verdict", "consistency_no_verdict"))
LEVEL = 0.05  # the usual level of significance
COMPARED = tuple(metric for metric in METRICS if metric.has_interval)


@dataclass(frozen=True)
class System:
    """A named system and its evaluations, which differ only in the seed."""

    name: str
    results: tuple[Results, ...]
    statistics: tuple[Mapping[str, SufficientStatistics], ...]
    group_of: Integers | None


@dataclass(frozen=True, slots=True)
class SystemValue:
    """A metric of a system: the mean over its seeds with the 95 % sampling interval, and the spread over seeds.

    `spread` is the standard deviation over seeds (n - 1), None for a single seed; `n` is the number of records counted.
    """

    mean: float
    low: float
    high: float
    spread: float | None
    seeds: tuple[float, ...]
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A system minus the reference on a metric, over the n records counted for both.

    `p_holm` is `p_randomization` adjusted for the family of all systems on the primary metrics; None for the other
    metrics, which are exploratory. `p_mcnemar` is only for accuracy between single seeds over records without groups.
    """

    system: str
    metric: str
    difference: float
    low: float
    high: float
    n: int
    p_bootstrap: float
    p_randomization: float
    p_holm: float | None
    p_mcnemar: float | None


@dataclass(frozen=True)
class Comparison:
    """Values by system and metric, and the differences from the reference; `primary` names the metrics tested."""

    reference: str
    dataset: str
    split: str
    primary: tuple[str, ...]
    values: Mapping[str, Mapping[str, SystemValue]]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of `comparison.json`."""
        return {
            "reference": self.reference,
            "dataset": self.dataset,
            "split": self.split,
            "primary": list(self.primary),
            "systems": {
                name: {metric: asdict(value) for metric, value in values.items()}
                for name, values in self.values.items()
            },
            "differences": [asdict(change) for change in self.differences],
            "warnings": list(self.warnings),
        }


def load_system(name: str, folders: Sequence[Path]) -> System:
    """Read the results folders of one system.

    Raises:
        DataError: a folder has no results of this version.
    """
    results = tuple(read_results(folder) for folder in folders)
    loaded = [load_statistics(folder / STATISTICS) for folder in folders]
    return System(
        name,
        results,
        tuple(statistics for statistics, _ in loaded),
        loaded[0][1],
    )


def compare(
    systems: Sequence[System],
    reference: str,
    *,
    primary: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare every system with the one named `reference`.

    Only differences on the primary metrics are tested at a stated level: their p values are adjusted for the number of
    tests (Holm). The other metrics are exploratory; some of them will differ by chance.

    Args:
        primary: names of metrics, chosen before the results are seen; default: `PRIMARY`, where computed.

    Raises:
        ConfigError: a primary metric is unknown.
        DataError: fewer than two systems, repeated names, a reference that is not one of them, or results from
            different datasets or splits.
    """
    names = [system.name for system in systems]
    if len(systems) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"expected at least two systems with different names to compare, got {', '.join(names) or 'none'}"
        )
    if reference not in names:
        raise DataError(f"the reference {reference!r} is not one of the systems; choose one of {', '.join(names)}")
    warnings = [*require_comparable(systems), *unanswered_shares(systems)]
    first = systems[names.index(reference)]
    values = {system.name: _values(system, resamples, seed) for system in systems}
    found = [
        change for system in systems if system is not first for change in differences(system, first, resamples, seed)
    ]
    chosen = _primary(primary, {change.metric for change in found}, warnings)
    family = [change for change in found if change.metric in chosen]
    if family and resamples + 1 < len(family) / LEVEL:
        warnings.append(
            f"{resamples} resamples are too few for {len(family)} tests: no adjusted p value can be below {LEVEL}; "
            f"use --resamples {math.ceil(len(family) / LEVEL)} or more, or fewer primary metrics"
        )
    adjusted = iter(holm([change.p_randomization for change in family]))
    return Comparison(
        reference,
        first.results[0].dataset,
        first.results[0].split,
        chosen,
        values,
        tuple(replace(change, p_holm=next(adjusted) if change.metric in chosen else None) for change in found),
        tuple(warnings),
    )


def unanswered_shares(systems: Sequence[System]) -> list[str]:
    """For each system that left records without an answer, a sentence with their share; they count as wrong."""
    found = []
    for system in systems:
        missing = sum(sum(results.unanswered) for results in system.results)
        if missing:
            total = missing + sum(sum(map(sum, results.confusion_matrix)) for results in system.results)
            share = f"{missing} of {total} records ({missing / total:.1%})"
            found.append(f"{system.name} gave no answer for {share}; they count as wrong in every metric of decisions")
    return found


def require_metrics(names: Sequence[str]) -> None:
    """Refuse names that no metric has.

    Raises:
        ConfigError: one of them is unknown.
    """
    known = [metric.name for metric in METRICS]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{name!r} is not a metric; {hint}metrics are {', '.join(known)}")


def _primary(wanted: Sequence[str], compared: Collection[str], warnings: list[str]) -> tuple[str, ...]:
    """The primary metrics that were compared; a warning names those asked for that were not."""
    if not wanted:
        either = (next((name for name in names if name in compared), None) for names in PRIMARY)
        return tuple(name for name in either if name is not None)
    require_metrics(wanted)
    missing = [name for name in wanted if name not in compared]
    if missing:
        warnings.append(f"primary metrics that were not compared, since systems lack them: {', '.join(missing)}")
    return tuple(name for name in dict.fromkeys(wanted) if name in compared)


def require_comparable(systems: Sequence[System]) -> list[str]:
    """Refuse results on different records; return warnings about other differences between their signatures.

    Raises:
        DataError: different datasets or splits, or examples that were resampled one by one and in random groups.
    """
    everything = [(system.name, results) for system in systems for results in system.results]
    name, first = everything[0]
    warnings: dict[str, None] = {}
    for other_name, other in everything[1:]:
        sources = [f"{results.dataset} ({results.dataset_sha256[:12]})" for results in (first, other)]
        for what, one, two in (("dataset", *sources), ("split", first.split, other.split)):
            if one != two:
                raise DataError(
                    f"{name} and {other_name} cannot be compared: their {what}s differ, {one} and {two}; evaluate both "
                    "on the same records"
                )
        for key, (one, two) in signature_differences(first.signature, other.signature).items():
            if key == "unit":
                raise DataError(
                    f"{name} and {other_name} cannot be compared: what is resampled differs, {one} and {two}; evaluate "
                    "both with --parts, or neither"
                )
            warnings[f"signatures differ in {key}: {one} for {name}, {two} for {other_name}"] = None
    return list(warnings)


def signature_differences(one: str, other: str) -> dict[str, tuple[str, str]]:
    """The differing parts of two signatures that affect values, as key -> both values."""
    first, second = (dict(part.split(":", 1) for part in text.split("|") if ":" in part) for text in (one, other))
    keys = [key for key in {**first, **second} if key not in FREE_PARTS]
    # A part that only one signature has belongs to a metric that only it has, which is not compared.
    return {
        key: (first[key], second[key]) for key in keys if {key} <= {*first} & {*second} and first[key] != second[key]
    }


def _values(system: System, resamples: int, seed: int) -> dict[str, SystemValue]:
    values = {}
    for metric in COMPARED:
        joint = _joint([by_metric.get(metric.name) for by_metric in system.statistics])
        if joint is None:
            continue
        mean = _mean_of(metric, len(system.statistics), joint.total())
        draws = bootstrap_all([(joint, mean)], group_of=system.group_of, resamples=resamples, seed=seed)[0]
        seeds = _each(metric, len(system.statistics), joint.total())
        spread = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None
        low, high = percentile_interval(draws)
        values[metric.name] = SystemValue(
            float(np.mean(seeds)), low, high, spread, tuple(float(value) for value in seeds), joint.counted
        )
    return values


def differences(system: System, reference: System, resamples: int, seed: int) -> list[Difference]:
    """A system minus another, on every metric that both have."""
    found = []
    seeds = len(system.statistics), len(reference.statistics)
    for metric in COMPARED:
        tested, baseline = (
            _joint([by_metric.get(metric.name) for by_metric in compared.statistics])
            for compared in (system, reference)
        )
        both = paired(tested, baseline) if tested is not None and baseline is not None else None
        if tested is None or both is None or not len(both):
            continue
        width, total = tested.rows.shape[1], both.total()
        gap = difference(_mean_of(metric, seeds[0]), _mean_of(metric, seeds[1]), width)
        resampled_gap = difference(
            _mean_of(metric, seeds[0], total[:width]), _mean_of(metric, seeds[1], total[width:]), width
        )
        draws = bootstrap_all([(both, resampled_gap)], group_of=system.group_of, resamples=resamples, seed=seed)[0]
        observed = float(gap(total))
        low, high = percentile_interval(draws)
        # Outputs are swapped one for one: with different numbers of seeds, the smaller number is used.
        common = min(seeds)
        shared = width // seeds[0] * common
        columns = [*range(shared), *range(width, width + shared)]
        swapped = SufficientStatistics(both.rows[:, columns], both.row_of, both.positions)
        p = randomization_p(swapped, _mean_of(metric, common), group_of=system.group_of, resamples=resamples, seed=seed)
        # McNemar's test takes records for independent: with groups it finds differences that are not there.
        independent = seeds == (1, 1) and system.group_of is None and both.examples is None
        found.append(
            Difference(
                system.name,
                metric.name,
                observed,
                low,
                high,
                both.counted,
                bootstrap_p(draws, observed),
                p,
                None,
                _mcnemar(both) if metric.name == "accuracy" and independent else None,
            )
        )
    return found


def _joint(statistics: Sequence[SufficientStatistics | None]) -> SufficientStatistics | None:
    """The statistics of all seeds side by side, over the examples counted for each; None if there is none of them."""
    present = [counts for counts in statistics if counts is not None]
    joint = reduce(paired, present) if len(present) == len(statistics) else None
    return joint if joint is not None and len(joint) else None


def _each(metric: Metric, seeds: int, sums: Floats) -> Floats:
    """The metric of each seed, (seeds, ...), from their sums side by side."""
    return np.stack([metric.aggregate(part) for part in np.split(sums, seeds, axis=-1)])


def _mean_of(metric: Metric, seeds: int, total: Floats | None = None) -> Aggregate:
    """The mean over seeds, as a function of their sums side by side; with `total`, of sums of resamples."""
    if total is None:
        return lambda sums: _each(metric, seeds, sums).mean(0)
    of_seed = [metric.resampled(part) for part in np.split(total, seeds)]

    def mean(sums: Floats) -> Floats:
        parts = np.split(sums, seeds, axis=-1)
        means: Floats = np.stack([value(part) for value, part in zip(of_seed, parts, strict=True)]).mean(0)
        return means

    return mean


def _mcnemar(both: SufficientStatistics) -> float:
    """McNemar's p value from paired statistics of accuracy, whose columns are (right, 1, right, 1)."""
    counts = np.bincount(both.row_of, minlength=len(both.rows))
    one, other = both.rows[:, 0], both.rows[:, 2]
    return mcnemar_p(int(counts[(one == 1) & (other == 0)].sum()), int(counts[(one == 0) & (other == 1)].sum()))

"""Evaluations and comparisons in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reason2decide.api.datasets import Dataset, folder_of
from reason2decide.api.html import table
from reason2decide.api.models import Model
from reason2decide.data.predictions import Prediction
from reason2decide.errors import DataError, require
from reason2decide.evaluation.comparison import Comparison, System
from reason2decide.evaluation.comparison import compare as compare_systems
from reason2decide.evaluation.measure import Evaluation
from reason2decide.evaluation.results import RESULTS, MetricValue, Results
from reason2decide.evaluation.settings import RESAMPLES, parse_settings, require_not_loaded, require_unasked
from reason2decide.files import require_absent
from reason2decide.workflows.compare import write_comparison
from reason2decide.workflows.decisions import Decisions, decide_split, decided_elsewhere
from reason2decide.workflows.evaluate import measure, opened, predictor_of, write_results


class EvaluationResults:
    """Every metric of a system on a split with its 95 % interval.

    A metric is an attribute (`results.macro_f1.value`, `.low`, `.high`, `.n`); `results` has all else that
    `results.json` has: confusion matrix, slices, curves, notes, the signature.
    """

    def __init__(self, evaluation: Evaluation, decisions: Decisions) -> None:
        self._evaluation, self._decisions = evaluation, decisions

    @property
    def results(self) -> Results:
        """All results, as data."""
        return self._evaluation.results

    @property
    def predictions(self) -> Sequence[Prediction]:
        """The decisions that were measured."""
        return self._decisions.predictions

    @property
    def system(self) -> System:
        """The system, as comparisons take it."""
        evaluation, results = self._evaluation, self.results
        return System(results.system, (results,), (evaluation.statistics,), evaluation.group_of)

    def renamed(self, name: str) -> EvaluationResults:
        """The same results under another name, for comparisons."""
        results = replace(self.results, system=name)
        return EvaluationResults(replace(self._evaluation, results=results), replace(self._decisions, system=name))

    def save(self, out: str | Path, *, force: bool = False) -> Path:
        """Write the results folder that `r2d evaluate` writes, with its report; return its path.

        Raises:
            OutputError: `out` exists and `force` is false.
            MissingExtraError: matplotlib is not installed.
        """
        require("matplotlib", "report")
        write_results(Path(out), self._evaluation, self._decisions, force=force)
        return Path(out)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row per metric that was computed: value, low, high, n."""
        frame = require("pandas", "pandas").DataFrame(self._rows(), columns=["metric", "value", "low", "high", "n"])
        return frame.set_index("metric")

    def predictions_to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row per prediction: id, predicted_label, probabilities, rationale."""
        return require("pandas", "pandas").DataFrame([prediction.to_json() for prediction in self.predictions])

    def __getattr__(self, name: str) -> MetricValue:
        if name.startswith("_"):  # also while a copy is made, before it has attributes
            raise AttributeError(name)
        try:
            return self.results.metrics[name]
        except KeyError:
            raise AttributeError(
                f"there is no metric {name!r}; metrics are {', '.join(self.results.metrics)}"
            ) from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.results.metrics})

    def __repr__(self) -> str:
        lines = [f"{name:<32} {value}  ({interval}, n = {n})" for name, value, interval, n in self._shown()]
        return "\n".join([f"{self.results.system} on {self.results.dataset}, {self.results.split}", *lines])

    def _repr_html_(self) -> str:
        rows = self._shown()
        caption = f"{self.results.system} on {self.results.dataset}, {self.results.split}"
        return table(("metric", "value", "95 % interval", "n"), rows, caption)

    def _shown(self) -> list[tuple[str, str, str, int]]:
        return [
            (name, f"{value:.4f}", "no interval" if low is None else f"{low:.4f} to {high:.4f}", n)
            for name, value, low, high, n in self._rows()
        ]

    def _rows(self) -> list[tuple[str, float, float | None, float | None, int]]:
        return [
            (name, metric.value, metric.low, metric.high, metric.n)
            for name, metric in self.results.metrics.items()
            if metric.value is not None
        ]


class ComparisonResults:
    """Systems on the same records, and the differences of each from a reference; `comparison` has them as data."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def save(self, out: str | Path, title: str = "Comparison") -> Path:
        """Write the folder that `r2d compare` writes, with its report; return its path.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        require("matplotlib", "report")
        write_comparison(self.comparison, Path(out), title)
        return Path(out)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row per difference: system, metric, difference, low, high and the p values."""
        rows = self.comparison.to_json()["differences"]
        return require("pandas", "pandas").DataFrame(rows)

    def __repr__(self) -> str:
        return "\n".join(
            f"{name} - {self.comparison.reference}  {metric:<32} {rest}" for name, metric, *rest in self._rows()
        )

    def _repr_html_(self) -> str:
        header = ("system", "metric", f"difference from {self.comparison.reference}", "95 % interval", "p (Holm)")
        return table(header, self._rows(), f"{self.comparison.dataset}, {self.comparison.split}")

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        return [
            (
                found.system,
                found.metric,
                f"{found.difference:+.4f}",
                f"{found.low:+.4f} to {found.high:+.4f}",
                "exploratory" if found.p_holm is None else f"{found.p_holm:.4f}",
            )
            for found in self.comparison.differences
        ]


def evaluate(
    model: Model | str | Path | Sequence[Prediction],
    dataset: Dataset | str | Path,
    *,
    split: str = "test",
    system: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    **settings: Any,
) -> EvaluationResults:
    """Decide a split and measure the decisions and their reasons.

    Args:
        model: a `Model` or its folder; or any system's predictions on the split.
        dataset: a `Dataset` or its folder.
        split: the split to decide on.
        system: name of the system in the results; None takes the model's method and base, or "predictions".
        out: a folder to write results and report to, as `r2d evaluate` does; None writes nothing.
        force: replace an existing `out`.
        settings: any other field of `reason2decide.evaluation.settings.Settings`, such as `rationale_source`,
            `slices`, `resamples` or `probed`. What `load` takes (`guidance`, `long_texts`, ...) is for a folder; a
            `Model` has it already.

    Raises:
        ConfigError: a setting is unknown or impossible, asks the model where only its predictions are given, or is one
            that a `Model` was loaded with.
        DataError: dataset, split, labels or predictions do not fit.
        OutputError: `out` exists and `force` is false.

    Example:
        >>> import reason2decide as r2d
        >>> results = r2d.evaluate("run/bundle", "data", resamples=50, probed=2)
        >>> results.accuracy.low <= results.accuracy.value <= results.accuracy.high
        True
        >>> results.accuracy.n
        12
    """
    chosen = parse_settings({"split": split, **settings}, "evaluate(...)")
    if isinstance(model, Model):
        require_not_loaded(settings)
    elif not isinstance(model, str | Path):
        require_unasked({name: name for name in settings})
    if out is not None:  # before anything is decided, which may take hours
        require_absent(Path(out), RESULTS, force=force)
        require("matplotlib", "report")
    folder = opened(folder_of(dataset).path, chosen)
    if isinstance(model, Model | str | Path):
        predictor = model.predictor if isinstance(model, Model) else predictor_of(Path(model), chosen)
        decided = decide_split(predictor, folder, chosen)
        decided = replace(decided, system=system) if system is not None else decided
    else:
        decided = decided_elsewhere(model, folder, chosen, system or "predictions")
    results = EvaluationResults(measure(decided, folder), decided)
    if out is not None:
        results.save(out, force=force)
    return results


def compare(
    systems: Sequence[EvaluationResults],
    *,
    reference: str | None = None,
    primary: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ComparisonResults:
    """Paired differences of systems on the same records, with intervals and tests.

    Args:
        systems: results of `evaluate` on the same split. If two have the same name, rename one with `renamed`.
        reference: the name of the system to compare with; None takes the first.
        primary: names of the metrics to test; the others are exploratory. Default: macro-F1, under-triage where labels
            are ordinal, and the consistency of the reasons.

    Raises:
        ConfigError: a primary metric is unknown.
        DataError: fewer than two systems, names that repeat, or results of different records.

    Example:
        >>> import reason2decide as r2d
        >>> results = r2d.evaluate("run/bundle", "data", system="ours", resamples=50, probed=0)
        >>> always = [r2d.Prediction(record.id, "home care") for record in r2d.Dataset("data")["test"]]
        >>> other = r2d.evaluate(always, "data", system="always home care", resamples=50)
        >>> r2d.compare([other, results], resamples=50).comparison.reference
        'always home care'
    """
    if not systems:
        raise DataError("expected at least two results to compare, got none")
    given = [results.system for results in systems]
    return ComparisonResults(
        compare_systems(given, reference or given[0].name, primary=primary, resamples=resamples, seed=seed)
    )

"""The dashboard's numbers as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reason2decide.console import visible
from reason2decide.evaluation.results import MetricValue
from reason2decide.review.dashboard import Share, dashboard
from reason2decide.review.opening import labels_of, reviewed_model
from reason2decide.review.store import Store

WHO = {"alone": "reviewers alone", "with_model": "reviewers with the model", "model_alone": "the model alone"}


def summary_lines(store: Store) -> Iterator[str]:
    """What `r2d feedback summary` prints.

    Raises:
        ConfigError: no server has opened the store yet.
    """
    reviewed = reviewed_model(store)
    found = store.rows("SELECT model_hash FROM predictions GROUP BY model_hash ORDER BY min(id)")
    others = [row["model_hash"] for row in found if row["model_hash"] != reviewed]
    numbers = dashboard(store, labels_of(store), [*filter(None, (reviewed,)), *others] or [""])
    yield "cases: " + (", ".join(f"{count} {state}" for state, count in sorted(numbers.states.items())) or "none")
    yield f"answers: {numbers.answers}; settled cases: {numbers.settled}"
    yield f"agreement of all reviewers (alpha): {_interval(numbers.alpha)}"
    for own in numbers.pairs:
        yield f"  {own.what} (kappa): {_interval(own.value)}"
    for own in numbers.by_label:
        yield f"  {own.what} against the others (alpha): {_interval(own.value)}"
    yield from _shares("decided otherwise, by the model's decision", numbers.overrides)
    for (model, label, reason), count in numbers.reasons:
        yield f"  {model} -> {label}, {count} times: {visible(reason)}"
    yield from _shares("the model right, by its confidence", numbers.calibration)
    yield from _shares("right in blind mode", [Share(WHO[s.label], s.count, s.n) for s in numbers.blind])
    yield from _shares("models on settled cases", numbers.models)
    if numbers.estimate.n:
        yield from _shares("random sample", [Share("the model right", numbers.estimate.count, numbers.estimate.n)])


def _interval(value: MetricValue) -> str:
    if value.value is None:
        return "not defined yet: it takes two reviews of a case, and different decisions"
    ends = "" if value.low is None or value.high is None else f" ({value.low:.2f} to {value.high:.2f})"
    return f"{value.value:.2f}{ends}, {value.n} cases"


def _shares(title: str, shares: Sequence[Share]) -> Iterator[str]:
    if shares:
        yield f"{title}:"
    for own in shares:
        low, high = own.interval
        share = f", {own.value:.0%} ({low:.0%} to {high:.0%})" if own.n else ""
        yield f"  {own.label}: {own.count} of {own.n}{share}"

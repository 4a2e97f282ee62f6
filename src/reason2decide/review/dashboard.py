"""The numbers of the dashboard: agreement, overrides, calibration, people with and without the model, drift."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from reason2decide.data.records import LabelSet
from reason2decide.evaluation.agreement import alpha_interval, kappa_interval
from reason2decide.evaluation.results import MetricValue
from reason2decide.evaluation.statistics import wilson_interval
from reason2decide.review.answers import SETTLED, final_label
from reason2decide.review.queueing import random_sample
from reason2decide.review.store import Row, Store

BINS = 5  # ours: of confidence
RESAMPLES = 500  # ours: a page is not a paper
MOST_REASONS = 10  # ours
MOST_WEEKS = 26  # ours


@dataclass(frozen=True)
class Share:
    """A count out of a count, with the 95 % interval of its share (Wilson 1927)."""

    label: str
    count: int
    n: int

    @property
    def value(self) -> float:
        """The share; 0 of nothing."""
        return self.count / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end."""
        return wilson_interval(self.value, self.n) if self.n else (0.0, 1.0)


@dataclass(frozen=True)
class Agreed:
    """An agreement of reviewers: of whom or about what, the value and its interval."""

    what: str
    value: MetricValue


@dataclass(frozen=True)
class Numbers:
    """Everything that the dashboard and `r2d feedback summary` show."""

    alpha: MetricValue
    pairs: Sequence[Agreed]
    by_label: Sequence[Agreed]
    overrides: Sequence[Share]
    reasons: Sequence[tuple[tuple[str, str, str], int]]  # (the model's label, the reviewer's, why), how often
    calibration: Sequence[Share]
    blind: Sequence[Share]
    estimate: Share
    weeks: Sequence[str]
    drift: Mapping[str, Sequence[float]]
    models: Sequence[Share]
    answers: int = 0
    settled: int = 0
    states: Mapping[str, int] = field(default_factory=dict)


def dashboard(store: Store, labels: LabelSet, hashes: Sequence[str]) -> Numbers:
    """The numbers of a store.

    Args:
        hashes: of the models to compare; the first one's decisions are reviewed.
    """
    rows = store.rows(
        "SELECT a.id, a.case_id, a.reviewer, a.kind, a.action, a.label, a.reason, a.blind, a.first_label, "
        "r.pseudonym, p.label AS model_label, p.model_hash FROM answers a JOIN reviewers r ON r.id = a.reviewer "
        "LEFT JOIN predictions p ON p.id = a.prediction WHERE a.undone IS NULL ORDER BY a.id"
    )
    by_case: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_case[row["case_id"]].append(row)
    states = {row["state"]: row["n"] for row in store.rows("SELECT state, count(*) AS n FROM cases GROUP BY state")}
    settled_ids = {row["id"] for row in store.rows(f"SELECT id FROM cases WHERE state IN {SETTLED}")}
    final = {case: label for case in settled_ids if (label := final_label(by_case[case])) is not None}
    reviews = [row for row in rows if row["kind"] == "review" and row["action"] != "skip"]
    alpha, pairs, by_label = _agreement(reviews, labels)
    weeks, drift = _drift(store, labels, hashes[0])
    return Numbers(
        alpha=alpha,
        pairs=pairs,
        by_label=by_label,
        overrides=_shares(labels.values, ((row["model_label"], row["action"] == "override") for row in reviews)),
        reasons=Counter(
            (row["model_label"] or "", row["label"] or "", row["reason"]) for row in reviews if row["reason"]
        ).most_common(MOST_REASONS),
        calibration=_calibration(store, final, hashes[0]),
        blind=_blind(reviews, by_case, settled_ids),
        estimate=_estimate(store, final, hashes[0]),
        weeks=weeks,
        drift=drift,
        models=[_right(store, final, own) for own in hashes],
        answers=len(rows),
        settled=len(final),
        states=states,
    )


def _agreement(reviews: Sequence[Row], labels: LabelSet) -> tuple[MetricValue, list[Agreed], list[Agreed]]:
    """Alpha of all reviewers, kappa of each pair, and alpha of each label against the others."""
    given: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for row in reviews:
        if row["label"] in labels.values:
            given[row["case_id"]][row["pseudonym"]] = labels.values.index(row["label"])
    people = sorted({name for own in given.values() for name in own})
    shared = [own for own in given.values() if len(own) > 1]
    ratings = np.array([[own.get(name, np.nan) for own in shared] for name in people], float).reshape(
        len(people), len(shared)
    )
    level: Any = "ordinal" if labels.ordinal else "nominal"
    pairs = []
    for one, other in combinations(people, 2):
        both = [(own[one], own[other]) for own in shared if one in own and other in own]
        if both:
            a, b = zip(*both, strict=True)
            weights: Any = "quadratic" if labels.ordinal else "none"
            pairs.append(Agreed(f"{one}, {other}", kappa_interval(a, b, weights, resamples=RESAMPLES)))
    against_rest = [
        Agreed(label, alpha_interval(np.where(np.isnan(ratings), np.nan, ratings == i), "nominal", resamples=RESAMPLES))
        for i, label in enumerate(labels.values)
    ]
    return alpha_interval(ratings, level, resamples=RESAMPLES), pairs, against_rest if shared else []


def _shares(names: Iterable[str], events: Iterable[tuple[str | None, bool]]) -> list[Share]:
    """Of each name, the share of its events that are true; names without events are left out."""
    counts, yes = Counter[str](), Counter[str]()
    for name, happened in events:
        if name is not None:
            counts[name] += 1
            yes[name] += happened
    return [Share(name, yes[name], counts[name]) for name in names if counts[name]]


def _predicted(store: Store, model_hash: str) -> dict[int, tuple[str, float]]:
    """What a model decided on the cases that have answers, and its confidence."""
    rows = store.rows(
        "SELECT p.case_id, p.label, p.probabilities FROM predictions p WHERE p.model_hash = ? AND p.case_id IN "
        "(SELECT case_id FROM answers WHERE undone IS NULL)",
        (model_hash,),
    )
    return {row["case_id"]: (row["label"], json.loads(row["probabilities"])[row["label"]]) for row in rows}


def _calibration(store: Store, final: Mapping[int, str], model_hash: str) -> list[Share]:
    """By confidence, the share of settled cases that the model had right."""
    events = []
    for case, (label, confidence) in _predicted(store, model_hash).items():
        if case in final:
            bin_ = min(int(confidence * BINS), BINS - 1)
            events.append((f"{100 * bin_ // BINS}–{100 * (bin_ + 1) // BINS} %", label == final[case]))
    names = [f"{100 * i // BINS}–{100 * (i + 1) // BINS} %" for i in range(BINS)]
    return _shares(names, events)


def _blind(reviews: Sequence[Row], by_case: Mapping[int, Sequence[Row]], settled: Collection[int]) -> list[Share]:
    """Of settled cases reviewed in blind mode: right alone, right with the model, and the model.

    Right is what the others have decided on the case: nobody is measured by a label of their own.
    """
    events = []
    for row in reviews:
        if row["blind"] and row["first_label"] is not None and row["case_id"] in settled:
            label = final_label([own for own in by_case[row["case_id"]] if own["reviewer"] != row["reviewer"]])
            if label is None or row["label"] is None:  # "I cannot decide" is neither right nor wrong
                continue
            events += [
                ("alone", row["first_label"] == label),
                ("with_model", row["label"] == label),
                ("model_alone", row["model_label"] == label),
            ]
    return _shares(("alone", "with_model", "model_alone"), events)


def _estimate(store: Store, final: Mapping[int, str], model_hash: str) -> Share:
    """Of the random sample, the share of cases whose final label is the model's."""
    sample = random_sample(store)
    predicted = _predicted(store, model_hash) if sample else {}
    right = [predicted[case][0] == final[case] for case in sample if case in final and case in predicted]
    return Share("random", sum(right), len(right))


def _right(store: Store, final: Mapping[int, str], model_hash: str) -> Share:
    """Of settled cases, the share that a model has right."""
    found = _predicted(store, model_hash)
    named = store.row("SELECT model FROM predictions WHERE model_hash = ?", (model_hash,))
    right = [found[case][0] == label for case, label in final.items() if case in found]
    return Share(f"{named['model'] if named else ''} ({model_hash[:8]})".strip(), sum(right), len(right))


def _drift(store: Store, labels: LabelSet, model_hash: str) -> tuple[list[str], dict[str, list[float]]]:
    """The model's share of each label, by the week in which it decided."""
    rows = store.rows(
        "SELECT strftime('%Y-%W', at) AS week, label, count(*) AS n FROM predictions WHERE model_hash = ? "
        "GROUP BY week, label ORDER BY week",
        (model_hash,),
    )
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row["week"]][row["label"]] += row["n"]
    weeks = sorted(counts)[-MOST_WEEKS:]
    return weeks, {label: [counts[w][label] / counts[w].total() for w in weeks] for label in labels.values}

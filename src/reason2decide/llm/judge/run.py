"""From predictions to a folder of judgements: whom to ask about what, the means, and how far the judges agree.

OUT/
  judgements.jsonl   every judgement or comparison; ids, scores and keys of the log of calls, no text
  judge.json         means or win rates with intervals, agreement, the signature

Scores of single rationales are also merged into the probes beside the predictions, where `r2d evaluate --predictions`
finds them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from reason2decide.console import say, track, warn
from reason2decide.evaluation.results import PROBES
from reason2decide.files import new_folder, require_absent, sha256_file
from reason2decide.llm.client.calls import ModelAnswer
from reason2decide.llm.judge.judgements import (
    JudgedSplit,
    Sample,
    Scores,
    judge_versions,
    merge_into_probes,
    read_human,
)
from reason2decide.llm.judge.pairwise import ORDERS, WORTH, Better, Pairwise, Preference, equal_pairs
from reason2decide.llm.judge.pointwise import Judge, Judgement, Pointwise, without_rationale
from reason2decide.llm.judge.rubric import Criterion
from reason2decide.llm.settling import announce_cost, counts_in_words, host, share

JUDGE, JUDGEMENTS = "judge.json", "judgements.jsonl"
HUMAN, MEAN = "human", "mean"  # raters that no judge may be named after


def judge_predictions(
    asked: JudgedSplit,
    judges: Sequence[Judge],
    form: Pointwise,
    out: Path,
    *,
    human: Path | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> dict[str, Any] | None:
    """Have rationales judged one by one; the content of `judge.json`, None after a dry run.

    A record counts by a criterion only if every judge answered: else the mean would depend on who did. Records whose
    prediction has no rationale have the lowest level and take no part in the agreement.

    Args:
        human: a file of scores by people (`read_human`), to measure agreement with.

    Raises:
        DataError: predictions, dataset or human scores do not fit.
        OutputError: `out` exists and `force` is false.
        BudgetReached, EndpointError: as `llm.Client.run`; what was answered stays in the log.
    """
    require_absent(out, JUDGE, force=force)
    sample = Sample(asked)
    people = read_human(human, form.criteria) if human is not None else None
    cases = sample.cases()
    shown = [case for case in cases if case.work.explains]
    for judge in judges:
        announce_cost(judge.client, form.fitting(judge.client, shown, ask=False).calls(judge.client, shown))
    if dry_run:
        return None

    found = without_rationale(cases, form.criteria)
    served: dict[str, set[str]] = {judge.name: set() for judge in judges}
    for judge in judges:
        own = form.fitting(judge.client, shown, ask=True)
        if own is not form:
            say(f"{judge.name} refuses to give log-probabilities: its scores are the levels that it names")
        total = len(shown) * _calls_of_a_case(judge, form.criteria)
        for call, outcome in track(judge.client.run(own.calls(judge.client, shown)), judge.name, total, "calls"):
            found += own.read(judge.name, call, outcome)
            if isinstance(outcome, ModelAnswer):
                served[judge.name].add(outcome.model)

    by_criterion = {own.name: [one for one in found if one.criterion == own.name] for own in form.criteria}
    means = {name: _means(own, len(judges)) for name, own in by_criterion.items()}
    ratings = {name: {judge.name: _scores(own, judge.name) for judge in judges} for name, own in by_criterion.items()}
    result: dict[str, Any] = {
        "kind": "pointwise",
        "predictions": sha256_file(asked.predictions),
        "criteria": {name: asdict(sample.mean(own)) for name, own in means.items()},
        "left_out": {name: len(cases) - len(own) for name, own in means.items()},
        "without_rationale": len(cases) - len(shown),
        "judges": _judges(judges, found, served),
        "by_judge": {
            judge.name: {
                name: asdict(sample.mean({id_: expected for id_, (_, expected) in own[judge.name].items()}))
                for name, own in ratings.items()
            }
            for judge in judges
        },
    }
    if len(judges) > 1:
        result["agreement"] = {name: sample.agreement(own) for name, own in ratings.items()}
    if people is not None:
        result["human"] = {
            name: _beside_people(sample, people[name], ratings[name], means[name]) for name in people if people[name]
        }
    result["signature"] = sample.signature(form, judges)
    _write(out, result, sorted(found, key=lambda one: sample.position_of[one.id]), force=force)
    merge_into_probes(asked.predictions.parent / PROBES, means, _judged_by(sample, form, judges))
    return result


def compare_predictions(
    asked: JudgedSplit,
    against: Path,
    judges: Sequence[Judge],
    form: Pairwise,
    out: Path,
    *,
    dry_run: bool = False,
    force: bool = False,
) -> dict[str, Any] | None:
    """Have two systems' answers compared in both orders; the content of `judge.json`, None after a dry run.

    A record counts by a criterion only if every judge answered in both orders. Equal answers are ties, and take no
    part in flips and agreement.

    Raises:
        DataError, OutputError, BudgetReached, EndpointError: as `judge_predictions`.
    """
    require_absent(out, JUDGE, force=force)
    sample = Sample(asked)
    pairs = sample.pairs(against)
    shown = [pair for pair in pairs if not pair.equal]
    for judge in judges:
        announce_cost(judge.client, form.calls(judge.client, shown))
    if dry_run:
        return None

    found = equal_pairs(pairs, form.criteria)
    served: dict[str, set[str]] = {judge.name: set() for judge in judges}
    for judge in judges:
        total = 2 * len(shown) * _calls_of_a_case(judge, form.criteria)
        for call, outcome in track(judge.client.run(form.calls(judge.client, shown)), judge.name, total, "calls"):
            found += form.read(judge.name, call, outcome)
            if isinstance(outcome, ModelAnswer):
                served[judge.name].add(outcome.model)

    criteria = {}
    for criterion in form.criteria:
        own = [one for one in found if one.criterion == criterion.name]
        criteria[criterion.name] = _pairwise(sample, own, judges) | {"equal": len(pairs) - len(shown)}
    result = {
        "kind": "pairwise",
        "predictions": sha256_file(asked.predictions),
        "against": sha256_file(against),
        "criteria": criteria,
        "judges": _judges(judges, found, served),
        "signature": sample.signature(form, judges),
    }
    _write(out, result, sorted(found, key=lambda one: sample.position_of[one.id]), force=force)
    return result


def _calls_of_a_case(judge: Judge, criteria: Sequence[Criterion]) -> int:
    return len(criteria) if judge.client.endpoint.dialect == "chat" else 1


def _judged_by(sample: Sample, form: Pointwise, judges: Sequence[Judge]) -> dict[str, str]:
    """Who judged, for the probes: what the scores by a criterion depend on, as `metrics.judged` signs with it."""
    common = f"{'+'.join(judge.in_words() for judge in judges)},{judge_versions(form, judges)}"
    source = sample.source or "none"
    return {own.name: f"{common},source {source}" if own.reference else common for own in form.criteria}


def _means(judgements: Sequence[Judgement], judges: int) -> dict[str, float]:
    """The mean score by one criterion of each record that all judges scored, or that needed none."""
    scores: dict[str, list[float]] = {}
    settled = set()
    for one in judgements:
        if one.expected is not None:
            scores.setdefault(one.id, []).append(one.expected)
            if one.judge is None:
                settled.add(one.id)
    return {id_: float(np.mean(own)) for id_, own in scores.items() if len(own) == judges or id_ in settled}


def _scores(judgements: Sequence[Judgement], judge: str) -> dict[str, tuple[float, float]]:
    return {
        one.id: (one.score, one.expected)
        for one in judgements
        if one.judge == judge and one.score is not None and one.expected is not None
    }


def _beside_people(
    sample: Sample, people: Mapping[str, int], judges: Mapping[str, Scores], means: Mapping[str, float]
) -> dict[str, Any]:
    """The agreement of people with each judge and, where there are several, with the judges' mean."""
    own: Scores = {id_: (score, float(score)) for id_, score in people.items()}
    raters = dict(judges)
    if len(judges) > 1:
        asked = set.intersection(*(set(scores) for scores in judges.values()))
        raters[MEAN] = {id_: (np.floor(means[id_] + 0.5), means[id_]) for id_ in means if id_ in asked}
    return {name: sample.agreement({HUMAN: own, name: scores}) for name, scores in raters.items()}


def _pairwise(sample: Sample, found: Sequence[Preference], judges: Sequence[Judge]) -> dict[str, Any]:
    """What the comparisons by one criterion come to."""
    answered: dict[tuple[str, str], list[Preference]] = {}
    for one in found:
        if one.judge is not None and one.better is not None:
            answered.setdefault((one.id, one.judge), []).append(one)
    both = {key: own for key, own in answered.items() if len(own) == len(ORDERS)}
    raters: dict[str, dict[str, tuple[float, float]]] = {judge.name: {} for judge in judges}
    verdicts: Counter[Better] = Counter()
    for (id_, judge), own in both.items():
        verdict = _verdict(own)
        verdicts[verdict] += 1
        raters[judge][id_] = (WORTH[verdict], float(np.mean([one.expected for one in own])))
    values = {one.id: WORTH["tie"] for one in found if one.judge is None}
    for id_ in set.intersection(*(set(scores) for scores in raters.values())):
        values[id_] = float(np.mean([scores[id_][1] for scores in raters.values()]))
    turned = [(sample.unit(id_), {one.better for one in own} == {"own", "other"}) for (id_, _), own in both.items()]
    decided = [one for own in both.values() for one in own if one.better != "tie"]
    first = sum((one.order == "own_first") == (one.better == "own") for one in decided)
    result: dict[str, Any] = {
        "win_rate": asdict(sample.mean({id_: values[id_] for id_ in sample.position_of if id_ in values})),
        "verdicts": {name: verdicts[name] for name in WORTH},
        "flips": asdict(share(turned)),
        "first_favoured": first / len(decided) if decided else None,
        "left_out": len(sample.chosen) - len(values),
    }
    if len(judges) > 1:
        result["agreement"] = sample.agreement(raters)
    return result


def _verdict(both_orders: Sequence[Preference]) -> Better:
    """Who does better in both orders; a tie where they do not agree."""
    one, other = (own.better for own in both_orders)
    return one if one is not None and one == other else "tie"


def _judges(
    judges: Sequence[Judge], found: Iterable[Judgement | Preference], served: Mapping[str, set[str]]
) -> dict[str, Any]:
    """Who the judges were, and what they failed at; also said."""
    failures: dict[str, Counter[str]] = {judge.name: Counter() for judge in judges}
    for one in found:
        if one.judge is not None and one.failure is not None:
            failures[one.judge][one.failure] += 1
    for name, counts in failures.items():
        if counts:
            warn(f"{name} gave no verdict: {counts_in_words(counts)}; the records are left out, run again to ask again")
    return {
        judge.name: {
            "model": judge.client.endpoint.model,
            "served": sorted(served[judge.name]),
            "host": host(judge.client),
            "dialect": judge.client.endpoint.dialect,
            "failures": dict(failures[judge.name]),
        }
        for judge in judges
    }


def _write(out: Path, result: Mapping[str, Any], found: Iterable[Judgement | Preference], *, force: bool) -> None:
    with new_folder(out, JUDGE, force=force) as folder:
        with (folder / JUDGEMENTS).open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found)
        (folder / JUDGE).write_text(json.dumps(result, indent=2, ensure_ascii=False), "utf-8")
    say(f"judgements: {out / JUDGE}, {out / JUDGEMENTS}")

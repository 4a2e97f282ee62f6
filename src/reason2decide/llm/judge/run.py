"""Judge predictions and write a folder of judgements: calls to the judges, means, and the judges' agreement.

OUT/
  judgements.jsonl   every judgement or comparison; ids, scores and keys of the log of calls, no text
  judge.json         means or win rates with intervals, agreement, the signature

Scores of single rationales are also merged into the probes next to the predictions, where
`r2d evaluate --predictions` finds them.
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
from reason2decide.files import new_folder, require_absent, sha256_file
from reason2decide.llm.client.calls import Failure, ModelAnswer
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
from reason2decide.llm.settling import announce_cost, counts_in_words, host, require_answers, share

JUDGE, JUDGEMENTS = "judge.json", "judgements.jsonl"
HUMAN, MEAN = "human", "mean"  # raters whose names no judge may have


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
    """Judge rationales one by one; return the content of `judge.json`, or None after a dry run.

    A record counts by a criterion only if every judge answered: otherwise the mean would depend on which ones did.
    Records whose prediction has no rationale get the lowest level and are not part of the agreement.

    Args:
        human: a file of human scores (`read_human`) to measure agreement with.

    Raises:
        DataError: predictions, dataset or human scores do not fit.
        OutputError: `out` exists and `force` is false.
        BudgetReached, EndpointError: as `Client.run`; all answers received stay in the log.
    """
    require_absent(out, JUDGE, force=force)
    sample = Sample(asked)
    people = read_human(human, form.criteria) if human is not None else None
    cases = sample.cases()
    shown = [case for case in cases if case.work.explains]
    for judge in judges:
        announce_cost(judge.client, form.calls(judge.client, shown))
    if dry_run:
        return None

    found = without_rationale(cases, form.criteria)
    served = {}
    for judge in judges:
        total = len(shown) * _calls_of_a_case(judge, form.criteria)
        judgements, served[judge.name] = _asked(judge, form, shown, total)
        found += judgements

    by_criterion = {
        criterion.name: [judgement for judgement in found if judgement.criterion == criterion.name]
        for criterion in form.criteria
    }
    means = {name: _means(judgements, len(judges)) for name, judgements in by_criterion.items()}
    ratings = {
        name: {judge.name: _scores(judgements, judge.name) for judge in judges}
        for name, judgements in by_criterion.items()
    }
    result: dict[str, Any] = {
        "kind": "pointwise",
        "predictions": sha256_file(asked.predictions),
        "criteria": {name: asdict(sample.mean(by_id)) for name, by_id in means.items()},
        "left_out": {name: len(cases) - len(by_id) for name, by_id in means.items()},
        "without_rationale": len(cases) - len(shown),
        "judges": _judges(judges, found, served),
        "by_judge": {
            judge.name: {
                name: asdict(sample.mean({id_: expected for id_, (_, expected) in by_judge[judge.name].items()}))
                for name, by_judge in ratings.items()
            }
            for judge in judges
        },
    }
    if len(judges) > 1:
        result["agreement"] = {name: sample.agreement(by_judge) for name, by_judge in ratings.items()}
    if people is not None:
        result["human"] = {
            name: _beside_people(sample, people[name], ratings[name], means[name]) for name in people if people[name]
        }
    result["signature"] = sample.signature(form, judges)
    _write(out, result, sorted(found, key=lambda judgement: sample.position_of[judgement.id]), force=force)
    merge_into_probes(asked.predictions, means, _judged_by(sample, form, judges))
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
    """Compare two systems' answers in both orders; return the content of `judge.json`, or None after a dry run.

    A record counts by a criterion only if every judge answered in both orders. Equal answers are ties, and are not
    part of flips and agreement.

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
    served = {}
    for judge in judges:
        total = 2 * len(shown) * _calls_of_a_case(judge, form.criteria)
        preferences, served[judge.name] = _asked(judge, form, shown, total)
        found += preferences

    criteria = {}
    for criterion in form.criteria:
        preferences = [preference for preference in found if preference.criterion == criterion.name]
        criteria[criterion.name] = _pairwise(sample, preferences, judges) | {"equal": len(pairs) - len(shown)}
    result = {
        "kind": "pairwise",
        "predictions": sha256_file(asked.predictions),
        "against": sha256_file(against),
        "criteria": criteria,
        "judges": _judges(judges, found, served),
        "signature": sample.signature(form, judges),
    }
    _write(out, result, sorted(found, key=lambda judgement: sample.position_of[judgement.id]), force=force)
    return result


def _asked(judge: Judge, form: Any, shown: Sequence[Any], total: int) -> tuple[list[Any], set[str]]:
    """A judge's verdicts on cases or pairs, and the models that its server says answered.

    Raises:
        UnansweredError: the judge gave no answer at all.
    """
    found: list[Any] = []
    served: set[str] = set()
    failed: list[Failure] = []
    named = 0  # verdicts without the probabilities that were asked for
    for call, outcome in track(judge.client.run(form.calls(judge.client, shown)), judge.name, total, "calls"):
        found += form.read(judge.name, call, outcome)
        if isinstance(outcome, ModelAnswer):
            served.add(outcome.model)
            named += "logprobs" in call.settings and outcome.logprobs is None
        else:
            failed.append(outcome)
    if not served:
        require_answers(failed)
    if named:
        without = f"{judge.name} gave no log-probabilities with {named} of {total - len(failed)} answers"
        say(f"{without}: their scores are the levels that it names")
    return found, served


def _calls_of_a_case(judge: Judge, criteria: Sequence[Criterion]) -> int:
    return len(criteria) if judge.client.endpoint.dialect == "chat" else 1


def _judged_by(sample: Sample, form: Pointwise, judges: Sequence[Judge]) -> dict[str, str]:
    """Describe what the scores by a criterion depend on; the probes keep it for the signature of `metrics.judged`."""
    common = f"{'+'.join(judge.in_words() for judge in judges)},{judge_versions(form, judges)}"
    source = sample.source or "none"
    return {
        criterion.name: f"{common},source {source}" if criterion.reference else common for criterion in form.criteria
    }


def _means(judgements: Sequence[Judgement], judges: int) -> dict[str, float]:
    """The mean score by one criterion of each record that all judges scored, or that needed no judge."""
    scores: dict[str, list[float]] = {}
    settled = set()
    for judgement in judgements:
        if judgement.expected is not None:
            scores.setdefault(judgement.id, []).append(judgement.expected)
            if judgement.judge is None:
                settled.add(judgement.id)
    return {id_: float(np.mean(given)) for id_, given in scores.items() if len(given) == judges or id_ in settled}


def _scores(judgements: Sequence[Judgement], judge: str) -> dict[str, tuple[float, float]]:
    return {
        judgement.id: (judgement.score, judgement.expected)
        for judgement in judgements
        if judgement.judge == judge and judgement.score is not None and judgement.expected is not None
    }


def _beside_people(
    sample: Sample, people: Mapping[str, int], judges: Mapping[str, Scores], means: Mapping[str, float]
) -> dict[str, Any]:
    """The agreement of people with each judge and, if there are several, with the judges' mean."""
    human: Scores = {id_: (score, float(score)) for id_, score in people.items()}
    raters = dict(judges)
    if len(judges) > 1:
        asked = set.intersection(*(set(scores) for scores in judges.values()))
        raters[MEAN] = {id_: (np.floor(means[id_] + 0.5), means[id_]) for id_ in means if id_ in asked}
    return {name: sample.agreement({HUMAN: human, name: scores}) for name, scores in raters.items()}


def _pairwise(sample: Sample, found: Sequence[Preference], judges: Sequence[Judge]) -> dict[str, Any]:
    """Summarize the comparisons by one criterion."""
    answered: dict[tuple[str, str], list[Preference]] = {}
    for preference in found:
        if preference.judge is not None and preference.better is not None:
            answered.setdefault((preference.id, preference.judge), []).append(preference)
    both = {key: preferences for key, preferences in answered.items() if len(preferences) == len(ORDERS)}
    raters: dict[str, dict[str, tuple[float, float]]] = {judge.name: {} for judge in judges}
    verdicts: Counter[Better] = Counter()
    for (id_, judge), preferences in both.items():
        verdict = _verdict(preferences)
        verdicts[verdict] += 1
        raters[judge][id_] = (WORTH[verdict], float(np.mean([preference.expected for preference in preferences])))
    values = {preference.id: WORTH["tie"] for preference in found if preference.judge is None}
    for id_ in set.intersection(*(set(scores) for scores in raters.values())):
        values[id_] = float(np.mean([scores[id_][1] for scores in raters.values()]))
    flips = [
        (sample.unit(id_), {preference.better for preference in preferences} == {"own", "other"})
        for (id_, _), preferences in both.items()
    ]
    decided = [preference for preferences in both.values() for preference in preferences if preference.better != "tie"]
    first = sum((preference.order == "own_first") == (preference.better == "own") for preference in decided)
    result: dict[str, Any] = {
        "win_rate": asdict(sample.mean({id_: values[id_] for id_ in sample.position_of if id_ in values})),
        "verdicts": {name: verdicts[name] for name in WORTH},
        "flips": asdict(share(flips)),
        "first_favoured": first / len(decided) if decided else None,
        "left_out": len(sample.chosen) - len(values),
    }
    if len(judges) > 1:
        result["agreement"] = sample.agreement(raters)
    return result


def _verdict(both_orders: Sequence[Preference]) -> Better:
    """The system that does better in both orders; a tie if they disagree."""
    first, second = (preference.better for preference in both_orders)
    return first if first is not None and first == second else "tie"


def _judges(
    judges: Sequence[Judge], found: Iterable[Judgement | Preference], served: Mapping[str, set[str]]
) -> dict[str, Any]:
    """Describe the judges and count their failures, which are also printed."""
    failures: dict[str, Counter[str]] = {judge.name: Counter() for judge in judges}
    for judgement in found:
        if judgement.judge is not None and judgement.failure is not None:
            failures[judgement.judge][judgement.failure] += 1
    for name, counts in failures.items():
        if counts:
            warn(f"{name} gave no verdict: {counts_in_words(counts)}; these records are left out, run again to retry")
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
            stream.writelines(json.dumps(judgement.to_json(), ensure_ascii=False) + "\n" for judgement in found)
        (folder / JUDGE).write_text(json.dumps(result, indent=2, ensure_ascii=False), "utf-8")
    say(f"judgements: {out / JUDGE}, {out / JUDGEMENTS}")

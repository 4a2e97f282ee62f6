"""Run many calls: announce the expected cost, complete each call, and report what was spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from urllib.parse import urlsplit

import numpy as np

from reason2decide.console import say, track, warn
from reason2decide.errors import UnansweredError
from reason2decide.evaluation.metrics.base import SufficientStatistics, ratio
from reason2decide.evaluation.results import MetricValue
from reason2decide.evaluation.statistics import bootstrap, percentile_interval
from reason2decide.llm.client.budget import Estimate, Prices
from reason2decide.llm.client.calls import AnyCall, Failure, ModelAnswer
from reason2decide.llm.client.client import Client


def announce_cost(client: Client, calls: Iterable[AnyCall]) -> Estimate:
    """Report what these calls are likely to take, and where texts go if they leave this machine; nothing is sent."""
    expected = client.estimate(calls)
    read, written = expected.tokens.input_tokens, expected.tokens.output_tokens
    cost = f"cost about {expected.cost:.4f}" if client.budget.prices != Prices() else "cost unknown: no prices given"
    say(
        f"to send: {expected.calls} calls to {client.endpoint.model} at {host(client)}, about {read} tokens in and "
        f"{written} out, {cost}; {expected.cached} more are already answered in {client.log.path}"
    )
    if expected.calls and not client.endpoint.is_loopback:
        warn(f"the texts of these calls leave this machine: they are sent to {host(client)}")
    return expected


def host(client: Client) -> str:
    """Host and port of the endpoint, as recorded in provenance."""
    return urlsplit(client.endpoint.base_url).netloc


def settle(client: Client, calls: Iterable[AnyCall], what: str, total: int) -> dict[str, Failure]:
    """Complete every call, and return the failures by id. All other answers are in the log, for `logged`.

    Answers come in any order and are not kept in memory: read them from the log afterwards if the order matters.

    Raises:
        UnansweredError: there is no answer at all.
        BudgetReached, EndpointError: as `Client.run`; all answers received stay in the log.
    """
    failed, answered = {}, 0
    for call, outcome in track(client.run(calls), what, total, unit="calls"):
        if isinstance(outcome, Failure):
            failed[call.id] = outcome
        answered += not isinstance(outcome, Failure)
    if not answered:
        require_answers(failed.values())
    return failed


def require_answers(failed: Collection[Failure]) -> None:
    """Refuse to go on with nothing but failures.

    Raises:
        UnansweredError: there are some; the message has the reason of the commonest kind.
    """
    if failed:
        kinds = Counter(failure.kind for failure in failed)
        example = next(failure for failure in failed if failure.kind == kinds.most_common(1)[0][0])
        said = f"; the server says: {example.reason}" if example.reason else ""
        raise UnansweredError(
            f"no call was answered, and nothing was written: {counts_in_words(kinds)} ({example.message}{said})"
        )


def logged(client: Client, call: AnyCall) -> ModelAnswer:
    """The answer of a call that `settle` did not report as failed."""
    answer = client.logged(call)
    assert isinstance(answer, ModelAnswer), "the call was settled"
    return answer


def report_spent(client: Client) -> None:
    """Report what a run spent."""
    spent = client.budget.spent
    cost = f", cost {spent.cost:.4f}" if client.budget.prices != Prices() else ""
    say(
        f"spent: {spent.requests} requests for {spent.answered} answers, {spent.tokens.input_tokens} tokens in and "
        f"{spent.tokens.output_tokens} out{cost}; {spent.cached} answers came from the log"
    )


def require_all_answered(client: Client) -> None:
    """End a command that has used its answers with failure if there were calls without one.

    Raises:
        UnansweredError: there were.
    """
    failures = client.budget.spent.failures
    if failures:
        raise UnansweredError(
            f"{failures.total()} calls have no answer: {counts_in_words(failures)}; the rest was used. The table "
            f"`failures` in {client.log.path} says why; the same command again asks again, except where a model at "
            "temperature 0 would only repeat itself"
        )


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Format counts, the most frequent first, such as "deadline 3, refused 1"."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def share(hits: Sequence[tuple[Hashable, bool]]) -> MetricValue:
    """The share of hits with its 95 % bootstrap interval; each hit has its unit (its group, or else its record)."""
    if not hits:
        return MetricValue(None, None, None, 0)
    index: dict[Hashable, int] = {}
    group_of = np.array([index.setdefault(unit, len(index)) for unit, _ in hits], np.int64)
    row_of = np.array([hit for _, hit in hits], np.int64)
    statistics = SufficientStatistics(np.array([[0.0, 1.0], [1.0, 1.0]]), row_of, np.arange(len(hits)))
    draws = bootstrap(statistics, lambda sums: ratio(sums[..., 0], sums[..., 1]), group_of=group_of)
    return MetricValue(float(row_of.mean()), *percentile_interval(draws), len(hits))


def in_words(value: MetricValue) -> str:
    """Format a share with its interval for reading."""
    if value.value is None:
        return "unknown (no cases)"
    return f"{value.value:.4f} (95 % interval {value.low:.4f} to {value.high:.4f}, n = {value.n})"

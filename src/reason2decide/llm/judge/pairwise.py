"""Compare two systems' answers to a case by each criterion. Each pair is shown in both orders.

Judges favour the first or the second position (Wang et al. 2023; Zheng et al. 2023), so a single order also measures
position. A win here is the mean over both orders, a tie half a win; how often the two orders name different systems is
reported, as the part of the verdicts that reflects position and not preference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from reason2decide.llm.client.calls import AnyCall, Call, Failure, ModelAnswer, Question
from reason2decide.llm.client.client import Client
from reason2decide.llm.judge.pointwise import NO_REFERENCE, Judging, Work, decision_call, distributions
from reason2decide.llm.judge.rubric import Criterion

Better = Literal["own", "other", "tie"]
Order = Literal["own_first", "other_first"]
ORDERS: tuple[Order, ...] = ("own_first", "other_first")
WORTH: Mapping[Better, float] = {"own": 1.0, "tie": 0.5, "other": 0.0}
OPTIONS = {
    "first": "the first answer does better by this criterion",
    "second": "the second answer does better by this criterion",
    "tie": "neither does better",
}
# The system in each position of an order.
_MEANS: Mapping[Order, Mapping[str, Better]] = {
    "own_first": {"first": "own", "second": "other", "tie": "tie"},
    "other_first": {"first": "other", "second": "own", "tie": "tie"},
}


@dataclass(frozen=True)
class Pair:
    """Two systems' work on one text, and the expert's decision and rationale."""

    id: str
    text: str = field(repr=False)
    own: Work
    other: Work
    reference: str = field(repr=False)

    @property
    def equal(self) -> bool:
        """Whether both answers are the same, so that no judge needs to be asked."""
        return self.own == self.other


@dataclass(frozen=True)
class Preference:
    """One judge's verdict on one pair by one criterion in one order, without text.

    `expected` is what the `own` answer won: 1, a half for a tie, or the expected value of these. `better` and
    `expected` are None if the judge failed. Equal answers tie without asking a judge: then `judge`, `order` and `key`
    are None.
    """

    id: str
    criterion: str
    judge: str | None
    order: Order | None
    better: Better | None
    expected: float | None
    key: str | None
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON object, with `failure` only if there was one."""
        return {name: value for name, value in asdict(self).items() if name != "failure" or value is not None}


class PairVerdict(BaseModel):
    """The form of a chat model's answer."""

    better: Literal["first", "second", "tie"]


class Pairwise(Judging):
    """How pairs are compared."""

    def calls(self, client: Client, pairs: Iterable[Pair]) -> Iterator[AnyCall]:
        """Yield the calls to a judge, in both orders: one per criterion or, for a decision model, one per pair."""
        for pair in pairs:
            for order in ORDERS:
                works = (pair.own, pair.other) if order == "own_first" else (pair.other, pair.own)
                data = {"text": pair.text, "first": works[0].in_words(), "second": works[1].in_words()}
                if client.endpoint.dialect == "chat":
                    yield from (self._chat(pair, order, data, criterion) for criterion in self.criteria)
                else:
                    yield decision_call(
                        f"{order} {pair.id}",
                        self.decision,
                        {**data, "reference": pair.reference},
                        {criterion: Question("choice", criterion.question, OPTIONS) for criterion in self.criteria},
                        self.version(client.endpoint.dialect),
                    )

    def _chat(self, pair: Pair, order: Order, data: Mapping[str, str], criterion: Criterion) -> Call:
        shown = {**data, "reference": pair.reference if criterion.reference else NO_REFERENCE}
        messages = self.chat.messages(shown, {"question": criterion.question}, apart=("reference",))
        return Call(f"{order} {criterion.name} {pair.id}", messages, PairVerdict, self.settings, self.version("chat"))

    def read(self, judge: str, call: AnyCall, outcome: ModelAnswer | Failure) -> list[Preference]:
        """Read a judge's answer or failure."""
        order = next(name for name in ORDERS if call.id.startswith(f"{name} "))
        means, rest = _MEANS[order], call.id.removeprefix(f"{order} ")
        if isinstance(call, Call):
            criterion, id_ = rest.split(" ", 1)
            if isinstance(outcome, Failure):
                return [Preference(id_, criterion, judge, order, None, None, outcome.key, outcome.kind)]
            assert isinstance(outcome.parsed, PairVerdict)
            better = means[outcome.parsed.better]
            return [Preference(id_, criterion, judge, order, better, WORTH[better], outcome.key)]
        found = []
        for name, options in distributions(call, outcome).items():
            if isinstance(options, str):
                found.append(Preference(rest, name, judge, order, None, None, outcome.key, options))
            else:
                better = means[max(options, key=options.__getitem__)]
                expected = sum(p * WORTH[means[option]] for option, p in options.items())
                found.append(Preference(rest, name, judge, order, better, expected, outcome.key))
        return found


def equal_pairs(pairs: Iterable[Pair], criteria: Iterable[Criterion]) -> list[Preference]:
    """Record a tie by each criterion for the pairs of equal answers."""
    names = [criterion.name for criterion in criteria]
    equal = [pair.id for pair in pairs if pair.equal]
    return [Preference(id_, name, None, None, "tie", WORTH["tie"], None) for id_ in equal for name in names]

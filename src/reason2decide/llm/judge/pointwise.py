"""A judge's score of one rationale by one criterion, from 1 to 5: what is asked, and how the answer is read.

A chat model is asked one criterion a call and answers with a level; where its server gives the probabilities of
tokens, the score is the expected level (as in G-Eval, Liu et al. 2023), which has fewer ties than the level itself. A
decision model is asked all criteria of a case in one request and gives the probabilities of the levels at once.

No judge is told whose rationale it reads. All texts, the labels among them, are fenced data (`llm/prompts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator

from reason2decide.llm.client.calls import AnyCall, Call, DecisionCall, Failure, ModelAnswer, Question, call_key
from reason2decide.llm.client.client import Client
from reason2decide.llm.judge.rubric import LEVELS, Criterion, levels_in_words
from reason2decide.llm.prompt_files import Prompt

NO_DECISION = "(no decision)"
NO_REFERENCE = "(not given for this criterion)"
# As many as OpenAI's API allows: five digits, each perhaps also with a space before it, among other tokens.
TOKEN_PROBABILITIES: Mapping[str, Any] = {"logprobs": True, "top_logprobs": 20}
AROUND = ' \t\n"{}:,'  # what a tokenizer may join to a digit in a JSON object
REFUSED_SETTINGS = ("http_400", "http_422")


@dataclass(frozen=True)
class Judge:
    """A model that judges, under a name."""

    name: str
    client: Client

    def in_words(self) -> str:
        """What its scores depend on besides the prompts."""
        return f"{self.client.endpoint.model}({self.client.endpoint.dialect})".replace("|", "/")


@dataclass(frozen=True)
class Work:
    """What is judged: a decision and the rationale for it."""

    decision: str = field(repr=False)
    rationale: str = field(repr=False)

    @property
    def explains(self) -> bool:
        """Whether there is a rationale at all."""
        return bool(self.rationale.strip())

    def in_words(self) -> str:
        """Both as one text."""
        return f"Decision: {self.decision}\nRationale: {self.rationale or '(none)'}"


@dataclass(frozen=True)
class JudgedCase:
    """Work on a text, and what an expert decided and wrote about it."""

    id: str
    text: str = field(repr=False)
    work: Work
    reference: str = field(repr=False)


@dataclass(frozen=True)
class Judgement:
    """One judge's score of one case by one criterion; no text.

    `score` is the level named, or the likeliest one, `expected` the expected level; both None where the judge failed,
    with the kind of failure. `key` is that of the call in the log. A case without a rationale has the lowest score
    without anybody being asked: then `judge` and `key` are None.
    """

    id: str
    criterion: str
    judge: str | None
    score: int | None
    expected: float | None
    key: str | None
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The judgement as a JSON object, `failure` only where there was one."""
        return {name: value for name, value in asdict(self).items() if name != "failure" or value is not None}


class Verdict(BaseModel):
    """The form of a chat model's answer."""

    score: Annotated[Literal[1, 2, 3, 4, 5], BeforeValidator(lambda v: int(v) if v in ("1", "2", "3", "4", "5") else v)]


@dataclass(frozen=True)
class Pointwise:
    """How single rationales are judged: by which criteria, in which words, with which settings."""

    criteria: tuple[Criterion, ...]
    rubric_version: str
    chat: Prompt
    decision: Prompt
    settings: Mapping[str, Any]
    logprobs: bool = True

    def version(self, dialect: str) -> str:
        """Versions of the words that a dialect uses."""
        prompt = self.chat if dialect == "chat" else self.decision
        return f"{prompt.full_version}+rubric/{self.rubric_version}"

    def fitting(self, client: Client, cases: Iterable[JudgedCase], *, ask: bool) -> Pointwise:
        """This, or this without log-probabilities where the server refuses those.

        The log knows that it does if the first call without them was answered; else it is asked, if it may be.
        """
        first = next(iter(self.calls(client, islice(cases, 1))), None)
        if not isinstance(first, Call):
            return self
        without = replace(self, logprobs=False)
        if client.log.find(call_key(client.endpoint, without._plain(first))):
            return without
        outcomes = [outcome for _, outcome in client.run([first])] if ask else []
        refuses = any(isinstance(own, Failure) and own.kind in REFUSED_SETTINGS for own in outcomes)
        return without if refuses else self

    @staticmethod
    def _plain(call: Call) -> Call:
        return replace(call, settings={k: v for k, v in call.settings.items() if k not in TOKEN_PROBABILITIES})

    def calls(self, client: Client, cases: Iterable[JudgedCase]) -> Iterator[AnyCall]:
        """What a judge is asked, one call a criterion or, of a decision model, one a case."""
        dialect = client.endpoint.dialect
        for case in cases:
            if dialect == "chat":
                yield from (self._chat(case, criterion) for criterion in self.criteria)
            else:
                data = {"text": case.text, "decision": case.work.decision, "rationale": case.work.rationale}
                yield decision_call(
                    case.id,
                    self.decision,
                    {**data, "reference": case.reference},
                    {own: Question("score", own.question, own.options()) for own in self.criteria},
                    self.version(dialect),
                )

    def _chat(self, case: JudgedCase, criterion: Criterion) -> Call:
        data = {
            "text": case.text,
            "decision": case.work.decision,
            "rationale": case.work.rationale,
            "reference": case.reference if criterion.reference else NO_REFERENCE,
        }
        words = {"question": criterion.question, "levels": levels_in_words(criterion)}
        settings = {**self.settings, **(TOKEN_PROBABILITIES if self.logprobs else {})}
        name = f"{criterion.name} {case.id}"
        return Call(name, self.chat.messages(data, words), Verdict, settings, self.version("chat"))

    def read(self, judge: str, call: AnyCall, outcome: ModelAnswer | Failure) -> list[Judgement]:
        """What a judge said, or that it failed."""
        if isinstance(call, Call):
            criterion, id_ = call.id.split(" ", 1)
            if isinstance(outcome, Failure):
                return [Judgement(id_, criterion, judge, None, None, outcome.key, outcome.kind)]
            assert isinstance(outcome.parsed, Verdict)
            score = outcome.parsed.score
            return [Judgement(id_, criterion, judge, score, expected_level(outcome, score), outcome.key)]
        found = []
        for name, levels in distributions(call, outcome).items():
            if isinstance(levels, str):
                found.append(Judgement(call.id, name, judge, None, None, outcome.key, levels))
            else:
                likeliest = int(max(levels, key=levels.__getitem__))
                found.append(Judgement(call.id, name, judge, likeliest, _mean(levels), outcome.key))
        return found


def decision_call(
    name: str, prompt: Prompt, data: Mapping[str, str], questions: Mapping[Criterion, Question], version: str
) -> DecisionCall:
    """All criteria of a case in one request; only questions with a reference are followed by it."""
    state, reference = (message["content"] for message in prompt.messages(data))
    asked = {
        own.name: replace(question, instructions=f"{question.instructions}\n\n{reference}")
        if own.reference
        else question
        for own, question in questions.items()
    }
    return DecisionCall(name, state, asked, {}, version)


def distributions(call: DecisionCall, outcome: ModelAnswer | Failure) -> dict[str, Mapping[str, float] | str]:
    """The probabilities of each question's options, or the kind of failure."""
    if isinstance(outcome, Failure):
        return dict.fromkeys(call.questions, outcome.kind)
    assert outcome.probabilities is not None
    return {name: "refused" if own is None else own for name, own in outcome.probabilities.items()}


def expected_level(answer: ModelAnswer, score: int) -> float:
    """The mean of the levels, each weighed by the probability it had where the model wrote its score.

    The score itself where there are no probabilities, or no token is the score. Of several such tokens the last counts,
    as the last object in an answer does. Tokens that differ only in white space or punctuation count together.
    """
    written = [token for token in answer.logprobs or () if token.token.strip(AROUND) == str(score)]
    if not written:
        return float(score)
    likeliest = {written[-1].token: written[-1].logprob, **dict(written[-1].top)}
    weights = {str(level): 0.0 for level in LEVELS}
    for token, logprob in likeliest.items():
        if token.strip(AROUND) in weights:
            weights[token.strip(AROUND)] += math.exp(logprob)
    return _mean(weights)


def _mean(weights: Mapping[str, float]) -> float:
    total = math.fsum(weights.values())
    return math.fsum(int(level) * weight for level, weight in weights.items()) / total if total else math.nan


def without_rationale(cases: Sequence[JudgedCase], criteria: Sequence[Criterion]) -> list[Judgement]:
    """The lowest level by each criterion for the cases that have no rationale."""
    lowest = LEVELS[0]
    return [
        Judgement(case.id, own.name, None, lowest, float(lowest), None)
        for case in cases
        if not case.work.explains
        for own in criteria
    ]

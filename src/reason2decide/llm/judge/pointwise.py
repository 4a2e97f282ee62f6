"""Score one rationale by one criterion, from 1 to 5: the questions to a judge, and how its answers are read.

A chat model is asked about one criterion per call and answers with a level; if its server gives token probabilities,
the score is the expected level (as in G-Eval, Liu et al. 2023), which has fewer ties than the level itself. A decision
model is asked about all criteria of a case in one request and gives the probabilities of the levels at once.

No judge is told whose rationale it reads. All texts, including the labels, are fenced data (`llm/prompt_files.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator

from reason2decide.llm.client.calls import AnyCall, Call, DecisionCall, Failure, ModelAnswer, Question
from reason2decide.llm.client.client import Client
from reason2decide.llm.judge.rubric import LEVELS, Criterion, levels_in_words
from reason2decide.llm.prompt_files import Prompt

NO_DECISION = "(no decision)"
NO_REFERENCE = "(not given for this criterion)"
# The most that OpenAI's API allows: five digits, each perhaps also with a space before it, among other tokens.
TOKEN_PROBABILITIES: Mapping[str, Any] = {"logprobs": True, "top_logprobs": 20}
AROUND = ' \t\n"{}:,'  # characters that a tokenizer may join to a digit in a JSON object


@dataclass(frozen=True)
class Judge:
    """A judging model and its name."""

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
        """Whether there is a rationale."""
        return bool(self.rationale.strip())

    def in_words(self) -> str:
        """Format both as one text."""
        return f"Decision: {self.decision}\nRationale: {self.rationale or '(none)'}"


@dataclass(frozen=True)
class JudgedCase:
    """The work to judge on a text, and the expert's decision and rationale."""

    id: str
    text: str = field(repr=False)
    work: Work
    reference: str = field(repr=False)


@dataclass(frozen=True)
class Judgement:
    """One judge's score of one case by one criterion, without text.

    `score` is the level named, or the likeliest one, `expected` the expected level; both are None if the judge failed,
    with the kind of failure. `key` is the call's key in the log. A case without a rationale gets the lowest score
    without asking a judge: then `judge` and `key` are None.
    """

    id: str
    criterion: str
    judge: str | None
    score: int | None
    expected: float | None
    key: str | None
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The judgement as a JSON object, with `failure` only if there was one."""
        return {name: value for name, value in asdict(self).items() if name != "failure" or value is not None}


class Verdict(BaseModel):
    """The form of a chat model's answer."""

    score: Annotated[Literal[1, 2, 3, 4, 5], BeforeValidator(lambda v: int(v) if v in ("1", "2", "3", "4", "5") else v)]


@dataclass(frozen=True)
class Judging:
    """How a judge is asked: the criteria, prompts and settings."""

    criteria: tuple[Criterion, ...]
    rubric_version: str
    chat: Prompt
    decision: Prompt
    settings: Mapping[str, Any]

    def version(self, dialect: str) -> str:
        """Versions of the words that a dialect uses."""
        prompt = self.chat if dialect == "chat" else self.decision
        return f"{prompt.full_version}+rubric/{self.rubric_version}"


class Pointwise(Judging):
    """How single rationales are judged."""

    def calls(self, client: Client, cases: Iterable[JudgedCase]) -> Iterator[AnyCall]:
        """Yield the calls to a judge: one per criterion or, for a decision model, one per case."""
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
                    {
                        criterion: Question("score", criterion.question, criterion.options())
                        for criterion in self.criteria
                    },
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
        settings = {**self.settings, **TOKEN_PROBABILITIES}
        name = f"{criterion.name} {case.id}"
        return Call(
            name, self.chat.messages(data, words, apart=("reference",)), Verdict, settings, self.version("chat")
        )

    def read(self, judge: str, call: AnyCall, outcome: ModelAnswer | Failure) -> list[Judgement]:
        """Read a judge's answer or failure."""
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
    """Ask about all criteria of a case in one request; the reference follows only the questions that use it."""
    state, reference = (message["content"] for message in prompt.messages(data))
    asked = {
        criterion.name: replace(question, instructions=f"{question.instructions}\n\n{reference}")
        if criterion.reference
        else question
        for criterion, question in questions.items()
    }
    return DecisionCall(name, state, asked, {}, version)


def distributions(call: DecisionCall, outcome: ModelAnswer | Failure) -> dict[str, Mapping[str, float] | str]:
    """The probabilities of each question's options, or the kind of failure."""
    if isinstance(outcome, Failure):
        return dict.fromkeys(call.questions, outcome.kind)
    assert outcome.probabilities is not None
    return {name: "refused" if options is None else options for name, options in outcome.probabilities.items()}


def expected_level(answer: ModelAnswer, score: int) -> float:
    """The mean of the levels, each weighted by its probability where the model wrote its score.

    If there are no probabilities, or no token is the score, this is the score itself. The last of several such tokens
    counts, like the last object in an answer. Tokens that differ only in white space or punctuation count together.
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
    """Give the cases without a rationale the lowest level by each criterion."""
    lowest = LEVELS[0]
    return [
        Judgement(case.id, criterion.name, None, lowest, float(lowest), None)
        for case in cases
        if not case.work.explains
        for criterion in criteria
    ]

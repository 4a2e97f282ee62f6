"""Response bodies: answers of the two interfaces, rationales, models, errors. Pure functions and types.

Beyond the interfaces, an answer has `renormalised: true` if the options left labels out, and on request `rationale`
(for its own label), `rationales` (label -> text, for other labels), `prediction_set` and `deferred`; the reply then
repeats `rationale` as `rationales: {question: text}`. `prediction_set` and `deferred` refer to the model's whole label
set. Where reasons are checked, `reason_support` and `reason_supports` say whether a rationale supports its answer, and
by setting `deferred` is true where not. Every reply says in `text` how much of the text was read; where some was not,
its answers have `deferred` unasked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from reason2decide.model.decision import Decision
from reason2decide.model.reasons import Reason
from reason2decide.serve.questions import Asked, Wanted
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.wire import WORDS

OPENAI_PATH = "/v1/decisions"  # the path whose errors have OpenAI's format

_IDENTIFIER = re.compile(r"[\w.-]{1,64}")


Confidence = Annotated[
    float,
    Field(
        description="How far the answer is from a guess: 0 where all options are equally likely, 1 where one is "
        "certain. It is not a probability; those are in `probabilities`."
    ),
]


class _Extras(BaseModel):
    renormalised: Literal[True] | None = None
    rationale: str | None = None
    rationales: dict[str, str] | None = None
    prediction_set: list[str] | None = None
    deferred: bool | None = None
    reason_support: float | None = None
    reason_supports: bool | None = None


class NoulAnswer(_Extras):
    type: Literal["noul"]
    noul: float


class ChoiceAnswer(_Extras):
    type: Literal["choice"]
    choice: str
    confidence: Confidence
    probabilities: dict[str, float]


class ScoreAnswer(_Extras):
    type: Literal["score"]
    score: float
    legend: dict[str, Any]
    confidence: Confidence
    probabilities: dict[str, float]


class TokenUsage(BaseModel):
    """Tokens of the text before truncation, and of the rationales."""

    input_tokens: int
    output_tokens: int


class TextRead(BaseModel):
    """How many tokens the text has, how many of them the model has read, and whether some were left out."""

    tokens: int
    tokens_read: int
    cut: bool


class SystemOneReply(BaseModel):
    model: str
    text: TextRead
    answers: dict[str, NoulAnswer | ChoiceAnswer | ScoreAnswer]
    usage: TokenUsage
    rationales: dict[str, str] | None = None


class PredicateAnswer(_Extras):
    type: Literal["predicate"]
    name: str | None
    probability: float


class ChoiceProbability(BaseModel):
    value: str
    probability: float


class ChoicesAnswer(_Extras):
    type: Literal["choice"]
    name: str | None
    choice: str
    confidence: Confidence
    probabilities: list[ChoiceProbability]


class LevelProbability(BaseModel):
    value: int
    label: str
    probability: float


class LevelsAnswer(_Extras):
    type: Literal["score"]
    name: str | None
    score: float
    confidence: Confidence
    probabilities: list[LevelProbability]


class InputDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(BaseModel):
    reasoning_tokens: int


class DecisionsUsage(TokenUsage):
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class DecisionsReply(BaseModel):
    model: str
    text: TextRead
    answers: list[PredicateAnswer | ChoicesAnswer | LevelsAnswer]
    usage: DecisionsUsage
    rationales: dict[str, str] | None = None


class ExplainReply(BaseModel):
    """A rationale, and the decision if no label was given."""

    model: str
    text: TextRead
    label: str
    rationale: str
    usage: TokenUsage
    probabilities: dict[str, float] | None = None
    reason_support: float | None = None
    reason_supports: bool | None = None


class ModelEntry(BaseModel):
    """A model as System One's clients list it, and what it can answer."""

    name: str
    description: str
    release_date: str
    labels: list[str]
    ordinal: bool
    explains: bool
    explains_any_label: bool


class OpenAIModel(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsReply(BaseModel):
    models: list[ModelEntry]
    object: Literal["list"]
    data: list[OpenAIModel]


class Problem(BaseModel):
    loc: list[str | int]
    msg: str
    type: str


class ErrorReply(BaseModel):
    """An error on any path except `/v1/decisions`: a sentence, or one problem per invalid value."""

    detail: str | list[Problem]


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorReply(BaseModel):
    """An error on `/v1/decisions`."""

    error: OpenAIError


def choice_confidence(probabilities: Sequence[float]) -> float:
    """Excess of the largest probability over a uniform one, scaled to 0 to 1 (as transformers 5.23 computes it)."""
    n = len(probabilities)
    return 1.0 if n == 1 else max(0.0, (max(probabilities) - 1 / n) / (1 - 1 / n))


def score_confidence(probabilities: Sequence[float]) -> float:
    """One minus E|level - most probable level|, relative to the expected distance from the middle under a uniform
    distribution; at least 0 (as transformers 5.23 computes it)."""
    n = len(probabilities)
    if n == 1:
        return 1.0
    best = max(range(n), key=probabilities.__getitem__)
    distance = sum(p * abs(level - best) for level, p in enumerate(probabilities))
    uniform = sum(abs(level - (n - 1) / 2) for level in range(n)) / n
    return max(0.0, 1 - distance / uniform)


def score_of(probabilities: Sequence[float]) -> float:
    """E[level], levels counted from 0."""
    return sum(level * p for level, p in enumerate(probabilities))


def systemone_reply(
    model: ServedModel,
    asked: Sequence[Asked],
    decision: Decision,
    want: Wanted,
    reasons: Mapping[str, Reason],
    output_tokens: int,
) -> dict[str, Any]:
    """The body of a System One reply; `output_tokens` counts those of its rationales."""
    answers: dict[str, Any] = {}
    for question in asked:
        found = question.distribution(decision)
        answer: dict[str, Any]
        if question.kind == "yes_no":
            answer = {"type": "noul", "noul": found[question.labels[0]]}
        elif question.kind == "choice":
            answer = {
                "type": "choice",
                "choice": question.chosen(decision),
                "confidence": choice_confidence(list(found.values())),
                "probabilities": found,
            }
        else:
            levels = list(found.values())
            answer = {
                "type": "score",
                "score": score_of(levels),
                "legend": {str(level): words for level, words in enumerate(question.legend)},
                "confidence": score_confidence(levels),
                "probabilities": {str(level): p for level, p in enumerate(levels)},
            }
        answers[str(question.name)] = answer | _extras(model, question, decision, want, reasons)
    usage = {"input_tokens": decision.tokens, "output_tokens": output_tokens}
    reply: dict[str, Any] = {"model": model.name, "text": text_read(decision), "answers": answers, "usage": usage}
    if want.rationale:
        reply["rationales"] = {name: answer["rationale"] for name, answer in answers.items()}
    return reply


def decisions_reply(
    model: ServedModel,
    asked: Sequence[Asked],
    decision: Decision,
    want: Wanted,
    reasons: Mapping[str, Reason],
    output_tokens: int,
) -> dict[str, Any]:
    """The body of a decisions reply; `rationales` of unnamed questions are keyed by their index, from 0."""
    answers: list[dict[str, Any]] = []
    for question in asked:
        found = question.distribution(decision)
        answer: dict[str, Any]
        if question.kind == "yes_no":
            answer = {"type": "predicate", "name": question.name, "probability": found[question.labels[0]]}
        elif question.kind == "choice":
            answer = {
                "type": "choice",
                "name": question.name,
                "choice": question.chosen(decision),
                "confidence": choice_confidence(list(found.values())),
                "probabilities": [{"value": label, "probability": p} for label, p in found.items()],
            }
        else:
            answer = {
                "type": "score",
                "name": question.name,
                "score": score_of(list(found.values())),
                "confidence": score_confidence(list(found.values())),
                "probabilities": [
                    {"value": level, "label": label, "probability": p} for level, (label, p) in enumerate(found.items())
                ],
            }
        answers.append(answer | _extras(model, question, decision, want, reasons))
    usage = {
        "input_tokens": decision.tokens,
        "output_tokens": output_tokens,
        "total_tokens": decision.tokens + output_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    reply: dict[str, Any] = {"model": model.name, "text": text_read(decision), "answers": answers, "usage": usage}
    if want.rationale:
        names = [str(index) if question.name is None else question.name for index, question in enumerate(asked)]
        reply["rationales"] = {name: answer["rationale"] for name, answer in zip(names, answers, strict=True)}
    return reply


def text_read(decision: Decision) -> dict[str, Any]:
    """How much of the text a decision is based on."""
    return {"tokens": decision.tokens, "tokens_read": decision.tokens_read, "cut": decision.cut}


def support_of(reason: Reason) -> dict[str, Any]:
    """Whether a reason supports its label, where reasons are checked."""
    if reason.supports is None:
        return {}
    return {"reason_support": reason.support, "reason_supports": reason.supports}


def _extras(
    model: ServedModel, question: Asked, decision: Decision, want: Wanted, reasons: Mapping[str, Reason]
) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    chosen = question.chosen(decision)
    deferred = model.reviewed(decision, reasons.get(chosen)).deferred
    if question.renormalised(decision):
        extras["renormalised"] = True
    if want.rationale:
        reason = reasons[chosen]
        extras |= {"rationale": reason.text, **support_of(reason)}
    if want.labels:
        extras["rationales"] = {label: reasons[label].text for label in want.labels}
    if want.prediction_set:
        extras["prediction_set"] = list(decision.prediction_set)
    if want.deferral or decision.cut or deferred != decision.deferred:
        extras["deferred"] = deferred
    return extras


def models_reply(models: Sequence[ServedModel]) -> dict[str, Any]:
    """The list of models, in both formats side by side."""
    entries = [
        {
            "name": model.name,
            "description": model.description,
            "release_date": model.created[:10],
            "labels": list(model.labels.values),
            "ordinal": model.labels.ordinal,
            "explains": model.explains,
            "explains_any_label": model.explains_any_label,
        }
        for model in models
    ]
    return {"models": entries, "object": "list", "data": [openai_model(model) for model in models]}


def openai_model(model: ServedModel) -> dict[str, Any]:
    """A model in the format of OpenAI's clients."""
    created = int(datetime.fromisoformat(model.created).timestamp())
    return {"id": model.name, "object": "model", "created": created, "owned_by": "reason2decide"}


def shown(location: Sequence[str | int]) -> list[str | int]:
    """A location in a request without the caller's own words: keys of the interfaces, numbers, and question names
    that are identifiers are kept; other parts become `...`."""
    kept: list[str | int] = []
    for before, part in zip(("", *location), location, strict=False):
        known = isinstance(part, int) or part in WORDS or (before == "questions" and _IDENTIFIER.fullmatch(part))
        kept.append(part if known else "...")
    return kept

"""Define calls to a model and their answers. Texts are in no repr, so no log or traceback shows them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from reason2decide.errors import UserError
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.structured import form_in_words, strict_schema

# Settings that the client itself fills in.
RESERVED_SETTINGS = frozenset(
    {"model", "messages", "response_format", "stream", "stream_options", "n", "state", "input", "questions"}
)

TOKEN_LIMITS = ("max_completion_tokens", "max_tokens")  # of an answer; complete answers do not depend on them


@dataclass(frozen=True)
class Question:
    """A typed question to a decision model.

    `options` are the choices, or the levels from lowest to highest, each with a description or None; their order is
    part of the question. A `yes_no` question has no options here: they are always "yes" and "no".
    """

    kind: Literal["choice", "score", "yes_no"]
    instructions: str = field(repr=False)
    options: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One chat completion.

    `id` is for the caller and is not sent. `settings` go into the request unchanged (`temperature`, `max_tokens`,
    `seed`, `logprobs`, ...). With `schema` the answer must be a JSON object that this model validates.
    """

    id: str
    messages: Sequence[Mapping[str, str]] = field(repr=False)
    schema: type[BaseModel] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt_version: str = ""

    def __post_init__(self) -> None:
        _check(self.settings)

    def texts(self) -> list[str]:
        """Everything the model reads."""
        asked = [message["content"] for message in self.messages]
        if self.schema is None:
            return asked
        return [*asked, form_in_words(self.schema), json.dumps(strict_schema(self.schema))]

    def max_output_tokens(self) -> int | None:
        """The longest answer that the settings allow; None if they set no limit."""
        return next((int(self.settings[name]) for name in TOKEN_LIMITS if name in self.settings), None)

    @property
    def greedy(self) -> bool:
        """Whether the model would answer in the same way again."""
        return self.settings.get("temperature") == 0

    def _content(self) -> dict[str, Any]:
        schema = None if self.schema is None else strict_schema(self.schema)
        messages = [[message["role"], message["content"]] for message in self.messages]
        return {"messages": messages, "schema": schema}


@dataclass(frozen=True)
class DecisionCall:
    """Typed questions about one text, for the dialects `systemone` and `decisions`; no text is generated."""

    id: str
    state: str = field(repr=False)
    questions: Mapping[str, Question]
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt_version: str = ""

    def __post_init__(self) -> None:
        _check(self.settings)

    def texts(self) -> list[str]:
        """Everything the model reads; the state once for each question, as servers send it."""
        words = [self.state] * len(self.questions)
        for question in self.questions.values():
            words += [question.instructions, *question.options, *filter(None, question.options.values())]
        return words

    def max_output_tokens(self) -> int | None:
        """0: decision models write no text."""
        return 0

    @property
    def greedy(self) -> bool:
        """Decision models compute probabilities and draw nothing."""
        return True

    def _content(self) -> dict[str, Any]:
        questions = [[name, q.kind, q.instructions, list(q.options.items())] for name, q in self.questions.items()]
        return {"state": self.state, "questions": questions}


AnyCall = Call | DecisionCall


def _check(settings: Mapping[str, Any]) -> None:
    if taken := settings.keys() & RESERVED_SETTINGS:
        raise UserError(f"the setting {min(taken)!r} cannot be given; the client fills it in itself")


def call_key(endpoint: Endpoint, call: AnyCall) -> str:
    """Hex SHA-256 of everything that a complete answer depends on: two calls with the same key are the same call.

    So the limit of tokens does not count. Settings are sorted by name. Options and questions are not: a model may
    answer differently in another order.
    """
    where = [endpoint.base_url, endpoint.dialect, endpoint.model]
    settings = sorted((name, value) for name, value in call.settings.items() if name not in TOKEN_LIMITS)
    canonical = json.dumps([*where, call._content(), settings], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Usage:
    """Tokens read and written, as counted by the server; 0 if it does not say."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer, its natural log-probability, and those of the likeliest tokens at its position."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer.

    `text` is the message, or for a decision model the JSON of its answers; `parsed` is the validated object of a call
    with a schema; `probabilities` has question -> option -> probability, None for a refused question. `model` is the
    name that the server gave; `key` and `created` (UTC, ISO 8601) identify the entry in the log. `cached` means that
    nothing was sent for it.
    """

    key: str
    text: str = field(repr=False)
    finish_reason: str
    model: str
    usage: Usage
    created: str
    parsed: BaseModel | None = field(default=None, repr=False)
    probabilities: Mapping[str, Mapping[str, float] | None] | None = None
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    cached: bool = False


@dataclass(frozen=True)
class Failure:
    """A call without a usable answer.

    `kind` is one of deadline, timeout, connection, http_STATUS, server_error (an error in a reply of status 200),
    invalid_response (not a reply of the protocol), too_large, invalid_answer (not the requested object), cut_off (the
    answer ended at the token limit), looped (the model repeated itself) or refused. `message` may go into a log;
    `reason` has the server's own words without those of the record; `text` is what the model wrote, if anything.
    `cached` means that an earlier run met it and nothing was sent: a model at temperature 0 would do the same again.
    """

    key: str
    kind: str
    message: str
    attempts: int
    text: str | None = field(default=None, repr=False)
    reason: str = ""
    cached: bool = False

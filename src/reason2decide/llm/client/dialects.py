"""Write requests and read replies in the three protocols; replies are checked before use.

Replies are read as plain JSON rather than through a client library's typed objects: servers omit fields that those
require, and building them takes longer than sending the request (`benchmarks/llm_client.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reason2decide.llm.client.calls import AnyCall, Call, DecisionCall, Question, TokenLogprob, Usage
from reason2decide.llm.client.endpoint import Dialect, Endpoint, EndpointError
from reason2decide.llm.client.streaming import REASONING, joined
from reason2decide.syntax import storable

PATHS: Mapping[Dialect, str] = {"chat": "/chat/completions", "systemone": "/systemone", "decisions": "/decisions"}
ROUNDING = 0.005  # ours: of each probability, since they are sent rounded, sometimes to two places


@dataclass(frozen=True)
class Reply:
    """A server's answer; `refused` means that the model declined."""

    text: str
    finish_reason: str
    model: str
    usage: Usage | None
    refused: bool = False
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def cut_off(self) -> bool:
        """Whether it ended at the token limit."""
        return self.finish_reason == "length"


def request_body(endpoint: Endpoint, call: AnyCall) -> dict[str, Any]:
    """Make the JSON body of a call, without a response format.

    Raises:
        EndpointError: the endpoint's dialect cannot carry this kind of call.
    """
    if isinstance(call, Call) != (endpoint.dialect == "chat"):
        raise EndpointError(
            f"the dialect {endpoint.dialect!r} cannot carry this call; use 'chat' for text, 'systemone' or 'decisions' "
            "for decisions with probabilities"
        )
    body: dict[str, Any] = {"model": endpoint.model, **call.settings}
    if isinstance(call, Call):
        messages = [dict(message) for message in call.messages]
        return {**body, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    if endpoint.dialect == "systemone":
        return {**body, "state": call.state, "questions": {n: _systemone(q) for n, q in call.questions.items()}}
    return {**body, "input": call.state, "questions": [_decisions(n, q) for n, q in call.questions.items()]}


def _systemone(question: Question) -> dict[str, Any]:
    if question.kind == "yes_no":
        return {"type": "noul", "instructions": question.instructions}
    criteria: Any = dict(question.options)
    if question.kind == "score":  # levels are plain words there
        criteria = [f"{name}: {words}" if words else name for name, words in question.options.items()]
    return {"type": question.kind, "instructions": question.instructions, "criteria": criteria}


def _decisions(name: str, question: Question) -> dict[str, Any]:
    if question.kind == "yes_no":
        return {"type": "predicate", "name": name, "instructions": question.instructions}
    key, listed = ("value", "choices") if question.kind == "choice" else ("label", "levels")
    options = [{key: o, **({"description": words} if words else {})} for o, words in question.options.items()]
    return {"type": question.kind, "name": name, "instructions": question.instructions, listed: options}


def read_reply(endpoint: Endpoint, call: AnyCall, body: Any) -> Reply:
    """Read the parsed body of a reply of status 200.

    Raises:
        ValueError: it is not a reply of the protocol to this call; the message quotes nothing of it.
    """
    try:
        if isinstance(call, Call):
            return _read_chat(body)
        answers = body["answers"]
        read_probabilities(endpoint.dialect, call, answers)
        usage = _usage(body, "input_tokens", "output_tokens")
        return Reply(storable(json.dumps(answers)), "stop", storable(str(body.get("model", ""))), usage)
    except (KeyError, TypeError, IndexError, AttributeError):
        raise ValueError("the reply lacks what the protocol requires") from None


def parsed_body(content: bytes) -> Any:
    """Parse a reply's bytes.

    Raises:
        ValueError: they are not JSON; the message quotes nothing of them.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("the reply is not valid JSON") from None


def error_in(body: Any) -> Any:
    """What a server says instead of an answer, in a body of whatever status; None if it reports no error.

    Servers put it under `error` (OpenAI, llama.cpp), under `detail` (FastAPI), or call the object itself an error
    (vLLM before 0.10).
    """
    if not isinstance(body, dict):
        return None
    if body.get("object") == "error":
        return body
    return body.get("error") or (body.get("detail") if "choices" not in body and "answers" not in body else None)


def error_words(error: Any) -> str:
    """The words of an error: its message, or those of its parts."""
    if isinstance(error, list):
        return "; ".join(filter(None, map(error_words, error)))
    if isinstance(error, dict):
        return error_words(error.get("message") or error.get("msg") or error.get("type"))
    return error if isinstance(error, str) else ""


def _usage(body: Mapping[str, Any], read: str, written: str) -> Usage | None:
    usage = body.get("usage")
    if not isinstance(usage, dict) or not isinstance(usage.get(read), int):
        return None
    return Usage(usage[read], usage.get(written) or 0)


def _read_chat(body: Mapping[str, Any]) -> Reply:
    # One answer was requested; if a server sends more, `index` says which is the first.
    choice = next((choice for choice in body["choices"] if choice.get("index", 0) == 0), None)
    if choice is None:
        raise ValueError("the reply has no first answer")
    message = choice["message"]
    finish_reason = str(choice.get("finish_reason") or "unknown")
    return Reply(
        text=storable(joined(message.get("content")) or _concluded_reasoning(message)),
        finish_reason=finish_reason,
        model=storable(str(body.get("model", ""))),
        usage=_usage(body, "prompt_tokens", "completion_tokens"),
        refused=bool(message.get("refusal")) or finish_reason == "content_filter",
        logprobs=_read_logprobs(choice.get("logprobs")),
    )


def _concluded_reasoning(message: Mapping[str, Any]) -> str:
    """The reasoning of a message without content, if it ends in an object.

    Servers that separate reasoning from answers take an answer without reasoning for the reasoning itself.
    """
    reasoning = next((joined(message[name]) for name in REASONING if message.get(name)), "")
    return reasoning if reasoning.rstrip("` \n").endswith("}") else ""


def _read_logprobs(given: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...] | None:
    """Read the log-probabilities; None if there are none for the tokens written.

    A null stands for a probability that the server does not know or that is 0: a likely token without one is left out.
    """
    tokens = (given or {}).get("content")
    if not tokens or not all(_known(token["logprob"]) for token in tokens):
        return None
    return tuple(
        TokenLogprob(
            storable(token["token"]),
            float(token["logprob"]),
            tuple(
                (storable(top["token"]), float(top["logprob"]))
                for top in token.get("top_logprobs") or ()
                if _known(top["logprob"])
            ),
        )
        for token in tokens
    )


def _known(logprob: float | None) -> bool:
    return logprob is not None and not math.isnan(logprob)


def read_probabilities(dialect: Dialect, call: DecisionCall, answers: Any) -> dict[str, dict[str, float] | None]:
    """Read question -> option -> probability, in the call's order; None if the model refused a question.

    Raises:
        ValueError, KeyError, TypeError: the answers do not fit the questions.
    """
    named = answers if dialect == "systemone" else _by_name(answers, list(call.questions))
    return {name: _distribution(dialect, question, named[name]) for name, question in call.questions.items()}


def read_logged_probabilities(dialect: Dialect, call: DecisionCall, text: str) -> dict[str, dict[str, float] | None]:
    """Read the same from a reply's text, as stored in the log."""
    return read_probabilities(dialect, call, json.loads(text))


def _by_name(answers: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The answers of a `decisions` reply by question name, since order alone cannot be checked."""
    named: dict[str, Mapping[str, Any]] = {}
    for answer in answers:
        if answer["name"] not in names:
            raise ValueError("the reply answers a question that was not asked")
        if named.setdefault(answer["name"], answer) != answer:
            raise ValueError("a question has two answers")
    return named


def _distribution(dialect: Dialect, question: Question, answer: Mapping[str, Any]) -> dict[str, float] | None:
    options = list(question.options)
    if answer["type"] == "refusal":
        return None
    if question.kind == "yes_no":
        p = answer["noul" if dialect == "systemone" else "probability"]
        found = {"yes": p, "no": 1 - p}
        options = ["yes", "no"]
    elif dialect == "decisions":
        key = "value" if question.kind == "choice" else "label"
        found = {entry[key]: entry["probability"] for entry in answer["probabilities"]}
    elif question.kind == "choice":
        found = answer["probabilities"]
    else:
        found = {options[int(level)]: p for level, p in answer["probabilities"].items()}
    ordered = {option: float(found[option]) for option in options}
    within = ROUNDING * len(options) + 1e-6
    fits = math.isclose(sum(ordered.values()), 1, rel_tol=0, abs_tol=within)
    if len(found) != len(options) or min(ordered.values()) < 0 or not fits:
        raise ValueError("the probabilities are not a distribution over the given options")
    return ordered

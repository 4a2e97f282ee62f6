"""Get objects from models' answers: a tolerant JSON parser, the schema to request, the words that request it.

The package json-repair was tried and not taken: it is as fast, but completes what was cut off, makes an object of
`{"a" "b"}`, and fails where a model writes about the object before and after it.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)

MAX_STARTS = 100  # ours: opening braces to try; bounds the work that a garbled answer can cause

FORM_WORDS = "Answer with one JSON object and nothing else. It must be valid under this JSON schema:\n{schema}"
HIDDEN = ("title", "maxLength")  # what only servers and programs read in a schema
REPAIR_WORDS = "That answer cannot be used: {problem}. Answer again, with one JSON object and nothing else."

# A string that does not end takes the rest, so that each character is read once.
_STRING_OR_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*(?:"|\\?\Z))|,(?=\s*[}\]])', re.DOTALL)
_THINKING = re.compile(r"<(?P<end>/)?(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_AFTER_THE_OBJECT = re.compile(r"[\s`]*")  # what may follow in an answer that was cut off: the end of a code fence


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


# Not strict: models write line breaks inside strings.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_reject)


def conclusion(text: str) -> str:
    """What an answer says after its thinking, `<think>...</think>` or the like; empty if the thinking has no end."""
    marks = list(_THINKING.finditer(text))
    if not marks:
        return text
    return text[marks[-1].end() :] if marks[-1]["end"] else ""


def parse_object(text: str, *, cut_off: bool = False) -> dict[str, Any]:
    """Find the JSON object in an answer, whatever surrounds it (prose, code fences); trailing commas are dropped.

    The last of several objects counts, where models put their conclusion; an empty one only if there is no other. What
    a model writes while it thinks does not count.

    Args:
        cut_off: the answer ended at the token limit; then only an object at its very end is the conclusion.

    Raises:
        ValueError: there is no JSON object.
    """
    text = conclusion(text)
    found: list[dict[str, Any]] = []
    for _ in range(MAX_STARTS):
        brace = text.find("{")
        if brace < 0:
            break
        try:
            value, text = _decode(text[brace:])
            found.append(value)
        except (ValueError, RecursionError):
            text = text[brace + 1 :]
    if not found:
        raise ValueError("it holds no JSON object")
    if cut_off and not _AFTER_THE_OBJECT.fullmatch(text):
        raise ValueError("it was cut off before its conclusion")
    return next((value for value in reversed(found) if value), {})


def _decode(text: str) -> tuple[dict[str, Any], str]:
    """Decode the object at the beginning of `text`, and return it with the rest."""
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        if text[error.pos : error.pos + 1] not in ("}", "]", ","):  # where a decoder stops at a trailing comma
            raise
        text = _STRING_OR_TRAILING_COMMA.sub(lambda match: match[1] or "", text)
        value, end = _DECODER.raw_decode(text)
    return value, text[end:]


class InvalidAnswer(ValueError):
    """An answer is not the requested object.

    The message names only kinds of mistakes and may go into a log; `problem` is for the model and may quote it.
    """

    def __init__(self, message: str, problem: str) -> None:
        super().__init__(message)
        self.problem = problem


def validated(schema: type[T], text: str, *, cut_off: bool = False) -> T:
    """Parse and validate the object of `schema` in an answer; `cut_off` as in `parse_object`.

    Raises:
        InvalidAnswer: the answer has none.
    """
    try:
        return schema.model_validate(parse_object(text, cut_off=cut_off))
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        problem = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'object'}: {e['msg']}" for e in mistakes)
        raise InvalidAnswer(", ".join(sorted({e["type"] for e in mistakes})), problem) from None
    except ValueError as error:
        raise InvalidAnswer(str(error), str(error)) from None


@lru_cache(maxsize=256)
def strict_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema in the form that servers can enforce: every field required, no others allowed.

    Source: OpenAI's structured outputs ("supported schemas"). Do not change the result: it is cached.
    """
    result: dict[str, Any] = _strict(schema.model_json_schema())
    return result


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(value) for key, value in node.items() if key != "default"}
    if node.get("type") == "object" and "properties" in node:
        strict |= {"required": list(node["properties"]), "additionalProperties": False}
    return strict


def asking_for(body: dict[str, Any], schema: type[BaseModel]) -> dict[str, Any]:
    """Make the request for an object of `schema`: in words to the model, and as a format for the server to enforce.

    The words stand at the end of the system prompt, or before all else: with what does not change between calls, so
    that a server reads it once. Many servers ignore the format, which is then not told to the model by anybody else.
    """
    first, *rest = body["messages"]
    parts = [first["content"], form_in_words(schema)]
    words = "\n\n".join(parts if first["role"] == "system" else reversed(parts))
    form = {"name": schema.__name__, "schema": strict_schema(schema), "strict": True}
    return {
        **body,
        "messages": [{**first, "content": words}, *rest],
        "response_format": {"type": "json_schema", "json_schema": form},
    }


@lru_cache(maxsize=256)
def form_in_words(schema: type[BaseModel]) -> str:
    """The request for an object, to the model.

    Options that have a description are not repeated: they stand in the prompt, and differ from record to record.
    """
    return FORM_WORDS.format(schema=json.dumps(_spelt(strict_schema(schema)), ensure_ascii=False))


def _spelt(node: Any) -> Any:
    if isinstance(node, list):
        return [_spelt(item) for item in node]
    if not isinstance(node, dict):
        return node
    hidden = (*HIDDEN, "enum") if "description" in node and "enum" in node else HIDDEN
    return {key: _spelt(value) for key, value in node.items() if key not in hidden}


def repairing(body: dict[str, Any], text: str, error: InvalidAnswer) -> dict[str, Any]:
    """Repeat the request, with the answer it got and what is wrong with it."""
    turn = [
        {"role": "assistant", "content": text},
        {"role": "user", "content": REPAIR_WORDS.format(problem=error.problem)},
    ]
    return {**body, "messages": [*body["messages"], *turn]}

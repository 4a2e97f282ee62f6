"""The text that a model decides on, of what a request has: a string, an object of columns, messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reason2decide.data.cases import FORMS, case_of, described
from reason2decide.data.recipe import InputRecipe, listed
from reason2decide.errors import DataError
from reason2decide.serve.wire import Content, InputItem, InputPart, Location, Refused, TooManyCharacters

MAX_VALUES = 10_000  # values of a state that is not plain text: OpenAI's decisions


def text_of(recipe: InputRecipe | None, state: Content, most: int, location: Location = ("body", "state")) -> str:
    """The text of a state, made as the model's training texts were (`InputRecipe`); see `state_text` if there is none.

    Raises:
        Refused: a column is missing or unknown, or a string is no text that the recipe makes; as `state_text`.
    """
    if recipe is None:
        return state_text(state, most)
    if isinstance(state, str):
        if state.strip() and not recipe.has_made(state):
            raise Refused(f"{described(recipe)}; send an object of them", location)
        return state
    if isinstance(state, list):
        raise Refused(f"{described(recipe)}; send an object, not a list", location)
    if recipe.source not in FORMS:
        missing = [name for name in recipe.text if name not in state]
        unknown = len(state.keys() - {*recipe.text, recipe.id, recipe.group})
        if missing or unknown:
            lacks = f"it has no {listed(missing)}" if missing else f"{unknown} of its keys are none of them"
            raise Refused(f"{described(recipe)}; {lacks} (null where nothing is known)", location)
    try:
        return case_of(recipe, state, "the state", "0").text
    except DataError:  # its message may quote what was sent
        raise Refused(f"{described(recipe)}; the state is empty, or has values that are no text", location) from None


def state_text(state: Content, most: int) -> str:
    """The text of a state: a string is the text; otherwise one line `key: value` for each value that is not null.

    The key is the path to the value, keys joined by spaces; items of a list have the list's key, or none if it has
    none. Values other than strings are written as JSON.

    Raises:
        Refused: it contains too many values, or more than `most` characters with their keys.
    """
    if isinstance(state, str):
        return state
    lines, length = [], 0
    for line in _lines(state, "", most):
        lines.append(line)
        length += len(line) + 1
        if length > most:
            raise TooManyCharacters(most)
        if len(lines) > MAX_VALUES:
            raise Refused(f"the text contains more than {MAX_VALUES} values; send fewer, or plain text")
    return "\n".join(lines)


def _lines(value: Any, key: str, most: int) -> Iterator[str]:
    if len(key) > most:
        raise TooManyCharacters(most)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _lines(inner, f"{key} {name}".strip(), most)
    elif isinstance(value, list):
        for inner in value:
            yield from _lines(inner, key, most)
    elif value is not None:
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"{key}: {text}" if key else text


def input_text(given: str | Sequence[InputItem], most: int, recipe: InputRecipe | None = None) -> str:
    """The text of a decisions input: what users and assistants said and what tools returned, in lines.

    Instructions from systems and developers, and tool calls, are left out. Where texts are made of columns, the input
    is text of that form, or a single part with an object of them.

    Raises:
        Refused: one of the parts is an image, or they have more than `most` characters; as `text_of`.
    """
    if isinstance(given, str):
        return text_of(recipe, given, most, ("body", "input"))
    only = _only_part(given)
    if recipe is not None and only is not None and only.data is not None:
        return text_of(recipe, only.data, most, ("body", "input"))
    texts: list[str] = []
    for index, item in enumerate(given):
        said = item.content if item.type == "message" and item.role in ("user", "assistant") else None
        for part in (said, item.output):
            texts += [part] if isinstance(part, str) else [_part(one, index, most) for one in part or ()]
        if sum(map(len, texts)) > most:
            raise TooManyCharacters(most)
    return text_of(recipe, "\n".join(text for text in texts if text), most, ("body", "input"))


def _only_part(items: Sequence[InputItem]) -> InputPart | None:
    """The part of an input that has nothing else."""
    contents = [content for item in items for content in (item.content, item.output) if content is not None]
    only = contents[0] if len(contents) == 1 else None
    return only[0] if isinstance(only, list) and len(only) == 1 else None


def _part(part: InputPart, index: int, most: int) -> str:
    if part.type == "input_image":
        raise Refused("this model reads text only; leave images out", ("body", "input", index))
    return state_text(part.data, most) if part.type == "input_json" and part.data is not None else part.text or ""

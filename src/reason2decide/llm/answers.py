"""Define the object a model is asked for: a rationale and, where it decides, a label restricted to its set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, WithJsonSchema, create_model

from reason2decide.llm.settings import MAX_WORDS, max_characters


class Written(BaseModel):
    """A rationale for a given decision."""

    rationale: str


class Decided(Written):
    """A rationale and then a decision: writing the reasons first lets the model think them through."""

    label: str


class Argued(Written):
    """The case for a given decision, whether anything in the text speaks for it, and the decision argued for."""

    supported: bool
    label: str


def written_schema(max_words: int = MAX_WORDS) -> type[Written]:
    """`Written` with a rationale that a server can end at `max_characters`."""
    return _restricted(Written, None, max_words, listed=False)


def decided_schema(choices: tuple[str, ...], max_words: int = MAX_WORDS, *, listed: bool = False) -> type[Decided]:
    """`Decided` with a label from `choices`, both in the schema sent to the server and in the check of the answer.

    `listed` means that the choices are those of one record, which its prompt lists: the words that ask for the object
    then do not repeat them, so that they are the same for all records.
    """
    return _restricted(Decided, choices, max_words, listed=listed)


def argued_schema(choices: tuple[str, ...], max_words: int = MAX_WORDS, *, listed: bool = False) -> type[Argued]:
    """`Argued` with a label from `choices`, as `decided_schema`."""
    return _restricted(Argued, choices, max_words, listed=listed)


@lru_cache(maxsize=1024)
def _restricted(kind: type[Any], choices: tuple[str, ...] | None, max_words: int, *, listed: bool) -> type[Any]:
    rationale = Annotated[str, WithJsonSchema({"type": "string", "maxLength": max_characters(max_words)})]
    fields: dict[str, Any] = {"rationale": (rationale, ...)}
    if choices is not None:
        form: dict[str, Any] = {"type": "string", "enum": list(choices)}
        if listed:
            form["description"] = "one of the possible decisions, copied letter by letter"
        label = Annotated[str, AfterValidator(partial(_checked, choices=choices)), WithJsonSchema(form)]
        fields["label"] = (label, ...)
    restricted: type[Any] = create_model(kind.__name__, __base__=kind, **fields)
    return restricted


def _checked(label: str, choices: tuple[str, ...]) -> str:
    found = matching_label(label, choices)
    if found is None:
        raise ValueError("it must be one of the possible decisions, copied letter by letter")
    return found


def matching_label(label: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer means: equal apart from case, white space, and surrounding quotes or full stops."""
    if label in choices:
        return label
    alike = [choice for choice in choices if _plain(choice) == _plain(label)]
    return alike[0] if len(alike) == 1 else None


def _plain(label: str) -> str:
    return " ".join(label.casefold().split()).strip("\"'`*. ")

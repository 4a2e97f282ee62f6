"""Define the object a model is asked for: a rationale and, where it decides, a label restricted to its set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, WithJsonSchema, create_model


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


def decided_schema(choices: tuple[str, ...]) -> type[Decided]:
    """`Decided` with a label from `choices`, both in the schema sent to the server and in the check of the answer."""
    return _restricted(Decided, choices)


def argued_schema(choices: tuple[str, ...]) -> type[Argued]:
    """`Argued` with a label from `choices`, as `decided_schema`."""
    return _restricted(Argued, choices)


@lru_cache(maxsize=1024)
def _restricted(kind: type[Any], choices: tuple[str, ...]) -> type[Any]:
    def checked(label: str) -> str:
        found = matching_label(label, choices)
        if found is None:
            raise ValueError("it must be one of the possible decisions, copied letter by letter")
        return found

    form: dict[str, Any] = {"type": "string", "enum": list(choices)}
    label = Annotated[str, AfterValidator(checked), WithJsonSchema(form)]
    restricted: type[Any] = create_model(kind.__name__, __base__=kind, label=(label, ...))
    return restricted


def matching_label(label: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer means: equal apart from case, white space, and surrounding quotes or full stops."""
    if label in choices:
        return label
    alike = [choice for choice in choices if _plain(choice) == _plain(label)]
    return alike[0] if len(alike) == 1 else None


def _plain(label: str) -> str:
    return " ".join(label.casefold().split()).strip("\"'`*. ")

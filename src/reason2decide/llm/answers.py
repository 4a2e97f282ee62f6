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


@lru_cache(maxsize=1024)
def decided_schema(choices: tuple[str, ...]) -> type[Decided]:
    """`Decided` with a label from `choices`, both in the schema sent to the server and in the check of the answer."""

    def checked(label: str) -> str:
        found = matching_label(label, choices)
        if found is None:
            raise ValueError("it must be one of the possible decisions, copied letter by letter")
        return found

    form: dict[str, Any] = {"type": "string", "enum": list(choices)}
    return create_model(
        "Decided", __base__=Decided, label=(Annotated[str, AfterValidator(checked), WithJsonSchema(form)], ...)
    )


def matching_label(label: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer means: equal apart from case, white space, and surrounding quotes or full stops."""
    if label in choices:
        return label
    alike = [choice for choice in choices if _plain(choice) == _plain(label)]
    return alike[0] if len(alike) == 1 else None


def _plain(label: str) -> str:
    return " ".join(label.casefold().split()).strip("\"'`*. ")

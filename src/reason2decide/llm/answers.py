"""The object that a model is asked for: a rationale, and where it decides a label that is held to its set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, WithJsonSchema, create_model


class Written(BaseModel):
    """A rationale for a decision that was given."""

    rationale: str


class Decided(Written):
    """A rationale and then a decision: what is written first can be thought through in writing."""

    label: str


@lru_cache(maxsize=1024)
def decided_schema(choices: tuple[str, ...]) -> type[Decided]:
    """`Decided` whose label is one of `choices`, in a server's schema as in the check of the answer."""

    def held(label: str) -> str:
        found = matching_label(label, choices)
        if found is None:
            raise ValueError("it must be one of the possible decisions, copied letter by letter")
        return found

    form: dict[str, Any] = {"type": "string", "enum": list(choices)}
    return create_model(
        "Decided", __base__=Decided, label=(Annotated[str, AfterValidator(held), WithJsonSchema(form)], ...)
    )


def matching_label(label: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer means: the same but for case, white space, and quotes or a full stop around it."""
    if label in choices:
        return label
    alike = [choice for choice in choices if _plain(choice) == _plain(label)]
    return alike[0] if len(alike) == 1 else None


def _plain(label: str) -> str:
    return " ".join(label.casefold().split()).strip("\"'`*. ")

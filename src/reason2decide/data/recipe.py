"""How the text of a case is made from a row of columns: kept from import to use, so that both make the same text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from reason2decide.data.sources.choices import lift_choices
from reason2decide.errors import DataError
from reason2decide.syntax import Malformed, parse_json

Row = Mapping[str, Any]
Source = Literal["table", "pubmedqa", "bioasq"]
SENTENCE_ENDS = (".", "!", "?")


@dataclass(frozen=True)
class InputRecipe:
    """How a row becomes a text, an id and choices.

    Args:
        source: what the rows are: those of a table, or items of PubMedQA or BioASQ, which have a form of their own.
        text: columns of the text. A single one is the text; several are joined in lines, each after its name.
        id: column of the id.
        group: column of the patient or article.
        choices: column of the record's own choices.
        choices_in_text: the choices are taken out of the text.
        missing: cells that say that there is nothing, besides empty ones.
        delimiter: delimiter of CSV cells; None: the one that the header shows.
        encoding: encoding of CSV files.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    source: Source = "table"
    text: tuple[str, ...] = ()
    id: str | None = None
    group: str | None = None
    choices: str | None = None
    choices_in_text: bool = False
    missing: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str = "utf-8"

    @property
    def joins(self) -> bool:
        """Whether texts are joined from several columns."""
        return len(self.text) > 1

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that a row to decide on must have."""
        return (*self.text, *((self.choices,) if self.choices else ()))

    def text_of(self, where: str, row: Row) -> str:
        """The text of a row, without empty columns.

        Raises:
            DataError: all of them are empty, or a cell contains an object.
        """
        parts = [(name, self.cell(where, row, name, join=True)) for name in self.text]
        lines = [f"{name}: {part}" if self.joins else part for name, part in parts if part is not None]
        if not lines:
            raise DataError(f"{where}: the text is empty; fill in {listed(self.text)} or leave the row out")
        return "\n".join(lines)

    def choices_of(self, where: str, row: Row, text: str) -> tuple[str, dict[str, str] | None]:
        """The text without the choices in it, and the choices by their marks; None if records have none of their own.

        A mark is what stands before a choice in the text, or its key in an object; in a list, the choice itself.

        Raises:
            DataError: a row without choices, or of another form.
        """
        if self.choices_in_text:
            lifted = lift_choices(text)
            if lifted is None:
                raise DataError(
                    f"{where}: no choices in the text; expected at least two, as 'A. ...' and 'B. ...', '(a) ...' and "
                    "'(b) ...' or '1- ...' and '2- ...', after 'Answer Choices:' or on lines at the end"
                )
            return lifted
        if self.choices is None:
            return text, None
        found = row.get(self.choices)
        if isinstance(found, str):
            try:
                found = parse_json(found) if found.lstrip().startswith(("[", "{")) else found.split("|")
            except Malformed:
                found = None
        if isinstance(found, list) and all(isinstance(choice, str) for choice in found):
            found = {choice: choice for choice in found}
        if not isinstance(found, dict) or not all(
            choice is None or isinstance(choice, str) for choice in found.values()
        ):
            kind = type(row.get(self.choices)).__name__
            raise DataError(
                f"{where}: the choices in {self.choices!r} cannot be read from this {kind}; expected a list of "
                'strings, as ["a", "b"] or a|b, or an object, as {"A": "a", "B": "b"}'
            )
        return text, {str(mark): choice.strip() for mark, choice in found.items() if choice and choice.strip()}

    def cell(self, where: str, row: Row, column: str, *, join: bool = False) -> str | None:
        """A cell as a string without surrounding white space; None if it is empty, or says that there is nothing.

        Args:
            join: whether a list is allowed: its sentences are joined by spaces, other items by semicolons.

        Raises:
            DataError: it contains an object, or a list.
        """
        value = row.get(column)
        if join and isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
            items = [written(item) for item in value if not is_null(item)]
            value = (" " if all(item.endswith(SENTENCE_ENDS) for item in items) else "; ").join(filter(None, items))
        if is_null(value):
            return None
        if isinstance(value, (list, tuple, dict)):
            raise DataError(f"{where}: {column!r} contains a {type(value).__name__}; expected text or a number")
        text = written(value)
        return None if not text or text in self.missing else text

    def has_made(self, text: str) -> bool:
        """Whether a text may be one that this recipe has made: a joined one begins with the name of a column."""
        return not self.joins or text.startswith(tuple(f"{name}: " for name in self.text))

    def to_json(self) -> dict[str, Any]:
        """The recipe without what is as by default; also TOML."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        given = {name: value for name, (value, default) in values.items() if value != default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> InputRecipe:
        """Read what `to_json` returned.

        Raises:
            ValueError: it is something else.
        """
        return TypeAdapter(cls).validate_python(value)


def made_of(recipe: InputRecipe | None) -> tuple[object, ...]:
    """What of a recipe decides what a text looks like: equal for a single column of any name, and for none."""
    if recipe is None or (recipe.source == "table" and not recipe.joins and not recipe.choices_in_text):
        return ()
    return recipe.source, recipe.text if recipe.joins else (), recipe.choices_in_text


def written(value: object) -> str:
    """A cell's value as text; a whole number has no decimals, also in a column that pandas made one of floats.

    >>> written(45.0), written("45.0"), written(True)
    ('45', '45.0', 'true')
    """
    if isinstance(value, bool):
        return json.dumps(value)
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def is_null(value: object) -> bool:
    """Whether a cell holds nothing: None, or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def listed(values: Sequence[str]) -> str:
    """Names as listed in messages, at most twenty."""
    return ", ".join(repr(value) for value in values[:20]) + (", ..." if len(values) > 20 else "")

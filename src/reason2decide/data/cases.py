"""Read cases to decide on; a bad one is reported with its place, while a file that cannot be read at all is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from reason2decide.data.predictions import Undecided
from reason2decide.data.recipe import InputRecipe, Row, is_null, listed, written
from reason2decide.data.records import Record, record_from_json
from reason2decide.data.sources import bioasq, pubmedqa
from reason2decide.data.sources.rows import BadRow, JsonTable, OnBad, Place, json_lines, open_table
from reason2decide.errors import DataError, UserError

STANDARD_INPUT = Path("-")
MADE = "text"  # the column of texts that are made already, as the files of a dataset have them
# Sources whose items have a form of their own: how a file is read, and how an item's text is made.
FORMS = {"pubmedqa": (pubmedqa.cases, pubmedqa.item_text), "bioasq": (bioasq.questions, bioasq.question_text)}

_UNNAMED = "(no id)"  # of a row until it is named by its text


def case_of(recipe: InputRecipe | None, row: Row, where: str, id: str) -> Record:
    """A case to decide on, made of a row as the model's training texts were; columns it is not made of play no part.

    A row without any of the recipe's columns may have its text made already, as `text`; without a recipe it must.

    Args:
        id: for a row without an id of its own.

    Raises:
        DataError: columns are missing, or the text is empty, or not one that the recipe makes.
    """
    group = recipe.cell(where, row, recipe.group) if recipe is not None and recipe.group is not None else None
    own = (written(row[name]) for name in (recipe and recipe.id, "id") if name and not is_null(row.get(name)))
    value: dict[str, Any] = {"id": next(filter(None, own), id)}
    if group is not None:
        value["group"] = group
    if isinstance(row.get("choices"), list):
        value["choices"] = row["choices"]
    if recipe is None or (MADE in row and (recipe.source in FORMS or row.keys().isdisjoint(recipe.text))):
        value["text"] = _made(recipe, row, where)
    elif recipe.source in FORMS:
        value["text"] = FORMS[recipe.source][1](where, row)
    else:
        missing = [name for name in recipe.required if name not in row]
        if missing:
            raise DataError(f"{where}: no {listed(missing)}; {described(recipe)}")
        value["text"], marked = recipe.choices_of(where, row, recipe.text_of(where, row))
        value |= {} if marked is None else {"choices": list(dict.fromkeys(marked.values()))}
    return record_from_json(value, where)


def described(recipe: InputRecipe | None) -> str:
    """What the texts of a model are made of, for messages."""
    if recipe is None:
        return f"this model's texts are given as {MADE!r}"
    if recipe.source in FORMS:
        return f"this model's texts are made of {recipe.source} items"
    return f"this model's texts are made of {listed(recipe.required)}"


def _made(recipe: InputRecipe | None, row: Row, where: str) -> str:
    """The text that a row has already."""
    text = row.get(MADE) or ""
    if recipe is not None and isinstance(text, str) and text.strip() and not recipe.has_made(text):
        raise DataError(
            f"{where}: not a text as this model was trained on: {described(recipe)}, each on a line after its name"
        )
    return text


@dataclass(frozen=True)
class Cases:
    """A table of any format that can be imported, a file of PubMedQA or BioASQ, or standard input (`-`).

    Standard input has JSON lines, or a text in each line. A case without an id gets the number of its line.

    Args:
        recipe: how the model's texts are made; None: they are given as they are, in the column `text`.
        text: columns to read in place of the recipe's, in its order; empty: the recipe's.
        id: column to read ids from; None: the recipe's, else `id`.
        delimiter: None: the recipe's, else the one that the header shows.
        encoding: of the file; None: the recipe's for CSV, UTF-8 for others.

    Raises:
        UserError: not as many text columns as the recipe has.
    """

    path: Path
    recipe: InputRecipe | None = None
    text: tuple[str, ...] = ()
    id: str | None = None
    delimiter: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.text and len(self.text) != len(self._columns):
            raise UserError(
                f"{listed(self.text)} given as text, but {described(self.recipe)}: name as many columns, in this order"
            )

    @property
    def _columns(self) -> tuple[str, ...]:
        """The columns that a text is made of, as the model knows them."""
        return (self.recipe.text if self.recipe else ()) or (MADE,)

    def count(self) -> int | None:
        """Number of rows, bad ones included, read to the file's end; None of standard input.

        So a file whose rows cannot be told apart is refused before anything is decided.

        Raises:
            DataError, UserError: as `records`.
        """
        if self.path == STANDARD_INPUT:
            return None
        bad: list[DataError] = []
        return sum(1 for _ in self._rows(bad.append)) + len(bad)

    def records(self, on_bad: OnBad, *, by_text: bool = False) -> Iterator[Record]:
        """Yield the records; a row that is not a case, or repeats an id, goes to `on_bad`, and reading continues.

        Args:
            by_text: name a row without an id by a hash of its text, which it has in any file, and not by its number.

        Raises:
            DataError: the file is missing, its rows cannot be told apart, or it lacks a column.
            UserError: unknown extension, encoding or delimiter.
        """
        seen: set[str] = set()
        for place, row in self._rows(on_bad):
            try:
                record = self._case(row, place, _UNNAMED if by_text else None)
                if record.id == _UNNAMED:
                    record = replace(
                        record, id=f"note {sha256(record.text.encode('utf-8', 'replace')).hexdigest()[:16]}"
                    )
                if record.id in seen:
                    raise DataError(f"{place}: the id {record.id!r} occurs earlier; ids must be unique")
            except DataError as error:
                on_bad(error)
                continue
            seen.add(record.id)
            yield record

    def outcomes(self, name: str) -> Iterator[Record | Undecided]:
        """Each row in order, bad ones as what is wrong with them; ids may repeat.

        Args:
            name: of the file, before the number of a row that has no id.

        Raises:
            DataError, UserError: as `records`.
        """
        bad: list[DataError] = []
        for place, row in self._rows(bad.append):
            yield from self._told_of(bad, name)
            yield self.outcome(row, place, f"{name}:{place.number}")
        yield from self._told_of(bad, name)

    def outcome(self, row: Row, place: Place, own_id: str) -> Record | Undecided:
        """A row as a record, or what is wrong with it; `own_id` is for a row without an id."""
        try:
            return self._case(row, place, own_id)
        except DataError as error:
            found = row.get(self.id_column)
            id = own_id if is_null(found) or not written(found) else written(found)
            return Undecided(id, str(error).removeprefix(f"{place}: "))

    @staticmethod
    def _told_of(bad: list[DataError], name: str) -> Iterator[Undecided]:
        """Empty the list of rows that could not be read."""
        for error in bad:
            assert isinstance(error, BadRow)
            yield Undecided(f"{name}:{error.place.number}", error.problem)
        bad.clear()

    @property
    def id_column(self) -> str:
        """The column that ids are read from."""
        return self.id or (self.recipe and self.recipe.id) or "id"

    def _rows(self, on_bad: OnBad) -> Iterator[tuple[Place, Row]]:
        if self.path == STANDARD_INPUT:
            return self._lines(sys.stdin, on_bad)
        if self.recipe is not None and self.recipe.source in FORMS and not self.text:
            found = FORMS[self.recipe.source][0](self.path)
            return ((Place(where, number), item) for number, (where, item) in enumerate(found, 1))
        return self._table(on_bad)

    def _table(self, on_bad: OnBad) -> Iterator[tuple[Place, Row]]:
        recipe = self.recipe or InputRecipe(text=(MADE,))
        encoding = self.encoding or (recipe.encoding if self.path.suffix.lower() in (".csv", ".tsv") else "utf-8")
        table = open_table(self.path, delimiter=self.delimiter or recipe.delimiter, encoding=encoding)
        found = table.columns()
        needed = [*(self.text or self._columns), *filter(None, (recipe.choices, self.id))]
        missing = [name for name in needed if name not in found]
        made = not self.text and self.id in (None, *found) and MADE in found and set(found).isdisjoint(recipe.text)
        if missing and not made and not isinstance(table, JsonTable):  # each of its objects is looked at
            raise DataError(f"{self.path} has no column {missing[0]!r}; it has {listed(found)}; {self._told}")
        return table.rows(
            {*needed, *recipe.text, *filter(None, (recipe.id, recipe.group)), MADE, "id", "choices"}, on_bad
        )

    @property
    def _told(self) -> str:
        return f"{described(self.recipe)}: give other names for them with --text"

    def _lines(self, lines: Iterable[str], on_bad: OnBad) -> Iterator[tuple[Place, Row]]:
        """The rows of standard input: JSON lines if the first one is an object, else a text in each line."""
        stream = iter(lines)
        first = next((line for line in stream if line.strip()), "")
        if first.lstrip("\ufeff \t").startswith(("{", "[")):
            yield from json_lines(chain([first], stream), "standard input", on_bad)
        elif self.recipe is not None and (self.recipe.joins or self.recipe.source in FORMS):
            raise DataError(f"standard input has plain lines, but {described(self.recipe)}; give a JSON object a line")
        else:
            (column,) = self.text or self._columns
            for number, line in enumerate(chain([first], stream), 1):
                if line.strip():
                    yield Place(f"standard input, line {number}", number), {column: line.strip()}

    def _case(self, row: Row, place: Place, id: str | None = None) -> Record:
        if self.text:
            names = dict(zip(self.text, self._columns, strict=True))
            others = {name: value for name, value in row.items() if name not in (*self._columns, *names)}
            row = others | {name: row[given] for given, name in names.items() if given in row}
        if self.id is not None:
            row = {**row, (self.recipe and self.recipe.id) or "id": row.get(self.id)}
        if id is None:  # a number could be another row's id, where there are ids
            id = f"line {place.number}" if self.id_column in row else str(place.number)
        return case_of(self.recipe, row, str(place), id)

"""Load the rubric: the criteria with their anchored levels, from the package or from the user's file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from reason2decide.errors import UserError
from reason2decide.syntax import Malformed, parse_toml

RUBRIC = "rubric.toml"
LEVELS = (1, 2, 3, 4, 5)
_NAME = re.compile(r"[a-z_]+")


class RubricError(UserError):
    """A rubric is invalid, or has no such criterion."""


@dataclass(frozen=True)
class Criterion:
    """A question about a rationale and a sentence for each level; with `reference` the judge sees the gold answer."""

    name: str
    question: str
    levels: tuple[str, ...]
    reference: bool = False

    def options(self) -> dict[str, str]:
        """Level -> sentence, from lowest to highest."""
        return {str(level): words for level, words in zip(LEVELS, self.levels, strict=True)}


@dataclass(frozen=True)
class Rubric:
    """Criteria by name."""

    version: str
    criteria: Mapping[str, Criterion]

    def chosen(self, names: list[str] | None) -> tuple[Criterion, ...]:
        """Select the criteria with these names, in the rubric's order; all if none is named.

        Raises:
            RubricError: there is no such criterion.
        """
        for name in names or ():
            if name not in self.criteria:
                raise RubricError(f"the rubric has no criterion {name!r}; it has {', '.join(self.criteria)}")
        return tuple(criterion for criterion in self.criteria.values() if not names or criterion.name in names)

    def in_words(self) -> str:
        """Format the rubric for reading."""
        parts = [f"rubric {self.version}"]
        for criterion in self.criteria.values():
            note = " (compared with the gold label and rationale)" if criterion.reference else ""
            parts.append(f"{criterion.name}: {criterion.question}{note}\n{levels_in_words(criterion)}")
        return "\n\n".join(parts)


def levels_in_words(criterion: Criterion) -> str:
    """Format the levels, one per line."""
    return "\n".join(f"{level}: {words}" for level, words in criterion.options().items())


def load_rubric(folder: Path | None = None) -> Rubric:
    """Load the package's rubric, or the user's if `folder` contains a rubric.toml.

    Raises:
        RubricError: the user's file is invalid.
    """
    original = _parse((resources.files("reason2decide.llm.judge") / RUBRIC).read_text("utf-8"), RUBRIC)
    path = folder / RUBRIC if folder else None
    if path is None or not path.is_file():
        return original
    try:
        rubric = _parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RubricError(f"the rubric {path} cannot be read: {error}") from None
    if rubric.version == original.version and rubric != original:
        raise RubricError(f"the rubric {path} needs a version other than the package's, {original.version}")
    return rubric


def _parse(text: str, where: str) -> Rubric:
    try:
        fields = parse_toml(text)
        criteria = {name: _criterion(name, dict(table), where) for name, table in fields["criteria"].items()}
        version = fields["version"]
    except Malformed as error:
        raise RubricError(f"the rubric {where} is {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RubricError(f"the rubric {where} must have a version and [criteria.NAME] tables") from None
    if not isinstance(version, str) or not criteria:
        raise RubricError(f"the rubric {where} must have a version, which is text, and at least one criterion")
    return Rubric(version, criteria)


def _criterion(name: str, fields: dict[str, object], where: str) -> Criterion:
    question, levels = fields.get("question"), fields.get("levels")
    reference = fields.get("reference", False)
    valid = isinstance(levels, list) and len(levels) == len(LEVELS) and all(isinstance(level, str) for level in levels)
    known = fields.keys() <= {"question", "levels", "reference"}
    if not (_NAME.fullmatch(name) and isinstance(question, str) and valid and known and isinstance(reference, bool)):
        raise RubricError(
            f"the criterion {name!r} of the rubric {where} must have a name of the letters a to z and _, a question, "
            f"{len(LEVELS)} levels from lowest to highest, and optionally reference = true"
        )
    assert isinstance(levels, list)
    return Criterion(name, question, tuple(levels), reference)

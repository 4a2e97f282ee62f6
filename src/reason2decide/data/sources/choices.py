"""Extract answer choices from a text, and find the one that a label means."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

HEADING = re.compile(r"\banswer choices\s*:", re.IGNORECASE)
STYLES = (r"{0}[.)]\s", r"\({0}\)\s")  # "A. fever" or "A) fever"; "(a) fever"


def lift_choices(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Split a text into the part before "Answer Choices:" and the choices after it; None if it has no such list.

    Choices are lettered from A, as "A. ..." (MedReason) or "(a) ..." (the Distilling Step-by-Step data), on
    separate lines or in a row. A choice listed twice is kept once.
    """
    headings = list(HEADING.finditer(text))
    if not headings:
        return None
    question, listed = text[: headings[-1].start()], text[headings[-1].end() :]
    if listed.endswith('\n"'):  # MedReason has rows with a stray quotation mark below the choices
        listed = listed[:-1]
    for style in STYLES:
        for before in (r"(?m:^)[ \t]*", r"(?:^|(?<=\s))"):
            choices = _lettered(listed, before + style)
            if len(choices) > 1:
                return question.strip(), tuple(dict.fromkeys(choices))
    return None


def _lettered(listed: str, style: str) -> list[str]:
    """The pieces of `listed` after the markers A, B, C, ... of one style, up to the first missing letter."""
    bounds: list[re.Match[str]] = []
    for letter in ascii_uppercase:
        marker = re.compile(style.format(f"[{letter}{letter.lower()}]"))
        match = marker.search(listed, bounds[-1].end() if bounds else 0)
        if match is None:
            break
        bounds.append(match)
    ends = [*(match.start() for match in bounds[1:]), len(listed)]
    return [listed[match.end() : end].strip() for match, end in zip(bounds, ends, strict=False)]


def match_choice(label: str, choices: Sequence[str]) -> str | None:
    """The choice that `label` means: the equal one, else the only one of another spelling (`plain`)."""
    if label in choices:
        return label
    alike = [choice for choice in choices if plain(choice) == plain(label)]
    return alike[0] if len(alike) == 1 else None


def plain(label: str) -> str:
    """A label without what spellings differ in: case, space, final marks, Unicode form, and 1.0 for 1."""
    folded = " ".join(unicodedata.normalize("NFKC", label).casefold().split()).strip(" .\"'")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", folded)


def spellings(counts: Mapping[str, int]) -> dict[str, str]:
    """The most frequent spelling of each label that is spelled in several ways (`plain`), the plainest of equals."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts, key=lambda label: (-counts[label], label != plain(label), label)):
        alike[plain(label)].append(label)
    return {label: same[0] for same in alike.values() for label in same[1:]}

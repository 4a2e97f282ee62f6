"""Extract answer choices from a text, and find the one that a label means."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from string import ascii_lowercase

HEADING = re.compile(r"\b(?:answer choices|choices|options)\s*:", re.IGNORECASE)
STYLES = (r"{0}(?:[.)]|\.?-)\s", r"\({0}\)\s")  # "A. fever", "A) fever", "1.- fever" or "1- fever"; "(a) fever"
LINE = r"(?m:^)[ \t]*"
IN_A_ROW = r"(?:^|(?<=\s))"
MARKS = (ascii_lowercase, tuple(map(str, range(1, 27))))


def lift_choices(text: str) -> tuple[str, dict[str, str]] | None:
    """Split a text into the question and the choices after it, by their marks; None if it has no list of them.

    Choices are lettered from A or numbered from 1, as "A. ..." (MedReason), "1- ..." (CasiMedicos) or "(a) ..." (the
    Distilling Step-by-Step data). After a heading such as "Answer Choices:" they stand on lines of their own or in a
    row; without one, on lines of their own, to the end.
    """
    if text.endswith('\n"'):  # MedReason has rows with a stray quotation mark below the choices
        text = text[:-1]
    headings = list(HEADING.finditer(text))
    if headings:
        return _lifted(text[: headings[-1].start()], text[headings[-1].end() :], (LINE, IN_A_ROW))
    for style in STYLES:
        for marks in MARKS:
            first = list(re.finditer(LINE + style.format(marks[0]), text, re.IGNORECASE))
            if first and text[: first[-1].start()].strip():
                found = _lifted(text[: first[-1].start()], text[first[-1].start() :], (LINE,))
                if found is not None:
                    return found
    return None


def _lifted(question: str, listed: str, places: Sequence[str]) -> tuple[str, dict[str, str]] | None:
    """The question and the choices listed after it, marked at one of the places; None if there are fewer than two."""
    for style in STYLES:
        for marks in MARKS:
            for place in places:
                choices = _marked(listed, place + style, marks)
                if len(choices) > 1:
                    return question.strip(), choices
    return None


def _marked(listed: str, style: str, marks: Sequence[str]) -> dict[str, str]:
    """The pieces of `listed` after the marks of one style, in their order, up to the first that is missing."""
    bounds: list[re.Match[str]] = []
    for mark in marks:
        match = re.compile(style.format(mark), re.IGNORECASE).search(listed, bounds[-1].end() if bounds else 0)
        if match is None:
            break
        bounds.append(match)
    ends = [*(match.start() for match in bounds[1:]), len(listed)]
    return {mark: listed[match.end() : end].strip() for mark, match, end in zip(marks, bounds, ends, strict=False)}


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

"""Where a note says what a reason cites, and where it denies it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reason2decide.data.words import stem
from reason2decide.evaluation.assertions import assertion_at
from reason2decide.evaluation.metrics.contradiction import phrases

Mark = Literal["", "cited", "denied"]
# Ours: words that say who says or denies something.
_WORDS = "call calls deny denies denied report reports reported say says state states"
_SAYING = {(stem(word),) for word in _WORDS.split()}
MOST_MARKS = 500  # ours: what more of them would show nobody reads; bounds the time that a note takes


@dataclass(frozen=True)
class Segment:
    """A part of a note, and how it is marked."""

    text: str
    mark: Mark


def highlighted(note: str, reason: str | None) -> list[Segment]:
    """The note in parts; those that the reason has too are marked, apart where the note denies them.

    Denied also stands for what the note says of somebody else or of the past. Of overlapping phrases the longest
    counts, and of many the first.

    >>> [(own.text, own.mark) for own in highlighted("Chest pain. No fever.", "Chest pain and fever")]
    [('Chest pain', 'cited'), ('. No ', ''), ('fever', 'denied'), ('.', '')]
    """
    cited = {stems for stems, *_ in phrases(reason or "")} - _SAYING
    found = [own for own in phrases(note) if own[0] in cited] if cited else []
    taken: list[tuple[int, str, int, int]] = []
    covered = bytearray(len(note))
    for _, sentence, offset, start, end in sorted(found, key=lambda own: -len(own[0])):
        if not any(covered[offset + start : offset + end]):
            covered[offset + start : offset + end] = b"\x01" * (end - start)
            taken.append((offset, sentence, start, end))
    segments: list[Segment] = []
    place = 0
    for offset, sentence, start, end in sorted(taken, key=lambda own: own[0] + own[2])[:MOST_MARKS]:
        mark: Mark = "cited" if assertion_at(sentence, start, end) == "present" else "denied"
        segments += [Segment(note[place : offset + start], ""), Segment(note[offset + start : offset + end], mark)]
        place = offset + end
    return [own for own in (*segments, Segment(note[place:], "")) if own.text]

"""Words, and hiding those of the labels: a rationale that repeats its label proves nothing about its reasons."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

WORD = re.compile(r"[^\W_]+")
MASK = "___"
# Ours: English words that carry no content of a note, a label or a rationale.
_FUNCTION_WORDS = """
a an and another any are as at be because been being both but by can could did do does doing done during each
either else every for from further had has have having he her here hers him his how however i if in into is it its
itself just may me might more most must my neither no nor not now of off on once one only or other our out over own
per s same shall she should since so some such t than that the their them then there these they this those though
through to too under until up upon us very was we were what when where whether which while who whom whose why will
with within without would you your
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters and digits."""
    return [word.casefold() for word in WORD.findall(text)]


@lru_cache(maxsize=256)
def _masked_words(labels: tuple[str, ...]) -> frozenset[str]:
    words = [frozenset(words_of(label)) for label in labels]
    return frozenset().union(*(own - STOP_WORDS or own for own in words))


def mask_label_words(text: str, labels: Iterable[str]) -> str:
    """Replace every word of `text` that stands in any of the labels by "___" (ours).

    Whole words count, whatever their case, numbers included; their inflections do not. Stop words stay, except those
    of a label that has nothing else, such as "no". All labels are masked, not the decided one alone: what is masked
    must not tell which it was.
    """
    hidden = _masked_words(tuple(labels))
    return WORD.sub(lambda word: MASK if word.group().casefold() in hidden else word.group(), text)

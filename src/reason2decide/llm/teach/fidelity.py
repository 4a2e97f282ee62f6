"""Compare what a model wrote with what it was given: how much of it is supported, added, dropped or turned around.

All of it compares words, by their stems, and pairs of characters where a script has no spaces (`data/words.py`);
none of it knows what a sentence means.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from reason2decide.data.words import STOP_WORDS, WORD, sentences, stem, units, words_of
from reason2decide.evaluation.assertions import Assertion, assertion_at

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LIST_MARK = re.compile(r"(?:^\s*|[.;:,]\s+)\d+[.)](?=\s)", re.MULTILINE)
_DECISION = re.compile(r"(?:->|=>|\u2192).*", re.DOTALL)
LONG = 5  # ours: letters of a word that is no abbreviation
_COUNTING = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_COUNTING.split())}

# Words that a rewording may add to the text: who speaks, and how sentences are joined.
_FRAMING_WORDS = """
according accordingly additionally also although appear associated become begin call caller case cause complain
concern consider consistent currently date decide decision denies deny despite due experience explain feel follow give
given have having history include indicate lead likely mean mention need note nurse old other patient person possible
presence present rationale reason recommend recommended regarding report require result say show sign since state
suggest support symptom take tell text therefore thus urgency urgent whether without year
"""
_FRAMING = frozenset(stem(word) for word in _FRAMING_WORDS.split())


def content(text: str) -> set[str]:
    """The stems of a text's words that carry content: no stop words, no framing words ("patient", "therefore")."""
    return {stem(unit) for unit in units(text) if unit not in STOP_WORDS} - _FRAMING


def support(written: str, known: str) -> float:
    """The share of what is written, by its content, that the known text has; 0 for nothing (ours)."""
    found = content(written)
    return len(found & content(known)) / len(found) if found else 0.0


def numbers(text: str) -> set[str]:
    """Find the numbers of a text, in normal form: "38,5" is "38.5", "1,000" is "1000", "007" is "7"."""
    return {_plain(match.group()) for match in _NUMBER.finditer(text)}


def cited_numbers(written: str) -> set[str]:
    """The numbers of a text, without those that number its lines."""
    return numbers(_LIST_MARK.sub("", written))


def spelt_numbers(text: str) -> set[str]:
    """The numbers up to twelve that a text spells out."""
    return {_NUMBER_WORDS[word] for word in words_of(text) if word in _NUMBER_WORDS}


def _plain(number: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
        number = number.replace(",", "")
    number = number.replace(",", ".")
    return number if number.count(".") > 1 else f"{float(number):.12g}"


def additions(rewritten: str, known: Sequence[str]) -> dict[str, list[str]]:
    """What a rewritten rationale adds to the texts `known`: {"words": [...], "numbers": [...]}, sorted.

    Words are content words, compared by their stems, without framing words ("patient", "reports", "therefore").
    A spelled-out abbreviation counts as added: only a reader can tell whether it means the same.
    """
    text = "\n".join(known)
    known_stems = {stem(unit) for unit in units(text)} | _FRAMING
    words = {
        unit
        for unit in units(rewritten)
        if not any(character.isdigit() for character in unit)
        and unit not in STOP_WORDS
        and stem(unit) not in known_stems
    }
    known_numbers = numbers(text) | spelt_numbers(text)
    words -= {word for word, number in _NUMBER_WORDS.items() if number in known_numbers}
    new_numbers = cited_numbers(rewritten) - known_numbers
    return {name: sorted(found) for name, found in (("words", words), ("numbers", new_numbers)) if found}


def findings(note: str) -> set[str]:
    """What a rewritten note must keep: its numbers, and its content words of `LONG` letters or more (ours).

    Shorter words may be abbreviations, which are to be spelt out; what stands after an arrow is the note's decision
    ("-> ED"), which a rationale need not repeat.

    >>> sorted(findings("asthma flare, +temp 39+, no CP -> PCP 24h"))
    ['39', 'asthma', 'flar']
    """
    said = _DECISION.sub("", note)
    long = {stem(word) for word in WORD.findall(said) if len(word) >= LONG and not any(map(str.isdigit, word))}
    return (long & content(said)) | cited_numbers(said)


def dropped(rewritten: str, note: str) -> set[str]:
    """The findings of a note that a rewritten one lacks; a synonym counts as lacking (ours)."""
    return findings(note) - content(rewritten) - numbers(rewritten) - spelt_numbers(rewritten)


def turned(rewritten: str, note: str) -> set[str]:
    """The stems of what a note only denies and the rewritten one only affirms, or the other way round (English).

    >>> turned("She has chest pain and no fever.", "no CP, fever 39")
    {'fever'}
    """
    before, after = _asserted(_DECISION.sub("", note)), _asserted(rewritten)
    return {word for word in before.keys() & after.keys() if before[word].isdisjoint(after[word])}


def _asserted(text: str) -> dict[str, set[Assertion]]:
    """What a text asserts of each of its content words; those that follow each other are one finding ("stiff neck")."""
    found: dict[str, set[Assertion]] = defaultdict(set)
    for start, end in sentences(text):
        sentence = text[start:end]
        begin = before = -1
        for word in WORD.finditer(sentence):
            if not content(word.group()):
                continue
            if sentence[before : word.start()] != " ":
                begin = word.start()
            before = word.end()
            found[stem(word.group())].add(assertion_at(sentence, begin, word.end()))
    return found

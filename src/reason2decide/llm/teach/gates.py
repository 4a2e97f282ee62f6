"""Check generated rationales before they may teach: each gate is a pure rule over words, all of them ours.

A gate judges form and provenance, not truth: a rationale that passes all gates can still be wrong. Each errs on the
side of dropping; `docs/llm.md` says how often each drops rationales that are known to be good.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from reason2decide.data.words import STOP_WORDS, WORD, stem, words_of
from reason2decide.llm.prompt_files import Prompt
from reason2decide.llm.settings import MAX_WORDS

COPIED_WORDS = 8  # ours: this many words in a row are not a coincidence

# First person and an act of writing: a patient's "I cannot breathe" is not a refusal.
_REFUSAL = re.compile(
    r"\bi(?:'m| am)? (?:cannot|can ?not|can't|won't|will not|couldn't|unable to|not able to|not allowed to) "
    r"(?:help|assist|comply|provide|give|offer|write|answer|fulfill?|generate|create|determine|complete|do that)\b"
    r"|\bi(?:'m| am) sorry,? (?:but|i)\b|\bi apologi[sz]e\b|\bas an? (?:ai|artificial|language model|large language)\b"
)
_MASK = re.compile(
    r"\[LABEL\]|\[MASK\]|<mask>|<extra_id_\d+>|_{3,}|\{[a-z][a-z_]*\}|<<<DATA|DATA [0-9a-f]{32}>>>", re.I
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LIST_MARK = re.compile(r"^\s*\d+[.)](?=\s)", re.MULTILINE)
_SLOT = re.compile(r"\{[a-z_]+\}")
_COUNTING = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_COUNTING.split())}
_GIVEN_AS_ANSWER = (
    r"(?:answer|label|decision|conclusion|verdict|level|category)\W+(?:(?:is|was|be|would|should|must)\W+)*"
)

# Words that a rewording may add to the text: who speaks, and how sentences are joined.
_FRAMING_WORDS = """
according accordingly additionally also although appear associated become begin call caller case cause complain
concern consider consistent currently date decide decision denies deny despite due experience explain feel follow give
given have having history include indicate lead likely mean mention need note nurse old other patient person possible
presence present rationale reason recommend recommended regarding report require result say show sign since state
suggest support symptom take tell text therefore thus urgency urgent whether without year
"""
_FRAMING = frozenset(stem(word) for word in _FRAMING_WORDS.split())


@dataclass(frozen=True)
class GatedCase:
    """What a rationale is checked against: its text, the decision it argues for, and the possible decisions.

    `instructions` are the prompt's own words, without data.
    """

    text: str
    label: str
    choices: Sequence[str]
    instructions: str = ""
    max_words: int = MAX_WORDS


def failed_gates(rationale: str, case: GatedCase) -> list[str]:
    """The names of the gates that a rationale fails, in order; the first is the reported reason."""
    return [name for name, fails in GATES.items() if fails(rationale, case)]


def is_empty(rationale: str, case: GatedCase) -> bool:
    """It has no words."""
    return WORD.search(rationale) is None


def is_refusal(rationale: str, case: GatedCase) -> bool:
    """The model speaks about itself and declines."""
    return _REFUSAL.search(" ".join(rationale.casefold().replace("\u2019", "'").split())) is not None


def is_too_long(rationale: str, case: GatedCase) -> bool:
    """It has more than `max_words` words."""
    return len(words_of(rationale)) > case.max_words


def leaks_mask_token(rationale: str, case: GatedCase) -> bool:
    """It contains a placeholder: [LABEL], [MASK], ___, a prompt slot, a fence. A student would print it."""
    return _MASK.search(rationale) is not None


def copies_prompt(rationale: str, case: GatedCase) -> bool:
    """It repeats `COPIED_WORDS` consecutive words of the instructions."""
    return not _runs([rationale]).isdisjoint(_instruction_runs(case.instructions))


def states_another_label(rationale: str, case: GatedCase) -> bool:
    """It names a label that it does not argue for, even for contrast; see `named_labels`."""
    return bool(named_labels(rationale, case.choices) - {case.label})


def cites_what_is_not_there(rationale: str, case: GatedCase) -> bool:
    """It has no content word of the text, so it is about something else, or a number that is not in the text."""
    known = numbers(case.text).union(_spelt_numbers(case.text), *map(numbers, case.choices))
    return not _content_stems(rationale) & _content_stems(case.text) or bool(_cited_numbers(rationale) - known)


GATES: Mapping[str, Callable[[str, GatedCase], bool]] = {
    "empty": is_empty,
    "refusal": is_refusal,
    "too_long": is_too_long,
    "mask_token": leaks_mask_token,
    "copied_prompt": copies_prompt,
    "another_label": states_another_label,
    "not_in_text": cites_what_is_not_there,
}


def named_labels(text: str, choices: Sequence[str]) -> set[str]:
    """Find the labels whose words occur in a text in order.

    A label within a longer one ("care" in "home care") does not count. Labels made only of stop words or numbers, such
    as "no" or "3", occur in any text: they count only if given as an answer, as in "the answer is no" or at the very
    beginning before a comma or full stop.
    """
    words = words_of(text)
    spans: dict[tuple[int, int], set[str]] = {}
    found = set()
    for choice in choices:
        label_words = words_of(choice)
        if all(word in STOP_WORDS or word.isdigit() for word in label_words):
            if label_words and _given_as_answer(text, choice):
                found.add(choice)
            continue
        for start in range(len(words) - len(label_words) + 1):
            end = start + len(label_words)
            if words[start:end] == label_words:
                spans.setdefault((start, end), set()).add(choice)
    for (start, end), named in spans.items():
        if not any(s <= start and end <= e and (s, e) != (start, end) for s, e in spans):
            found |= named
    return found


def _given_as_answer(text: str, choice: str) -> bool:
    label = r"\s+".join(map(re.escape, choice.split()))
    return re.search(rf"\b{_GIVEN_AS_ANSWER}{label}\b|^\W*{label}\s*(?:[.,;:!]|$)", text, re.IGNORECASE) is not None


def numbers(text: str) -> set[str]:
    """Find the numbers of a text, in normal form: "38,5" is "38.5", "1,000" is "1000", "007" is "7"."""
    return {_plain(match.group()) for match in _NUMBER.finditer(text)}


def _plain(number: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
        number = number.replace(",", "")
    number = number.replace(",", ".")
    return number if number.count(".") > 1 else f"{float(number):.12g}"


def _spelt_numbers(text: str) -> set[str]:
    return {_NUMBER_WORDS[word] for word in words_of(text) if word in _NUMBER_WORDS}


def instructions(prompt: Prompt) -> str:
    """A prompt's own words, with a line break for each slot."""
    return _SLOT.sub("\n", f"{prompt.system}\n{prompt.user}")


def _cited_numbers(rationale: str) -> set[str]:
    return numbers(_LIST_MARK.sub("", rationale))


def _content_stems(text: str) -> set[str]:
    return {stem(word) for word in WORD.findall(text) if word.casefold() not in STOP_WORDS} - _FRAMING


@lru_cache(maxsize=16)
def _instruction_runs(text: str) -> frozenset[tuple[str, ...]]:
    return _runs(text.split("\n\n"))


def _runs(parts: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """All runs of `COPIED_WORDS` consecutive words."""
    listed = [words_of(part) for part in parts]
    return frozenset(
        tuple(words[start : start + COPIED_WORDS]) for words in listed for start in range(len(words) - COPIED_WORDS + 1)
    )


def additions(rewritten: str, known: Sequence[str]) -> dict[str, list[str]]:
    """What a rewritten rationale adds to the texts `known`: {"words": [...], "numbers": [...]}, sorted.

    Words are content words, compared by their stems, without framing words ("patient", "reports", "therefore").
    A spelled-out abbreviation counts as added: only a reader can tell whether it means the same.
    """
    text = "\n".join(known)
    known_stems = {stem(word) for word in WORD.findall(text)} | _FRAMING
    words = {
        word.casefold()
        for word in WORD.findall(rewritten)
        if not any(character.isdigit() for character in word)
        and word.casefold() not in STOP_WORDS
        and stem(word) not in known_stems
    }
    known_numbers = numbers(text) | _spelt_numbers(text)
    words -= {word for word, number in _NUMBER_WORDS.items() if number in known_numbers}
    new_numbers = _cited_numbers(rewritten) - known_numbers
    return {name: sorted(found) for name, found in (("words", words), ("numbers", new_numbers)) if found}

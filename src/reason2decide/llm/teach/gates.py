"""Check generated rationales before they may teach: each gate is a pure rule over words, all of them ours.

A gate judges form and provenance, not truth: a rationale that passes all gates can still be wrong. Each errs on the
side of dropping; `docs/llm.md` says how often each drops rationales that are known to be good.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from reason2decide.data.words import UNSPACED, WORD, named_labels, words_of
from reason2decide.llm.prompt_files import Prompt
from reason2decide.llm.settings import MAX_WORDS, MIN_SUPPORT, max_characters
from reason2decide.llm.teach.fidelity import cited_numbers, content, numbers, spelt_numbers, support

COPIED_WORDS = 8  # ours: this many words in a row are not a coincidence

# First person and an act of writing: a patient's "I cannot breathe" is not a refusal.
_REFUSAL = re.compile(
    r"\bi(?:'m| am)? (?:cannot|can ?not|can't|won't|will not|couldn't|unable to|not able to|not allowed to) "
    r"(?:help|assist|comply|provide|give|offer|write|answer|fulfill?|generate|create|determine|complete|do that"
    r"|diagnose|decide|advise|recommend|assess|judge|make an? (?:\w+ )?(?:decision|diagnosis|recommendation))\b"
    r"|\bi(?:'m| am) not an? (?:doctor|medical|physician|nurse|clinician|health)"
    r"|\bit would be (?:irresponsible|inappropriate|unsafe) to (?:diagnose|decide|advise|recommend|give|make)\b"
    r"|\bi(?:'m| am) sorry,? (?:but|i)\b|\bi apologi[sz]e\b|\bas an? (?:ai|artificial|language model|large language)\b"
)
_MASK = re.compile(
    r"\[LABEL\]|\[MASK\]|<mask>|<extra_id_\d+>|_{3,}|\{[a-z][a-z_]*\}|<<<DATA|DATA [0-9a-f]{32}>>>", re.I
)
_SLOT = re.compile(r"\{[a-z_]+\}")


@dataclass(frozen=True)
class GatedCase:
    """What a rationale is checked against: its text, the decision it argues for, and the possible decisions.

    `instructions` are the prompt's own words, without data; `min_support` is the least share of a rationale's content
    that its text must have (`fidelity.support`).
    """

    text: str
    label: str
    choices: Sequence[str]
    instructions: str = ""
    max_words: int = MAX_WORDS
    min_support: float = MIN_SUPPORT


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
    """It has more than `max_words` words, or was ended by the server at the length that they may have."""
    return word_count(rationale) > case.max_words or len(rationale) >= max_characters(case.max_words)


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
    known = numbers(case.text).union(spelt_numbers(case.text), *map(numbers, case.choices))
    return not content(rationale) & content(case.text) or bool(cited_numbers(rationale) - known)


def is_unsupported(rationale: str, case: GatedCase) -> bool:
    """Too small a share of its content is in the text or the label: it is about something else, or made up."""
    return support(rationale, f"{case.text}\n{case.label}") < case.min_support


GATES: Mapping[str, Callable[[str, GatedCase], bool]] = {
    "empty": is_empty,
    "refusal": is_refusal,
    "too_long": is_too_long,
    "mask_token": leaks_mask_token,
    "copied_prompt": copies_prompt,
    "another_label": states_another_label,
    "not_in_text": cites_what_is_not_there,
    "unsupported": is_unsupported,
}


def word_count(text: str) -> int:
    """The number of words; in scripts without spaces two characters count as one (ours)."""
    joined = sum(len(run) for run in UNSPACED.findall(text))
    return len(words_of(text)) - joined // 2


def instructions(prompt: Prompt) -> str:
    """A prompt's own words, with a line break for each slot."""
    return _SLOT.sub("\n", f"{prompt.system}\n{prompt.user}")


@lru_cache(maxsize=16)
def _instruction_runs(text: str) -> frozenset[tuple[str, ...]]:
    return _runs(text.split("\n\n"))


def _runs(parts: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """All runs of `COPIED_WORDS` consecutive words."""
    listed = [words_of(part) for part in parts]
    return frozenset(
        tuple(words[start : start + COPIED_WORDS]) for words in listed for start in range(len(words) - COPIED_WORDS + 1)
    )

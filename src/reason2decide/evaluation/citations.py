"""What a rationale of a synthetic call cites, and what is true of the call: exactly, since its facts are in the record.

A rationale cites a finding or a risk if it has its `text` or `short` wording from the rules, as whole words in any
case. It cites it as present unless the sentence denies it, or says it of somebody else or of the past
(`assertions.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls.rules import Risk, Symptom, load_rules
from reason2decide.data.words import sentences
from reason2decide.evaluation.assertions import assertion_at

FACTS = ("present", "risks", "facts")  # the keys of `meta` that are read here
# Kinds of facts that are findings or risks, or both together; the other kinds are complaint and course.
DECIDING = ("red_flags", "risk", "danger")


@dataclass(frozen=True)
class Citations:
    """Ids of the findings and risks that a rationale cites as present, and of those it says are not."""

    present: frozenset[str]
    denied: frozenset[str]


@cache
def _wordings(*, of_notes: bool = False) -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern of all wordings of rationales, or of notes too, longest first, and the id of each wording."""
    rules = load_rules()
    ids: dict[str, str] = {}
    items: list[Symptom | Risk] = [*rules.findings.values(), *rules.risks.values()]
    for item in items:
        ids[item.text.removeprefix("a ").casefold()] = item.id
        ids[item.short.casefold()] = item.id
        if of_notes:
            ids |= {wording.casefold(): item.id for wording in (*item.phrases.train, *item.phrases.test)}
    for risk in rules.risks.values() if of_notes else ():
        hows = (*risk.denied, *risk.someone_else, *risk.past)
        ids |= {wording.replace("{relative} ", "").casefold(): risk.id for wording in hows}
    either = "|".join(re.escape(wording) for wording in sorted(ids, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.I), ids


def citations(rationale: str) -> Citations:
    """What a rationale cites and denies; something said both ways is in both sets."""
    pattern, ids = _wordings()
    said: dict[bool, set[str]] = {True: set(), False: set()}
    for start, end in sentences(rationale):
        sentence = rationale[start:end]
        # A finding may have a word of denial in its name ("no wt bearing"), which denies nothing else.
        blanked = pattern.sub(lambda mention: "x" * len(mention.group()), sentence)
        for mention in pattern.finditer(sentence):
            present = assertion_at(blanked, *mention.span()) == "present"
            said[present].add(ids[mention.group().casefold()])
    return Citations(present=frozenset(said[True]), denied=frozenset(said[False]))


def named_in(sentence: str) -> frozenset[str]:
    """The ids of the findings and risks that a sentence of a note names, whoever has them."""
    pattern, ids = _wordings(of_notes=True)
    return frozenset(ids[mention.group().casefold()] for mention in pattern.finditer(sentence))


def has_facts(record: Record) -> bool:
    """Whether it is a synthetic call, whose facts are known."""
    return set(FACTS) <= record.meta.keys()


def true_now(record: Record) -> frozenset[str]:
    """The findings and risks that the patient of a synthetic call has now."""
    return frozenset(record.meta["present"]) | frozenset(record.meta["risks"])


def deciding(record: Record) -> frozenset[str]:
    """The findings and risks among the facts that decided a synthetic call."""
    rules = load_rules()
    ids = {id for fact in record.meta["facts"] if fact["kind"] in DECIDING for id in fact["id"].split("+")}
    return frozenset(id for id in ids if id in rules.findings or id in rules.risks)

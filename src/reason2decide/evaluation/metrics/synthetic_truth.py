"""Compare rationales of synthetic calls with the truth about the call: exactly, since its facts are in the record.

A rationale cites a finding or a risk if it has its `text` or `short` wording from the rules, as whole words in any
case. The finding is cited as denied after a word of denial ("no", "denies", "without" and the like) in the same
sentence, up to a word that ends the denial ("but", "has", "with" and the like) or a "+"; "(-)" denies only the
finding after it.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from functools import cache

from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls.rules import Risk, Symptom, load_rules
from reason2decide.data.words import sentences
from reason2decide.errors import NotComputed
from reason2decide.evaluation.metrics.base import Examples, SufficientStatistics
from reason2decide.evaluation.metrics.rationales import Ratio, has_rationale, pooled, require_rationales, told

FACTS = ("present", "risks", "facts")  # the keys of `meta` that are read here
DECIDING = ("red_flags", "risk")  # kinds of facts that are findings or risks; the other kinds are complaint and course
# Ours: words before a finding that deny what follows, or end a denial.
CUE = re.compile(
    r"(?P<denies>\b(?:no|not|nor|without|den(?:y|ies|ied|ying)|negative|absence|absent|lacks?|free of)\b)"
    r"|\b(?:but|however|yet|though|although|while|except|has|have|having|had|with|present|reports?|also)\b|\+",
    re.I,
)
ITEM_DENIED = re.compile(r"\(-\)\s*$")


@dataclass(frozen=True)
class Citations:
    """Ids of the findings and risks that a rationale cites as present, and of those it denies."""

    present: frozenset[str]
    denied: frozenset[str]


@cache
def _wordings() -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern of all wordings, longest first, and the id of each wording."""
    rules = load_rules()
    ids: dict[str, str] = {}
    items: list[Symptom | Risk] = [*rules.findings.values(), *rules.risks.values()]
    for item in items:
        ids[item.text.removeprefix("a ").casefold()] = item.id
        ids[item.short.casefold()] = item.id
    either = "|".join(re.escape(wording) for wording in sorted(ids, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.I), ids


def citations(rationale: str) -> Citations:
    """What a rationale cites and denies; something said both ways is in both sets."""
    pattern, ids = _wordings()
    said: dict[bool, set[str]] = {True: set(), False: set()}
    for start, end in sentences(rationale):
        denied, position = False, start
        for mention in pattern.finditer(rationale, start, end):
            before = rationale[position : mention.start()]
            for cue in CUE.finditer(before):
                denied = cue["denies"] is not None
            said[denied or ITEM_DENIED.search(before) is not None].add(ids[mention.group().casefold()])
            position = mention.end()
    return Citations(present=frozenset(said[False]), denied=frozenset(said[True]))


def true_now(record: Record) -> frozenset[str]:
    """The findings and risks that the patient of a synthetic call has now."""
    return frozenset(record.meta["present"]) | frozenset(record.meta["risks"])


def deciding(record: Record) -> frozenset[str]:
    """The findings and risks among the facts that decided a synthetic call."""
    return frozenset(fact["id"] for fact in record.meta["facts"] if fact["kind"] in DECIDING)


class _AgainstTheTruth(Ratio):
    """A ratio of two counts over synthetic calls; examples whose second count is 0 are left out."""

    nothing: str

    @abstractmethod
    def row(self, record: Record, rationale: str) -> tuple[int, int]:
        """The counts of one example."""

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows of two counts.

        Raises:
            NotComputed: not synthetic calls, no rationale, or nothing to count in any of them.
        """
        if not all(set(FACTS) <= record.meta.keys() for record in examples.records):
            raise NotComputed("records have no facts to compare with; only those of `r2d data synthesize` do")
        require_rationales(examples)
        counted = {
            i: row
            for i, (record, prediction) in enumerate(zip(examples.records, examples.predictions, strict=True))
            if (row := self.row(record, prediction.rationale or ""))[1]
        }
        if not counted:
            raise NotComputed(f"all {len(examples)} {self.nothing}")
        missing = sum(not has_rationale(prediction) for prediction in examples.predictions)
        left_out = len(examples) - len(counted)
        notes = {
            f"{missing} of {len(examples)} predictions have no rationale and cite nothing": missing,
            f"{left_out} of {len(examples)} {self.nothing} and are left out": left_out,
        }
        return pooled(list(counted.values()), list(counted), told(notes))


class CitedTrue(_AgainstTheTruth):
    """Share of the findings and risks cited as present that the patient has now.

    Why: the exact precision of what rationales claim, which real data cannot provide.
    Formula: cited as present and true / cited as present, over all rationales together. Range 0 to 1, higher is better.
    Source: ours.
    """

    name, title, worst, best = "cited_true", "Cited findings that are true", 0.0, 1.0
    nothing = "rationales cite no finding as present"

    def row(self, record: Record, rationale: str) -> tuple[int, int]:
        """(true, cited)."""
        present = citations(rationale).present
        return len(present & true_now(record)), len(present)


class CitedFalse(_AgainstTheTruth):
    """Share of rationales that cite as present what the patient denies, does not have, or does not have now.

    Why: one false finding makes a rationale dangerous, regardless of the number of true ones, so this counts
    rationales where `cited_true` counts findings. Formula: rationales with such a citation / rationales. Range 0 to 1,
    lower is better. Source: ours.
    """

    name, title, worst, best = "cited_false", "Rationales that cite something false", 1.0, 0.0
    nothing = "predictions have no rationale"

    def row(self, record: Record, rationale: str) -> tuple[int, int]:
        """(cites something false, has a rationale)."""
        return int(not citations(rationale).present <= true_now(record)), int(bool(rationale.strip()))


class DecidingOmitted(_AgainstTheTruth):
    """Share of the red flags and risks behind a call's label that its rationale leaves out.

    Why: true findings that did not decide are not reasons; this is the share missed among those that did.
    Formula: deciding facts not cited as present / deciding facts, over all calls together; a missing rationale leaves
    all out. Range 0 to 1, lower is better. Source: ours.
    """

    name, title, worst, best = "deciding_omitted", "Deciding findings left out", 1.0, 0.0
    nothing = "calls have no red flag or risk that decided"

    def row(self, record: Record, rationale: str) -> tuple[int, int]:
        """(left out, deciding)."""
        facts = deciding(record)
        return len(facts - citations(rationale).present), len(facts)

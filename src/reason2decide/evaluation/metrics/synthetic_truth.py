"""Compare rationales of synthetic calls with the truth about the call: exactly, since its facts are in the record."""

from __future__ import annotations

from abc import abstractmethod

from reason2decide.data.records import Record
from reason2decide.errors import NotComputed
from reason2decide.evaluation.citations import citations, deciding, has_facts, true_now
from reason2decide.evaluation.metrics.base import Examples, SufficientStatistics
from reason2decide.evaluation.metrics.rationales import Ratio, has_rationale, pooled, require_rationales, told


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
        if not all(map(has_facts, examples.records)):
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

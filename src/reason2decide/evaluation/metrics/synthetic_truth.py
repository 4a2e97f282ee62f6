"""Compare rationales of synthetic calls with the truth about the call: exactly, since its facts are in the record."""

from __future__ import annotations

from abc import abstractmethod

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls.rules import load_rules
from reason2decide.data.sources.synthetic_calls.weighing import level_argued
from reason2decide.errors import NotComputed, NothingToCount
from reason2decide.evaluation.citations import citations, deciding, has_facts, true_now
from reason2decide.evaluation.metrics.base import Examples, SufficientStatistics
from reason2decide.evaluation.metrics.rationales import Ratio, has_rationale, pooled, require_rationales, told


class _AgainstTheTruth(Ratio):
    """A ratio of two counts over synthetic calls; examples whose second count is 0 are left out."""

    nothing: str

    @abstractmethod
    def row(self, record: Record, prediction: Prediction) -> tuple[int, int]:
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
            if (row := self.row(record, prediction))[1]
        }
        if not counted:
            raise NothingToCount(f"all {self.nothing}")
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

    def row(self, record: Record, prediction: Prediction) -> tuple[int, int]:
        """(true, cited)."""
        present = citations(prediction.rationale or "").present
        return len(present & true_now(record)), len(present)


class CitedFalse(_AgainstTheTruth):
    """Share of rationales that cite as present what the patient denies, does not have, or does not have now.

    Why: one false finding makes a rationale dangerous, regardless of the number of true ones, so this counts
    rationales where `cited_true` counts findings. Formula: rationales with such a citation / rationales. Range 0 to 1,
    lower is better. Source: ours.
    """

    name, title, worst, best = "cited_false", "Rationales that cite something false", 1.0, 0.0
    nothing = "predictions have no rationale"

    def row(self, record: Record, prediction: Prediction) -> tuple[int, int]:
        """(cites something false, has a rationale)."""
        rationale = prediction.rationale or ""
        return int(not citations(rationale).present <= true_now(record)), int(bool(rationale.strip()))


class DecidingOmitted(_AgainstTheTruth):
    """Share of the red flags and risks behind a call's label that its rationale leaves out.

    Why: true findings that did not decide are not reasons; this is the share missed among those that did.
    Formula: deciding facts not cited as present / deciding facts, over all calls together; a missing rationale leaves
    all out. Range 0 to 1, lower is better. Source: ours.
    """

    name, title, worst, best = "deciding_omitted", "Deciding findings left out", 1.0, 0.0
    nothing = "calls have no red flag or risk that decided"

    def row(self, record: Record, prediction: Prediction) -> tuple[int, int]:
        """(left out, deciding)."""
        facts = deciding(record)
        return len(facts - citations(prediction.rationale or "").present), len(facts)


class WeighedConsistency(_AgainstTheTruth):
    """Share of rationales whose facts, weighed as they say, lead to the decision.

    Why: whether the reason argues for the decision, read exactly and without the sentence that states it; simulators
    read it on other data. Says nothing of whether the facts are true, which `cited_false` does. Formula: rationales of
    which the level of the complaint alone and all moves lead to the label decided / rationales. Range 0 to 1, higher is
    better. Source: ours.
    """

    name, title, worst, best = "weighed_consistency", "Reasons whose weights lead to the decision", 0.0, 1.0
    nothing = "predictions have no rationale"

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (leads to the decision, 1).

        Raises:
            NotComputed: as `_AgainstTheTruth`; or no gold rationale weighs its facts so, as those of nurses do not.
        """
        source, rules = examples.rationale_source, load_rules()
        gold = [record.rationales.get(source or "", "") for record in examples.records]
        if all(level_argued(rationale, rules) is None for rationale in gold):
            raise NotComputed(
                f"the gold rationales of source {source!r} do not say how far each fact moves the urgency"
            )
        return super().statistics(examples)

    def row(self, record: Record, prediction: Prediction) -> tuple[int, int]:
        """(leads to the decision, 1); a missing rationale leads nowhere."""
        rules = load_rules()
        level = level_argued(prediction.rationale or "", rules)
        return int(level is not None and rules.labels[level] == prediction.predicted_label), 1

"""Judges' scores of rationales by criterion; judges are language models asked by `r2d judge`.

The scores are read from the probes. They are opinions: read them together with the judges' agreement with each other
and with people, which `r2d judge` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from reason2decide.errors import NothingToCount
from reason2decide.evaluation.metrics.base import Examples, Metric, SufficientStatistics
from reason2decide.evaluation.metrics.rationales import Ratio, pooled, probes_of, require_rationales, told
from reason2decide.evaluation.probes import Probe

NOBODY = "no judge scored the rationales; run `r2d judge`"


class JudgeScore(Ratio):
    """Mean score by one criterion; the signature names the `judges`, so that comparing different ones is noticed."""

    criterion: ClassVar[str]

    def __init__(self, judges: str = "") -> None:
        self.judges = judges

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (score, 1); records that were not judged are left out.

        Raises:
            NotComputed: no prediction has a rationale, or none was judged by this criterion.
        """
        require_rationales(examples)
        scores = [probe.judged.get(self.criterion) for probe in probes_of(examples, NOBODY)]
        positions = [i for i, score in enumerate(scores) if score is not None]
        if not positions:
            raise NothingToCount(NOBODY)
        left_out = len(examples) - len(positions)
        notes = told({f"{left_out} of {len(examples)} records were not judged and are left out": left_out})
        return pooled([(score, 1.0) for score in scores if score is not None], positions, notes)

    def signature(self) -> str:
        """The judges and the versions of their prompts."""
        return self.judges


class JudgeCorrect(JudgeScore):
    """Judged correctness: is the decision right and the rationale true, given the gold label and rationale?

    Why: a rationale can be right in other words than the gold one, which overlap misses.
    Formula: mean over the records of the mean over the judges of the (expected) level; a missing rationale gets
    the lowest. Range 1 to 5, higher is better. Source: levels are ours; expected levels as in G-Eval (Liu et al. 2023).
    """

    name, title, worst, best = "judge_correct", "Judged: correct", 1.0, 5.0
    criterion = "correct"


class JudgeSupports(JudgeScore):
    """Judged support: does the rationale support the decision that was made, right or wrong?

    Why: as consistency, but with a reader that did not learn from gold rationales.
    Formula: as `judge_correct`, but without the gold label. Range 1 to 5, higher is better. Source: as there.
    """

    name, title, worst, best = "judge_supports", "Judged: supports the decision", 1.0, 5.0
    criterion = "supports"


class JudgeGrounded(JudgeScore):
    """Judged grounding: is what the rationale says about the case in the text?

    Why: a judge can notice a reversed finding, which shared words (`support`) cannot show.
    Formula: as `judge_correct`, but without the gold label. Range 1 to 5, higher is better. Source: as there.
    """

    name, title, worst, best = "judge_grounded", "Judged: grounded in the text", 1.0, 5.0
    criterion = "grounded"


class JudgeComplete(JudgeScore):
    """Judged completeness: does the rationale name everything in the text that matters for the decision?

    Why: an omitted red flag is harmful; `deciding_omitted` finds it only on synthetic calls.
    Formula: as `judge_correct`, but without the gold label. Range 1 to 5, higher is better. Source: as there.
    """

    name, title, worst, best = "judge_complete", "Judged: complete", 1.0, 5.0
    criterion = "complete"


class JudgeReadable(JudgeScore):
    """Judged readability: can a colleague understand the rationale at first reading?

    Why: small models repeat themselves and break off, which no other metric here detects.
    Formula: as `judge_correct`, but without the gold label. Range 1 to 5, higher is better. Source: as there.
    """

    name, title, worst, best = "judge_readable", "Judged: readable", 1.0, 5.0
    criterion = "readable"


def signed(metrics: Sequence[Metric], probes: Sequence[Probe] | None) -> tuple[Metric, ...]:
    """The metrics, with the names of the judges from the probes in those of judges."""
    named: dict[str, str] = {}
    for probe in probes or ():
        named |= probe.judged_by
    return tuple(
        type(metric)(named.get(metric.criterion, "")) if isinstance(metric, JudgeScore) else metric
        for metric in metrics
    )

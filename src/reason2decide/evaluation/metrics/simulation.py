"""Metrics of what independent simulators (`readers.Simulators`) read from rationales, and what these add to texts."""

from __future__ import annotations

from typing import ClassVar

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.verdicts import SIGNATURE as VERDICTS
from reason2decide.errors import NothingToCount
from reason2decide.evaluation.metrics.base import Examples, Floats, Metric, SufficientStatistics, ratio
from reason2decide.evaluation.metrics.rationales import (
    ReadOut,
    has_rationale,
    notes_on,
    pooled,
    probes_of,
    require_rationales,
)
from reason2decide.evaluation.probes import Probe
from reason2decide.evaluation.readers import SIGNATURE

NOBODY = (
    "no simulator read the rationales; evaluate with the dataset's train split, from whose gold rationales simulators "
    "learn (of records with own choices, only the choice that a rationale names is read)"
)


class _Simulated(ReadOut):
    """A metric of what a simulator reads."""

    whom = NOBODY
    reader: ClassVar[str] = "rationale"

    def read(self, probe: Probe) -> str | None:
        """The simulator's label for the rationale alone."""
        return probe.simulated.get(self.reader)

    def signature(self) -> str:
        """The simulators' settings, and how verdicts are found where they are removed."""
        return f"{SIGNATURE}|{VERDICTS}" if self.reader == "reasons" else SIGNATURE


class SimulatedSufficiency(_Simulated):
    """How often a simulator finds the gold label in the rationale alone.

    Why: sufficiency with a reader that favours no method, unlike the model itself.
    Formula: mean of 1[S_r(r^) = y*], S_r a simulator trained on gold rationales; a missing rationale counts 0. Of a
    record's own choices, S_r is the only one that r^ names.
    Range 0 to 1, higher is better. Source: Reason2Decide-C, "sufficiency"; the independent reader is ours.
    """

    name, title, worst, best = "simulated_sufficiency", "Simulated sufficiency", 0.0, 1.0

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The gold label."""
        return record.label


class SimulatedSufficiencyMasked(SimulatedSufficiency):
    """Simulated sufficiency with the words of all labels masked in the rationale.

    Why: only the reasons are left. The simulator learns from masked gold rationales.
    Formula: mean of 1[S_m(mask(r^)) = y*]. Range 0 to 1, higher is better. Source: ours.
    """

    name, title, worst, best = "simulated_sufficiency_masked", "Simulated sufficiency, label words masked", 0.0, 1.0
    reader = "masked_rationale"


class SimulatedSufficiencyNoVerdict(SimulatedSufficiency):
    """Simulated sufficiency with the sentences that state the decision removed from the rationale.

    Why: stating the right decision is not enough; the reasons must suffice. The simulator learns from gold rationales
    without their verdicts. Formula: mean of 1[S_n(reasons(r^)) = y*]. Range 0 to 1, higher is better. Source: ours.
    """

    name, title, worst, best = "simulated_sufficiency_no_verdict", "Simulated sufficiency, no verdict", 0.0, 1.0
    reader = "reasons"


class SimulatedConsistency(_Simulated):
    """How often a simulator finds the predicted label in the rationale alone.

    Why: whether the rationale, to an outsider, argues for the decision made, right or wrong.
    Formula: mean of 1[S_r(r^) = y^]; a missing rationale or answer counts 0. Of a record's own choices, S_r is the only
    one that r^ names. Range 0 to 1, higher is better.
    Source: Reason2Decide-C, "consistency"; the independent reader is ours.
    """

    name, title, worst, best = "simulated_consistency", "Simulated consistency", 0.0, 1.0

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The predicted label."""
        return prediction.predicted_label


class SimulatedConsistencyMasked(SimulatedConsistency):
    """Simulated consistency with the words of all labels masked in the rationale.

    Why: a rationale that only repeats its decision is consistent with it but gives no reason.
    Formula: mean of 1[S_m(mask(r^)) = y^]. Range 0 to 1, higher is better. Source: ours.
    """

    name, title, worst, best = "simulated_consistency_masked", "Simulated consistency, label words masked", 0.0, 1.0
    reader = "masked_rationale"


class SimulatedConsistencyNoVerdict(SimulatedConsistency):
    """Simulated consistency with the sentences that state the decision removed from the rationale.

    Why: another patient's facts under the right verdict would be consistent. Only what the verdict rests on is left;
    compare with what the simulator reads from gold rationales, which it does not always read rightly.
    Formula: mean of 1[S_n(reasons(r^)) = y^]. Range 0 to 1, higher is better. Source: ours.
    """

    name, title, worst, best = "simulated_consistency_no_verdict", "Simulated consistency, no verdict", 0.0, 1.0
    reader = "reasons"


class _Gain(Metric):
    """What the rationale adds: a simulator that reads text and rationale, minus one that reads the text alone."""

    def signature(self) -> str:
        """The simulators' settings."""
        return SIGNATURE

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The label that counts as found."""
        return record.label

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (gain if leaking, leaking, gain if not, not leaking); a missing rationale gains nothing, leaks nothing.

        Raises:
            NotComputed: no prediction has a rationale, or no simulator was asked.
        """
        require_rationales(examples)
        rows, positions, missing, unanswered = [], [], 0, 0
        for i, probe in enumerate(probes_of(examples, NOBODY)):
            prediction, simulated = examples.predictions[i], probe.simulated
            if has_rationale(prediction) and "both" not in simulated:
                continue
            wanted = self.wanted(examples.records[i], prediction)
            missing += not has_rationale(prediction)
            unanswered += wanted == NO_ANSWER
            gain = (simulated["both"] == wanted) - (simulated["text"] == wanted) if "both" in simulated else 0
            leaks = simulated.get("rationale") == wanted
            rows.append((gain, 1, 0, 0) if leaks else (0, 0, gain, 1))
            positions.append(i)
        if missing == len(rows):
            raise NothingToCount(NOBODY)
        return pooled(rows, positions, notes_on(len(examples), len(rows), missing, unanswered, "add nothing"))


class RationaleQuality(_Gain):
    """How much the rationale adds to the text when looking for the right label.

    Why: a rationale that is wrong, or says no more than the text, does not help. Near 0 if the text alone is enough for
    a simulator, and negative if rationales mislead.
    Formula: RQ = mean of 1[S_xr(x, r^) = y*] - 1[S_x(x) = y*]; a missing rationale adds 0. Range -1 to 1, higher is
    better. Source: Wiegreffe, Marasović and Smith 2021, "rationale quality". Theirs are fine-tuned T5 models that learn
    from the evaluated model's rationales; here bags of words learn from gold ones, so values are not comparable with
    published ones.
    """

    name, title, worst, best = "rq", "Rationale quality (RQ)", -1.0, 1.0

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 4) -> (...), leaking or not."""
        return ratio(sums[..., 0] + sums[..., 2], sums[..., 1] + sums[..., 3])


class Las(_Gain):
    """Leakage-adjusted simulatability: how much the rationale helps to predict the decision, leaking or not.

    Why: a rationale that gives its label away always helps, and one that hides it rarely does; equal weights of both
    groups remove this effect. If all rationales leak, or none, there is only one group: read the note.
    Formula: mean over the groups l = 1, 0 of mean of 1[S_xr(x, r^) = y^] - 1[S_x(x) = y^] among records whose
    1[S_r(r^) = y^] is l; if one group is empty, the mean of the other (ours). A missing rationale or answer does not
    leak and adds 0. Range -1 to 1, higher is better. Source: Hase et al. 2020. Their simulators are fine-tuned T5
    models that learn to predict the evaluated model's outputs from its own explanations; here bags of words learn gold
    labels from gold rationales, so that they favour no system: values are not comparable with published ones.
    """

    name, title, worst, best = "las", "Leakage-adjusted simulatability (LAS)", -1.0, 1.0

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The predicted label."""
        return prediction.predicted_label

    def remarks(self, total: Floats, labels: LabelSet) -> tuple[str, ...]:
        """An empty group."""
        leaking, hiding = total[[1, 3]]
        if leaking and hiding:
            return ()
        note = "every rationale gives its label away" if leaking else "no rationale gives its label away"
        return (f"{note}, so the value is the mean of that group alone",)

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 4) -> (...)."""
        groups = (sums[..., 1] > 0).astype(float) + (sums[..., 3] > 0)
        return ratio(ratio(sums[..., 0], sums[..., 1]) + ratio(sums[..., 2], sums[..., 3]), groups)

"""Whether the model that wrote a rationale reads its own decision, or the gold label, from it.

The prompt for this, "predict:" before a rationale, occurs in the training of only some methods, which favours them
(such as Reason2Decide-C, by its cycle loss). `metrics.simulation` uses readers that favour no method.
"""

from __future__ import annotations

from typing import ClassVar

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.data.verdicts import SIGNATURE as VERDICTS
from reason2decide.evaluation.metrics.rationales import ReadOut
from reason2decide.evaluation.probes import Probe


class _OwnReading(ReadOut):
    """A metric of what the model itself reads; `field` names the answer in its `Probe`."""

    whom = "the model was not asked about its rationales; evaluate the bundle itself, not only its predictions"
    field: ClassVar[str] = "label_from_rationale"

    def read(self, probe: Probe) -> str | None:
        """The model's label for what is left of the rationale."""
        label: str | None = getattr(probe, self.field)
        return label

    def signature(self) -> str:
        """How verdicts are found, where they are removed."""
        return VERDICTS if self.field == "label_from_reasons" else ""


class Consistency(_OwnReading):
    """How often the model makes the same decision from its rationale alone.

    Why: a rationale that argues for another decision than the one made misleads its reader. A model that prefers one of
    a record's own choices whatever it reads is consistent too: read simulated_consistency there.
    Formula: mean of 1[prediction(r^) = prediction(x)]; a missing rationale counts 0. Range 0 to 1, higher is better.
    Source: Reason2Decide-C (Computers 2026, 15(5), 279), "consistency".
    """

    name, title, worst, best = "consistency", "Consistency", 0.0, 1.0

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The predicted label."""
        return prediction.predicted_label


class ConsistencyMasked(Consistency):
    """Consistency with the words of all labels masked in the rationale.

    Why: a rationale that states its label is consistent with it for any reasons; masking leaves only the reasons.
    Formula: as consistency, with prediction(mask(r^)). Range 0 to 1, higher is better.
    Source: as consistency; the masking is ours (`words.mask_label_words`).
    """

    name, title, worst, best = "consistency_masked", "Consistency, label words masked", 0.0, 1.0
    field = "label_from_masked_rationale"


class ConsistencyNoVerdict(Consistency):
    """Consistency with the sentences that state the decision removed from the rationale.

    Why: another patient's facts under the right verdict would be consistent. Only what the verdict rests on is left.
    Formula: as consistency, with prediction(reasons(r^)). Range 0 to 1, higher is better.
    Source: as consistency; `data/verdicts.py` is ours.
    """

    name, title, worst, best = "consistency_no_verdict", "Consistency, without the verdict", 0.0, 1.0
    field = "label_from_reasons"


class Sufficiency(_OwnReading):
    """How often the model decides correctly from its rationale alone.

    Why: a good rationale contains what the right decision needs. Bounded by how often the rationale argues for the
    right label at all, so read it together with accuracy.
    Formula: mean of 1[prediction(r^) = y*]; a missing rationale counts 0. Range 0 to 1, higher is better.
    Source: Reason2Decide-C (Computers 2026, 15(5), 279), "sufficiency".
    """

    name, title, worst, best = "sufficiency", "Sufficiency", 0.0, 1.0

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The gold label."""
        return record.label


class SufficiencyMasked(Sufficiency):
    """Sufficiency with the words of all labels masked in the rationale.

    Why: naming the right label is not enough; the reasons must suffice.
    Formula: as sufficiency, with prediction(mask(r^)). Range 0 to 1, higher is better.
    Source: as sufficiency; the masking is ours (`words.mask_label_words`).
    """

    name, title, worst, best = "sufficiency_masked", "Sufficiency, label words masked", 0.0, 1.0
    field = "label_from_masked_rationale"


class SufficiencyNoVerdict(Sufficiency):
    """Sufficiency with the sentences that state the decision removed from the rationale.

    Why: stating the right decision is not enough; the reasons must suffice.
    Formula: as sufficiency, with prediction(reasons(r^)). Range 0 to 1, higher is better.
    Source: as sufficiency; `data/verdicts.py` is ours.
    """

    name, title, worst, best = "sufficiency_no_verdict", "Sufficiency, without the verdict", 0.0, 1.0
    field = "label_from_reasons"

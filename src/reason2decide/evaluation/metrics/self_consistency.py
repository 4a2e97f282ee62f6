"""Does the model that wrote a rationale read its own decision, or the gold label, out of it?

The prompt for that, "predict:" before a rationale, is one that only some methods were trained on, which favours them
(as Reason2Decide-C by its cycle loss). `metrics.simulation` asks readers that favour nobody.
"""

from __future__ import annotations

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.evaluation.metrics.rationales import ReadOut
from reason2decide.evaluation.probes import Probe


class _OwnReading(ReadOut):
    """Read by the model itself."""

    whom = "the model was not asked about its rationales; evaluate the bundle itself, not its predictions alone"

    def read(self, probe: Probe) -> str | None:
        """The model's label for the rationale alone."""
        return probe.label_from_rationale


class _OwnMaskedReading(_OwnReading):
    """Read by the model itself, with the words of the labels masked."""

    def read(self, probe: Probe) -> str | None:
        """The model's label for the masked rationale alone."""
        return probe.label_from_masked_rationale


class Consistency(_OwnReading):
    """How often the model decides the same when it reads only its rationale.

    Why: a rationale that argues for another decision than the one made misleads its reader.
    Formula: mean of 1[prediction(r^) = prediction(x)]; a missing rationale counts 0. Range 0 to 1, higher is better.
    Source: Reason2Decide-C (Computers 2026, 15(5), 279), "consistency".
    """

    name, title, worst, best = "consistency", "Consistency", 0.0, 1.0

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The predicted label."""
        return prediction.predicted_label


class ConsistencyMasked(_OwnMaskedReading):
    """Consistency where the words of all labels are masked in the rationale.

    Why: a rationale that says its label is consistent with it whatever its reasons; this leaves the reasons alone.
    Formula: as consistency, with prediction(mask(r^)). Range 0 to 1, higher is better.
    Source: as consistency; the masking is ours (`masking.mask_label_words`).
    """

    name, title, worst, best = "consistency_masked", "Consistency, label words masked", 0.0, 1.0

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The predicted label."""
        return prediction.predicted_label


class Sufficiency(_OwnReading):
    """How often the model decides right when it reads only its rationale.

    Why: a good rationale holds what the right decision needs. Bounded by how often the rationale argues for the
    right label at all, so read it beside accuracy.
    Formula: mean of 1[prediction(r^) = y*]; a missing rationale counts 0. Range 0 to 1, higher is better.
    Source: Reason2Decide-C (Computers 2026, 15(5), 279), "sufficiency".
    """

    name, title, worst, best = "sufficiency", "Sufficiency", 0.0, 1.0

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The gold label."""
        return record.label


class SufficiencyMasked(_OwnMaskedReading):
    """Sufficiency where the words of all labels are masked in the rationale.

    Why: naming the right label suffices for nothing; the reasons must.
    Formula: as sufficiency, with prediction(mask(r^)). Range 0 to 1, higher is better.
    Source: as sufficiency; the masking is ours (`masking.mask_label_words`).
    """

    name, title, worst, best = "sufficiency_masked", "Sufficiency, label words masked", 0.0, 1.0

    def wanted(self, record: Record, prediction: Prediction) -> str | None:
        """The gold label."""
        return record.label

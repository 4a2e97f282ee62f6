"""The metrics of an evaluation. To add one, write its class and add it to `METRICS`, the only list of metrics."""

from reason2decide.evaluation.metrics.base import Examples, Metric, SufficientStatistics
from reason2decide.evaluation.metrics.bertscore import BertScore
from reason2decide.evaluation.metrics.calibration import (
    Aurc,
    Brier,
    CalibrationError,
    ConformalCoverage,
    ConformalSetSize,
    Deferred,
    ExpectedCalibrationError,
    LogLoss,
    SelectiveError,
    reliability_curve,
    risk_coverage_curve,
)
from reason2decide.evaluation.metrics.contradiction import CitedContradicted
from reason2decide.evaluation.metrics.counterfactual import (
    DeletionDrop,
    PhiCct,
    SwapChange,
    SwapFollows,
    SwapFollowsNoVerdict,
)
from reason2decide.evaluation.metrics.decisions import (
    Accuracy,
    MacroF1,
    Mcc,
    MicroF1,
    WeightedF1,
    confusion_matrix,
    per_label_scores,
)
from reason2decide.evaluation.metrics.judged import (
    JudgeComplete,
    JudgeCorrect,
    JudgeGrounded,
    JudgeReadable,
    JudgeSupports,
)
from reason2decide.evaluation.metrics.ordinal import (
    ExpectedCost,
    MeanAbsoluteError,
    OverTriage,
    QuadraticKappa,
    UnderTriage,
)
from reason2decide.evaluation.metrics.overlap import Bleu, Chrf
from reason2decide.evaluation.metrics.rouge import RougeL
from reason2decide.evaluation.metrics.self_consistency import (
    Consistency,
    ConsistencyMasked,
    ConsistencyNoVerdict,
    Sufficiency,
    SufficiencyMasked,
    SufficiencyNoVerdict,
)
from reason2decide.evaluation.metrics.simulation import (
    Las,
    RationaleQuality,
    SimulatedConsistency,
    SimulatedConsistencyMasked,
    SimulatedConsistencyNoVerdict,
    SimulatedSufficiency,
    SimulatedSufficiencyMasked,
    SimulatedSufficiencyNoVerdict,
)
from reason2decide.evaluation.metrics.support import Support
from reason2decide.evaluation.metrics.synthetic_truth import CitedFalse, CitedTrue, DecidingOmitted, WeighedConsistency

# Without settings; `measure.metrics_of` replaces those that have settings.
METRICS: tuple[Metric, ...] = (
    Accuracy(),
    MacroF1(),
    MicroF1(),
    WeightedF1(),
    Mcc(),
    QuadraticKappa(),
    MeanAbsoluteError(),
    UnderTriage(),
    OverTriage(),
    ExpectedCost(),
    LogLoss(),
    Brier(),
    CalibrationError(),
    ExpectedCalibrationError(),
    Aurc(),
    SelectiveError(),
    Deferred(),
    ConformalCoverage(),
    ConformalSetSize(),
    Bleu(),
    Chrf(),
    RougeL(),
    BertScore(),
    Support(),
    Consistency(),
    ConsistencyMasked(),
    ConsistencyNoVerdict(),
    Sufficiency(),
    SufficiencyMasked(),
    SufficiencyNoVerdict(),
    SimulatedConsistency(),
    SimulatedConsistencyMasked(),
    SimulatedConsistencyNoVerdict(),
    SimulatedSufficiency(),
    SimulatedSufficiencyMasked(),
    SimulatedSufficiencyNoVerdict(),
    RationaleQuality(),
    Las(),
    DeletionDrop(),
    PhiCct(),
    SwapChange(),
    SwapFollows(),
    SwapFollowsNoVerdict(),
    CitedContradicted(),
    CitedTrue(),
    CitedFalse(),
    DecidingOmitted(),
    WeighedConsistency(),
    JudgeCorrect(),
    JudgeSupports(),
    JudgeGrounded(),
    JudgeComplete(),
    JudgeReadable(),
)

__all__ = [
    "METRICS",
    "Accuracy",
    "BertScore",
    "Bleu",
    "Chrf",
    "ConformalCoverage",
    "ConformalSetSize",
    "Deferred",
    "Examples",
    "ExpectedCost",
    "LogLoss",
    "MacroF1",
    "Metric",
    "SelectiveError",
    "SufficientStatistics",
    "confusion_matrix",
    "per_label_scores",
    "reliability_curve",
    "risk_coverage_curve",
]

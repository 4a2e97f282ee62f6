"""The metrics of an evaluation. To add one, write its class and add it to `METRICS`, the only list of metrics."""

from reason2decide.evaluation.metrics.base import Examples, Metric, SufficientStatistics
from reason2decide.evaluation.metrics.bertscore import BertScore
from reason2decide.evaluation.metrics.calibration import (
    Aurc,
    Brier,
    ConformalCoverage,
    ConformalSetSize,
    Deferred,
    ExpectedCalibrationError,
    LogLoss,
    SelectiveError,
    reliability_curve,
    risk_coverage_curve,
)
from reason2decide.evaluation.metrics.counterfactual import PhiCct, SwapChange, SwapFollows
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
    Sufficiency,
    SufficiencyMasked,
)
from reason2decide.evaluation.metrics.simulation import (
    Las,
    RationaleQuality,
    SimulatedConsistency,
    SimulatedConsistencyMasked,
    SimulatedSufficiency,
    SimulatedSufficiencyMasked,
)
from reason2decide.evaluation.metrics.support import Support
from reason2decide.evaluation.metrics.synthetic_truth import CitedFalse, CitedTrue, DecidingOmitted

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
    Sufficiency(),
    SufficiencyMasked(),
    SimulatedConsistency(),
    SimulatedConsistencyMasked(),
    SimulatedSufficiency(),
    SimulatedSufficiencyMasked(),
    RationaleQuality(),
    Las(),
    PhiCct(),
    SwapChange(),
    SwapFollows(),
    CitedTrue(),
    CitedFalse(),
    DecidingOmitted(),
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

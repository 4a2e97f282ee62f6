"""Metrics of probabilities: whether 80 % means right in four of five cases, and what deferring gains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reason2decide.data.predictions import Prediction
from reason2decide.errors import NotComputed, NothingToCount
from reason2decide.evaluation.metrics.base import Examples, Floats, Integers, Metric, SufficientStatistics, ratio
from reason2decide.evaluation.metrics.rationales import told
from reason2decide.model.calibration import LEAST_PROBABILITY, ROUNDING, prediction_set

BINS = 15  # Guo et al. 2017
BAND_DRAWS = 500  # ours
CONFIDENCE_STEP = 0.005  # ours: confidences are ranked in such steps, which keeps the statistics of AURC additive
LEVELS = round(1 / CONFIDENCE_STEP) + 1


def with_probabilities(examples: Examples) -> tuple[Integers, tuple[str, ...]]:
    """The examples whose predictions have probabilities, (n,), and a note on those without.

    Raises:
        NotComputed: no prediction has probabilities.
    """
    given = [prediction.probabilities is not None for prediction in examples.predictions]
    positions = np.flatnonzero(given)
    if not len(positions):
        raise NothingToCount("no prediction has probabilities")
    left_out = len(examples) - len(positions)
    second = sum(not is_most_probable(examples.predictions[i]) for i in positions.tolist())
    notes = {
        f"{left_out} of {len(examples)} predictions have no probabilities and are left out": left_out,
        f"{second} of {len(positions)} predicted labels are not the most probable ones; confidence is the probability "
        "of the predicted label": second,
    }
    return positions, told(notes)


def confidences(examples: Examples, positions: Integers) -> tuple[Floats, Floats]:
    """The confidence of each prediction at `positions`, and whether its label is right (1 or 0), both (n,)."""
    rows: list[int] = positions.tolist()
    right = [examples.predictions[i].predicted_label == examples.records[i].label for i in rows]
    return np.array([confidence_of(examples.predictions[i]) for i in rows]), np.array(right, float)


class _Mean(Metric):
    """The mean of one number per example with probabilities."""

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 2) -> (...)."""
        return ratio(sums[..., 0], sums[..., 1])


class LogLoss(_Mean):
    """Mean negative log-probability of the gold label.

    Why: a proper score, minimised only by the true probabilities, and what training minimises. One confident mistake
    outweighs many right answers. Formula: mean of -ln p(gold), p at least 1e-12. Range 0 upwards, lower is better.
    Source: Good 1952; scikit-learn's `log_loss`.
    """

    name, title, worst, best = "log_loss", "Log loss", np.inf, 0.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (-ln p, 1)."""
        positions, notes = with_probabilities(examples)
        gold = _gold_probabilities(examples, positions)
        rows = np.stack((-np.log(np.maximum(gold, LEAST_PROBABILITY)), np.ones(len(gold))), -1)
        return SufficientStatistics(rows, np.arange(len(rows)), positions, notes)


class Brier(_Mean):
    """Mean squared distance between the probabilities and the truth.

    Why: a proper score that one confident mistake cannot dominate. Formula: mean of sum over labels of
    (p(label) - [label is gold])^2. Range 0 to 2, lower is better. Source: Brier 1950, in his form for several classes.
    """

    name, title, worst, best = "brier", "Brier score", 2.0, 0.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (squared distance, 1)."""
        positions, notes = with_probabilities(examples)
        gold = _gold_probabilities(examples, positions)
        squares = np.array(
            [sum(p * p for p in (examples.predictions[i].probabilities or {}).values()) for i in positions]
        )
        rows = np.stack((squares - 2 * gold + 1, np.ones(len(gold))), -1)
        return SufficientStatistics(rows, np.arange(len(rows)), positions, notes)


class CalibrationError(Metric):
    """Root mean square distance between confidence and accuracy over bins of confidence, without the bias of chance.

    Why: readable as percentage points of over- or underconfidence. In small bins accuracy differs from confidence by
    chance even if every probability is true; that part is estimated and subtracted. It is not a proper score (a
    constant answer can get 0): read it together with the Brier score.
    Formula: with n_b cases, mean d_b and variance v_b of right - confidence in each of 15 bins of equal width, for the
    predicted label only, sqrt(max(0, sum of n_b / n (d_b^2 - v_b / n_b))); bins of one case count 0. Its intervals are
    shifted back by the bias that resampling adds. Range 0 to 1, lower is better. Source: the debiased estimator of
    Kumar, Liang and Ma 2019, "Verified uncertainty calibration"; 15 bins as Guo et al. 2017; the shift is ours.
    """

    name, title, worst, best = "calibration_error", "Calibration error", 1.0, 0.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows of 3 x BINS: count, right minus confidence and its square, each in the column of its bin."""
        positions, notes = with_probabilities(examples)
        confidence, right = confidences(examples, positions)
        rows = np.zeros((len(positions), 3, BINS))
        rows[np.arange(len(rows)), :, bin_of(confidence)] = np.stack(
            (np.ones(len(rows)), right - confidence, (right - confidence) ** 2), -1
        )
        return SufficientStatistics(rows.reshape(len(rows), -1), np.arange(len(rows)), positions, notes)

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 3 x BINS) -> (...)."""
        square, chance = self._squares(sums)
        return np.sqrt(np.maximum(square - chance, 0.0))

    def resampled(self, total: Floats) -> Callable[[Floats], Floats]:
        """`aggregate` less the part of chance in `total`, which resamples have besides their own."""
        _, chance_in_total = self._squares(total)

        def corrected(sums: Floats) -> Floats:
            square, chance = self._squares(sums)
            values: Floats = np.sqrt(np.maximum(square - chance - chance_in_total, 0.0))
            return values

        return corrected

    def _squares(self, sums: Floats) -> tuple[Floats, Floats]:
        """The mean square over bins, (...), and the part of it that chance explains, (...)."""
        count, first, second = np.split(sums, 3, axis=-1)
        mean = ratio(first, count)
        variance = ratio(second - count * mean**2, count - 1)
        chance = np.where(count > 1, ratio(np.maximum(variance, 0.0), count), mean**2)
        share = ratio(count, count.sum(-1, keepdims=True))
        return (share * mean**2).sum(-1), (share * chance).sum(-1)

    def signature(self) -> str:
        """The number of bins."""
        return f"bins:{BINS}"


class ExpectedCalibrationError(Metric):
    """Mean distance between confidence and accuracy over bins of confidence.

    Why: others report it. It is biased upwards by chance, so it has no interval and two systems are not compared by it;
    the note says how large it would be if every confidence were true. `calibration_error` mends that.
    Formula: sum over 15 bins of equal width of |right in bin - confidence in bin| / n, for the predicted label only.
    Range 0 to 1, lower is better. Source: Naeini et al. 2015; 15 bins as Guo et al. 2017; the consistency band after
    Bröcker and Smith 2007.
    """

    name, title, worst, best = "ece", "Expected calibration error", 1.0, 0.0
    has_interval = False

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows of BINS + 1: right minus confidence in its bin, and 1; the note has the consistency band."""
        positions, notes = with_probabilities(examples)
        confidence, right = confidences(examples, positions)
        rows = np.zeros((len(positions), BINS + 1))
        rows[np.arange(len(rows)), bin_of(confidence)] = right - confidence
        rows[:, -1] = 1
        mean, most = consistency_band(confidence)
        band = (
            f"with these confidences a perfectly calibrated system would have {mean:.3f} on average, and at most "
            f"{most:.3f} in 95 of 100 samples"
        )
        return SufficientStatistics(rows, np.arange(len(rows)), positions, (*notes, band))

    def aggregate(self, sums: Floats) -> Floats:
        """(..., BINS + 1) -> (...)."""
        return ratio(np.abs(sums[..., :-1]).sum(-1), sums[..., -1])

    def signature(self) -> str:
        """The number of bins."""
        return f"bins:{BINS}"


class Aurc(Metric):
    """Area under the risk-coverage curve: the mean error rate over all possible shares of cases kept.

    Why: if a nurse takes over the uncertain cases, it matters whether confidence separates right from wrong. Only the
    ranking counts, so calibration does not change it.
    Formula: mean over k = 1..n of the error rate among the k most confident; equal confidences, in steps of 0.005,
    share their errors evenly. Range 0 to 1, lower is better. Source: Geifman et al. 2019; the steps are ours.
    """

    name, title, worst, best = "aurc", "Area under risk-coverage", 1.0, 0.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (2 x levels,) with a single 1: two columns per level of confidence, for right and wrong."""
        positions, notes = with_probabilities(examples)
        confidence, right = confidences(examples, positions)
        seen, row_of = np.unique(_level_cells(confidence, right), return_inverse=True)
        rows = np.zeros((len(seen), 2 * LEVELS))
        rows[np.arange(len(seen)), seen] = 1
        return SufficientStatistics(rows, row_of.reshape(-1), positions, notes)

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 2 x levels) -> (...)."""
        right, wrong = sums[..., ::2][..., ::-1], sums[..., 1::2][..., ::-1]  # most confident first
        size = right + wrong
        before = np.cumsum(size, -1) - size
        errors_before = np.cumsum(wrong, -1) - wrong
        # Within a level of m cases and e errors, errors_before + e k / m of the first before + k cases are errors. With
        # H the harmonic numbers, sum_k (a + b k) / (B + k) = b m + (a - b B) (H(B + m) - H(B)).
        slope = ratio(wrong, size)
        area = slope * size + (errors_before - slope * before) * (_harmonic(before + size) - _harmonic(before))
        return ratio(area.sum(-1), size.sum(-1))

    def signature(self) -> str:
        """The step of confidence."""
        return f"step:{CONFIDENCE_STEP}"


class SelectiveError(_Mean):
    """Error rate among the decisions that are not deferred to a person.

    Why: the threshold was shown on validation to keep a target error rate with 95 % confidence; this is the rate here.
    Formula: wrong / kept; not computed if every case is deferred. Range 0 to 1, lower is better. Source: Geifman and
    El-Yaniv 2017, "selective risk".
    """

    name, title, worst, best = "selective_error", "Error rate when not deferred", 1.0, 0.0

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (kept and wrong, kept)."""
        positions, notes = with_probabilities(examples)
        kept, right = _kept(self.threshold, examples, positions)
        decided = kept > 0
        if not decided.any():
            raise NothingToCount("all cases are deferred, so no decision is left to be wrong")
        rows = np.stack((1 - right[decided], np.ones(decided.sum())), -1)
        return SufficientStatistics(rows, np.arange(len(rows)), positions[decided], notes)


class Deferred(_Mean):
    """Share of cases left to a person: below the deferral threshold, or deferred by the model for another reason.

    Why: the price of the error rate of `selective_error`. Formula: deferred / n. Range 0 to 1, lower is better.
    Source: one minus the coverage of Geifman and El-Yaniv 2017.
    """

    name, title, worst, best = "deferred", "Deferred", 1.0, 0.0

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (deferred, 1)."""
        positions, notes = with_probabilities(examples)
        kept, _ = _kept(self.threshold, examples, positions)
        rows = np.stack((1 - kept, np.ones(len(kept))), -1)
        return SufficientStatistics(rows, np.arange(len(rows)), positions, notes)


class ConformalCoverage(_Mean):
    """Share of prediction sets that contain the gold label.

    Why: split conformal sets guarantee it for any model; this checks the guarantee, which fails if the data differ from
    validation. Formula: gold in set / n. Range 0 to 1, higher is better (target: one minus the chosen miscoverage).
    Source: Vovk et al. 2005; Sadinle, Lei and Wasserman 2019.
    """

    name, title, worst, best = "conformal_coverage", "Coverage of prediction sets", 0.0, 1.0

    def __init__(self, cutoff: float | None = None) -> None:
        self.cutoff = cutoff

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (gold in set, 1)."""
        positions, notes = with_probabilities(examples)
        sets = _sets(self.cutoff, examples, positions)
        covered = [examples.records[i].label in labels for i, labels in zip(positions, sets, strict=True)]
        rows = np.stack((covered, np.ones(len(covered))), -1)
        return SufficientStatistics(rows, np.arange(len(rows)), positions, notes)


class ConformalSetSize(_Mean):
    """Mean number of labels in a prediction set.

    Why: coverage is trivial with all labels in every set; a good model gets it with small sets. Formula: mean size.
    Range 1 upwards, lower is better. Source: as conformal_coverage.
    """

    name, title, worst, best = "conformal_set_size", "Labels in a prediction set", np.inf, 1.0

    def __init__(self, cutoff: float | None = None) -> None:
        self.cutoff = cutoff

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (size, 1)."""
        positions, notes = with_probabilities(examples)
        sizes = [len(labels) for labels in _sets(self.cutoff, examples, positions)]
        rows = np.stack((sizes, np.ones(len(sizes))), -1)
        return SufficientStatistics(rows, np.arange(len(rows)), positions, notes)


def confidence_of(prediction: Prediction) -> float:
    """The probability of the predicted label, 0 if there is no answer; the prediction must have probabilities."""
    return (prediction.probabilities or {}).get(prediction.predicted_label, 0.0)


def is_most_probable(prediction: Prediction) -> bool:
    """Whether no label is more probable than the predicted one, up to rounding."""
    most = max((prediction.probabilities or {}).values(), default=0.0)
    return bool(confidence_of(prediction) >= most - ROUNDING)


def consistency_band(confidence: Floats) -> tuple[float, float]:
    """The mean and the 95 % quantile of the ECE if each decision were right with its confidence (n,)."""
    rng, bins = np.random.default_rng(0), bin_of(confidence)
    order = np.argsort(bins, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(bins[order]) > 0])
    draws = []
    for _ in range(BAND_DRAWS):
        gaps = (rng.random(len(order)) < confidence[order]) - confidence[order]
        draws.append(np.abs(np.add.reduceat(gaps, starts)).sum() / len(order))
    return float(np.mean(draws)), float(np.quantile(draws, 0.95))


def bin_of(confidence: Floats) -> Integers:
    """The bin of each confidence among BINS of equal width; 1 falls into the last."""
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def reliability_sums(examples: Examples) -> Floats:
    """For each bin of confidence the number of cases, the sum of their confidences, and how many are right: (BINS, 3).

    Raises:
        NothingToCount: no prediction has probabilities.
    """
    positions, _ = with_probabilities(examples)
    confidence, right = confidences(examples, positions)
    bins = bin_of(confidence)
    return np.stack([np.bincount(bins, weights, BINS) for weights in (None, confidence, right)], -1).astype(float)


def reliability_curve(sums: Floats) -> list[dict[str, float]]:
    """The mean confidence, accuracy and number of cases of each bin that has cases, from `reliability_sums`."""
    return [
        {"confidence": float(confidence / count), "accuracy": float(right / count), "n": int(count)}
        for count, confidence, right in sums
        if count
    ]


def level_sums(examples: Examples) -> Floats:
    """For each level of confidence, lowest first, how many cases are right and how many wrong: (levels, 2).

    Raises:
        NothingToCount: no prediction has probabilities.
    """
    positions, _ = with_probabilities(examples)
    confidence, right = confidences(examples, positions)
    return np.bincount(_level_cells(confidence, right), minlength=2 * LEVELS).reshape(LEVELS, 2).astype(float)


def risk_coverage_curve(sums: Floats) -> list[dict[str, float]]:
    """For each level of confidence that has cases, highest first: the share of cases at or above it, and their errors.

    Args:
        sums: as `level_sums`.
    """
    kept, errors = np.cumsum(sums[::-1].sum(-1)), np.cumsum(sums[::-1, 1])
    return [
        {"confidence": float(level * CONFIDENCE_STEP), "coverage": float(k / kept[-1]), "risk": float(e / k)}
        for level, k, e, cases in zip(range(LEVELS - 1, -1, -1), kept, errors, sums[::-1].sum(-1), strict=True)
        if cases
    ]


def _level_cells(confidence: Floats, right: Floats) -> Integers:
    """Twice the level of each confidence, and one more for what is wrong, (n,)."""
    cells: Integers = np.rint(confidence / CONFIDENCE_STEP).astype(np.int64) * 2 + (right == 0)
    return cells


def _gold_probabilities(examples: Examples, positions: Integers) -> Floats:
    return np.array([(examples.predictions[i].probabilities or {})[examples.records[i].label or ""] for i in positions])


def _kept(threshold: float | None, examples: Examples, positions: Integers) -> tuple[Floats, Floats]:
    """Whether each case is kept, 1 or 0, and whether its decision is right."""
    if threshold is None:
        raise NotComputed("no deferral threshold: no validation outcomes were given")
    confidence, right = confidences(examples, positions)
    # A model may defer for other reasons too: a long text, a reason that does not support the decision.
    told = np.array([examples.predictions[i].deferred is not True for i in positions], bool)
    return (told & (confidence >= threshold - ROUNDING)).astype(float), right


def _sets(cutoff: float | None, examples: Examples, positions: Integers) -> list[tuple[str, ...]]:
    if cutoff is None:
        raise NotComputed("no prediction sets: no validation outcomes were given")
    return [prediction_set(examples.predictions[i].probabilities or {}, cutoff) for i in positions]


def _harmonic(numbers: Floats) -> Floats:
    """The harmonic numbers H(n) = 1 + 1/2 + ... + 1/n for whole n."""
    if not numbers.size:
        return numbers
    table = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, numbers.max() + 1))))
    return table[np.rint(numbers).astype(np.int64)]

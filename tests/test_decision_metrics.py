"""Ordinal metrics, probabilities and deferral, against hand-derived numbers and scikit-learn."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_data import data, evaluation
from scipy.optimize import minimize_scalar
from scipy.stats import binom
from sklearn.metrics import cohen_kappa_score, f1_score, log_loss, matthews_corrcoef

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import DataError, NotComputed
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.metrics.calibration import (
    Aurc,
    Brier,
    CalibrationError,
    Deferred,
    ExpectedCalibrationError,
    LogLoss,
    SelectiveError,
    consistency_band,
    level_sums,
    reliability_curve,
    reliability_sums,
    risk_coverage_curve,
)
from reason2decide.evaluation.metrics.decisions import Mcc, MicroF1, WeightedF1
from reason2decide.evaluation.metrics.ordinal import (
    ExpectedCost,
    MeanAbsoluteError,
    OverTriage,
    QuadraticKappa,
    UnderTriage,
    read_costs,
)
from reason2decide.model.calibration import (
    Calibration,
    conformal_cutoff,
    deferral_threshold,
    fit_temperature,
    label_distribution,
    prediction_set,
    rescaled,
)

NAMES = ("home", "doctor", "hospital", "ambulance")
TRIAGE = LabelSet(NAMES, ordinal=True, urgent="last")


def decided(gold, predicted, labels=TRIAGE, probabilities=None):
    records = [Record(f"r{i}", "text", label) for i, label in enumerate(gold)]
    given = probabilities or [None] * len(gold)
    predictions = [Prediction(f"r{i}", label, p) for i, (label, p) in enumerate(zip(predicted, given, strict=True))]
    return Examples(records, predictions, labels)


def value(metric, examples):
    return float(metric.aggregate(metric.statistics(examples).total()))


pairs = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=2, max_size=40)


@settings(max_examples=80, deadline=None)
@given(pairs)
def test_label_metrics_equal_scikit_learn(pairs):
    gold, predicted = zip(*pairs, strict=True)
    examples = decided(gold, predicted)
    labels = list(NAMES)
    for metric, average in ((MicroF1(), "micro"), (WeightedF1(), "weighted")):
        expected = f1_score(gold, predicted, labels=labels, average=average, zero_division=0)
        assert value(metric, examples) == pytest.approx(expected, abs=1e-12)
    assert value(Mcc(), examples) == pytest.approx(matthews_corrcoef(gold, predicted), abs=1e-12)
    if len({*gold, *predicted}) > 1:
        kappa = cohen_kappa_score(gold, predicted, labels=labels, weights="quadratic")
        assert value(QuadraticKappa(), examples) == pytest.approx(kappa, abs=1e-12)


def test_mcc_takes_no_answer_for_one_more_label():
    gold, predicted = ["home", "home", "doctor", "doctor"], ["home", NO_ANSWER, "doctor", "home"]
    assert value(Mcc(), decided(gold, predicted)) == pytest.approx(matthews_corrcoef(gold, predicted), abs=1e-12)


def test_triage_by_hand_and_by_the_urgent_end():
    gold = ["home", "doctor", "hospital", "ambulance", "ambulance"]
    predicted = ["doctor", "doctor", "home", "hospital", NO_ANSWER]
    examples = decided(gold, predicted)
    # Of four answered: one level over, right, two levels under, one level under.
    assert value(UnderTriage(), examples) == 2 / 4 and value(OverTriage(), examples) == 1 / 4
    assert value(MeanAbsoluteError(), examples) == (1 + 0 + 2 + 1) / 4
    assert UnderTriage().statistics(examples).notes == ("1 of 5 records got no valid answer and are left out",)
    reversed_set = LabelSet(NAMES, ordinal=True, urgent="first")
    assert value(UnderTriage(), decided(gold, predicted, reversed_set)) == 1 / 4
    assert value(QuadraticKappa(), decided(gold[:4], gold[:4], reversed_set)) == 1


def test_ordinal_metrics_say_what_is_missing():
    plain = decided(["home"], ["home"], LabelSet(NAMES))
    unurgent = decided(["home"], ["home"], LabelSet(NAMES, ordinal=True))
    for metric in (QuadraticKappa(), MeanAbsoluteError(), UnderTriage(), OverTriage()):
        with pytest.raises(NotComputed, match="not declared ordinal"):
            metric.statistics(plain)
    with pytest.raises(NotComputed, match="which end"):
        UnderTriage().statistics(unurgent)
    assert value(MeanAbsoluteError(), unurgent) == 0
    with pytest.raises(NotComputed, match="no record got a valid answer"):
        MeanAbsoluteError().statistics(decided(["home"], [NO_ANSWER]))


def test_costs_are_the_users(tmp_path: Path):
    file = tmp_path / "costs.csv"
    file.write_text("gold,no,yes\nyes,10,0\nno,0,1\n")
    labels = LabelSet(("yes", "no"))
    costs = read_costs(file, labels)
    assert costs == {"yes": {"no": 10.0, "yes": 0.0}, "no": {"no": 0.0, "yes": 1.0}}
    examples = decided(["yes", "yes", "no", "no"], ["no", "yes", "yes", "no"], labels)
    assert value(ExpectedCost(costs), examples) == (10 + 0 + 1 + 0) / 4
    with pytest.raises(NotComputed, match="--costs"):
        ExpectedCost().statistics(examples)


@pytest.mark.parametrize(
    "content", ["\ufeffgold;no;yes\r\nyes;10;0\r\nno;0;1\r\n;;\r\n", "gold, no, yes,,\nyes, 10, 0,,\n,,\nno,0,1,,\n"]
)
def test_costs_as_spreadsheets_write_them(tmp_path: Path, content: str):
    (tmp_path / "costs.csv").write_text(content, "utf-8")
    costs = read_costs(tmp_path / "costs.csv", LabelSet(("yes", "no")))
    assert costs == {"yes": {"no": 10.0, "yes": 0.0}, "no": {"no": 0.0, "yes": 1.0}}
    (tmp_path / "costs.csv").write_bytes("gold,né,yes\n".encode("cp1252"))
    with pytest.raises(DataError, match="save it as CSV in UTF-8"):
        read_costs(tmp_path / "costs.csv", LabelSet(("yes", "no")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gold,no\nyes,1\n", "each label once as a row and once as a column: yes, no; its columns are no"),
        ("gold,no,yes\nyes,1,0\nyes,0,1\n", "each label once"),
        ("gold,no,yes\nyes,1\nno,0,1\n", "expected a number for each label"),
        ("gold,no,yes\nyes,much,0\nno,0,1\n", "expected a number"),
        ("gold,no,yes\nyes,-1,0\nno,0,1\n", "at least 0"),
        ("gold,no,yes\nyes,inf,0\nno,0,1\n", "at least 0"),
        ("", "each label once.*its columns are missing"),
    ],
)
def test_bad_costs_are_refused(tmp_path: Path, content: str, message: str):
    file = tmp_path / "costs.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_costs(file, LabelSet(("yes", "no")))


# ---- probabilities


def distributions(draw_from, size):
    weights = np.asarray(draw_from, float).reshape(-1, size) + 1e-3
    return [dict(zip(NAMES, row / row.sum(), strict=True)) for row in weights]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=16, max_size=16), st.lists(st.sampled_from(NAMES), min_size=4, max_size=4))
def test_log_loss_and_brier_equal_independent_code(weights, gold):
    given_ = distributions(weights, 4)
    predicted = [max(p, key=p.__getitem__) for p in given_]
    examples = decided(gold, predicted, probabilities=given_)
    table = np.array([[p[name] for name in sorted(NAMES)] for p in given_])
    assert value(LogLoss(), examples) == pytest.approx(log_loss(gold, table, labels=sorted(NAMES)), abs=1e-9)
    onehot = np.array([[name == label for name in sorted(NAMES)] for label in gold], float)
    assert value(Brier(), examples) == pytest.approx(((table - onehot) ** 2).sum(1).mean(), abs=1e-12)


def sure(confidences, right):
    """Two-label examples with these confidences in a label that is right or not."""
    labels = LabelSet(("a", "b"))
    return decided(
        ["a" if own else "b" for own in right], ["a"] * len(right), labels, [{"a": p, "b": 1 - p} for p in confidences]
    )


def test_ece_by_hand():
    # Bins of 1/15: 0.95 and 0.97 share the last, one of the two is right; 0.6 stands alone in its bin and is right.
    examples = sure([0.95, 0.97, 0.6], [True, False, True])
    assert value(ExpectedCalibrationError(), examples) == pytest.approx((abs(1 - 0.95 - 0.97) + abs(1 - 0.6)) / 3)
    assert value(ExpectedCalibrationError(), sure([1.0, 1.0], [True, True])) == 0  # 1 is in the last bin, not beyond


def test_aurc_by_hand_and_by_brute_force():
    # Errors among the 1, 2, 3, 4 most confident: 0/1, 1/2, 1/3, 2/4.
    assert value(Aurc(), sure([0.9, 0.8, 0.7, 0.6], [True, False, True, False])) == pytest.approx(
        (0 + 1 / 2 + 1 / 3 + 2 / 4) / 4
    )
    # All equally sure: whichever come first, the expected rate is that of all.
    assert value(Aurc(), sure([0.75] * 4, [True, False, True, False])) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    confidence = np.round(rng.uniform(0.5, 1, 300) / 0.05) * 0.05
    right = rng.random(300) < confidence
    expected = []
    for _ in range(4000):  # ties in random order
        order = np.lexsort((rng.random(300), -confidence))
        expected.append((np.cumsum(~right[order]) / np.arange(1, 301)).mean())
    assert value(Aurc(), sure(confidence, right)) == pytest.approx(np.mean(expected), abs=5e-4)


def test_aurc_of_resamples_is_that_of_the_resampled_examples():
    rng = np.random.default_rng(1)
    confidence, right = rng.uniform(0.5, 1, 50), rng.random(50) < 0.7
    own = Aurc().statistics(sure(confidence, right))
    for _ in range(5):
        drawn = rng.integers(50, size=50)
        sums = np.bincount(own.row_of[drawn], minlength=len(own.rows)) @ own.rows
        assert float(Aurc().aggregate(sums)) == pytest.approx(value(Aurc(), sure(confidence[drawn], right[drawn])))


def test_risk_coverage_curve_ends_in_the_error_rate():
    curve = risk_coverage_curve(level_sums(sure([0.9, 0.9, 0.6], [True, False, True])))
    assert curve == [
        {"confidence": pytest.approx(0.9), "coverage": pytest.approx(2 / 3), "risk": 0.5},
        {"confidence": pytest.approx(0.6), "coverage": 1.0, "risk": pytest.approx(1 / 3)},
    ]


def test_predictions_without_probabilities_are_left_out_and_told():
    examples = decided(["home", "home"], ["home", "home"], probabilities=[dict.fromkeys(NAMES, 0.25), None])
    own = LogLoss().statistics(examples)
    assert len(own) == 1 and own.notes == ("1 of 2 predictions have no probabilities and are left out",)
    for metric in (LogLoss(), Brier(), CalibrationError(), ExpectedCalibrationError(), Aurc(), SelectiveError(0.5)):
        with pytest.raises(NotComputed, match="no prediction has probabilities"):
            metric.statistics(decided(["home"], ["home"]))
    with pytest.raises(NotComputed, match="no deferral threshold"):
        SelectiveError().statistics(examples)


# ---- calibration


def test_temperature_is_the_minimum_that_an_optimiser_finds():
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=k) * 4 for k in rng.integers(2, 7, 400)]
    gold = [int(rng.choice(len(own), p=label_distribution(own, 2.5))) for own in scores]

    def loss(log_temperature):
        t = math.exp(log_temperature)
        return -np.mean([math.log(label_distribution(own, t)[g]) for own, g in zip(scores, gold, strict=True)])

    found = fit_temperature(scores, gold)
    assert found == pytest.approx(math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x), rel=1e-4)
    assert found == pytest.approx(2.5, rel=0.2)


def test_temperature_stays_within_its_bounds():
    scores = [np.array([0.0, -5.0])] * 10
    assert fit_temperature(scores, [0] * 10) == pytest.approx(1 / 20)
    assert fit_temperature(scores, [1] * 10) == pytest.approx(20)


def test_rescaling_composes_and_undoes_itself():
    p = {"a": 0.7, "b": 0.2, "c": 0.1}
    assert rescaled(p, 2.0) == pytest.approx(
        dict(zip(p, np.sqrt([0.7, 0.2, 0.1]) / np.sqrt([0.7, 0.2, 0.1]).sum(), strict=True))
    )
    assert rescaled(rescaled(p, 3.0), 1 / 3.0) == pytest.approx(p)
    assert rescaled({"a": 1.0, "b": 0.0}, 2.0)["a"] == pytest.approx(1, abs=1e-5)


def test_deferral_threshold_by_hand():
    # Error rate 0.5: the first threshold tried keeps 10 / 0.5 = 20 cases. Of 20 with 6 errors, P(X <= 5) = 0.0207 and
    # P(X <= 6) = 0.0577 for a binomial of 0.5: six are too many, five are not.
    confidences = np.array([0.905] * 20 + [0.705] * 20)
    right = np.array([True] * 15 + [False] * 5 + [False] * 20)
    assert deferral_threshold(confidences, right, 0.5) == pytest.approx(0.9)  # no lower than the cases that show it
    right[14] = False
    assert deferral_threshold(confidences, right, 0.5) is None
    assert deferral_threshold(confidences, np.ones(40, bool), 0.5) == pytest.approx(0.7)
    assert deferral_threshold(confidences[:19], np.ones(19, bool), 0.5) is None  # too few to show anything
    assert deferral_threshold(confidences, right, 0.0) is None and deferral_threshold(confidences, right, 1.0) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=200), st.floats(0.05, 0.95))
def test_the_deferral_threshold_and_all_above_it_pass_the_binomial_test(outcomes, rate):
    confidences, right = np.array([c / 100 for c, _ in outcomes]), np.array([own for _, own in outcomes])
    threshold = deferral_threshold(confidences, right, rate)
    tried = []
    for step in range(100, -1, -1):
        kept = confidences >= step / 100 - 1e-9
        if kept.sum() >= 10 / rate:
            tried.append((step / 100, kept.sum(), binom.cdf((~right[kept]).sum(), kept.sum(), rate) <= 0.05))
    passed = list(itertools.takewhile(lambda one: one[2], tried))
    least = next((step for step, kept, _ in passed if kept == passed[-1][1]), None)
    assert threshold == (None if least is None else pytest.approx(least))


def test_the_error_rate_is_kept_in_as_many_samples_as_promised():
    """On data like validation's, the decisions kept exceed their error rate in at most 5 of 100 runs."""
    rng = np.random.default_rng(0)
    population = 0.2 + 0.8 * rng.beta(5, 1.2, 200_000)  # calibrated: right with this probability
    exceeded = shown = 0
    for _ in range(200):
        confidences = rng.choice(population, 400)
        threshold = deferral_threshold(confidences, rng.random(400) < confidences, 0.1)
        if threshold is not None:
            shown += 1
            exceeded += (1 - population[population >= threshold]).mean() > 0.1
    assert shown > 100 and exceeded <= 0.05 * 200


def test_conformal_cutoff_by_hand():
    # n = 4. Miscoverage 0.4: floor(5 * 0.4) = 2 may be missed, so p must reach the second from below.
    gold = np.array([0.9, 0.8, 0.4, 0.7])
    assert conformal_cutoff(gold, 0.4) == 0.7
    assert conformal_cutoff(gold, 0.1) == 0.0  # none may be missed: nothing can be promised but with every label
    assert conformal_cutoff(gold, 1.0) > 1
    assert prediction_set({"a": 0.2, "b": 0.5, "c": 0.3}, 0.3) == ("b", "c")
    assert prediction_set({"a": 0.2, "b": 0.5, "c": 0.3}, 0.9) == ("b",)
    assert prediction_set({"a": 0.2, "b": 0.5, "c": 0.3}, 0.0) == ("b", "c", "a")


def test_conformal_sets_cover_what_they_promise():
    rng = np.random.default_rng(0)

    def draw(n):
        p = rng.dirichlet([1, 1, 1], n)
        return p, np.array([rng.choice(3, p=row) for row in p])

    coverages = []
    for _ in range(200):
        p, gold = draw(100)
        cutoff = conformal_cutoff(p[np.arange(100), gold], 0.2)
        q, truth = draw(100)
        coverages.append((q[np.arange(100), truth] >= cutoff).mean())
    assert 0.79 <= np.mean(coverages) <= 0.83


def test_sets_of_equal_probabilities_cover_too():
    """Many records of one probability, which rounding or 1 - (1 - p) would push over the cutoff."""
    p = 1 / 3 + 1e-9
    gold = np.array([p] * 50 + [0.7] * 50)
    for stored in (gold, gold.round(6), np.nextafter(gold, 1)):
        cutoff = conformal_cutoff(stored, 0.1)
        covered = [label in prediction_set({"x": 1 - q, "gold": q}, cutoff) for q in gold for label in ["gold"]]
        assert np.mean(covered) == 1


def test_confidence_is_that_of_the_label_decided():
    """A system may decide by costs: its label is then not the most probable one."""
    labels = LabelSet(("a", "b"))
    given = [{"a": 0.8, "b": 0.2}] * 3 + [{"a": 0.3, "b": 0.7}]
    examples = decided(["b", "a", "b", "b"], ["b", "a", NO_ANSWER, "b"], labels, given)
    # Confidences 0.2, 0.8, 0 and 0.7; right: yes, yes, no, yes.
    assert value(ExpectedCalibrationError(), examples) == pytest.approx((0.8 + 0.2 + 0 + 0.3) / 4)
    notes = CalibrationError().statistics(examples).notes
    assert notes == (
        "2 of 4 predicted labels are not the most probable ones; confidence is the probability of the predicted label",
    )
    calibration = Calibration.fit([np.log([0.8, 0.2]), np.log([0.8, 0.2])], [1, 0], [1, None])
    assert calibration.right.tolist() == [True, False] and calibration.confidences[1] == 0


def test_calibration_error_by_hand():
    # Bin 14: right - confidence = 0.05, -0.95, 0.05, mean -0.85 / 3, variance 1 / 3; bin 9: 0.4, alone.
    examples = sure([0.95, 0.95, 0.95, 0.6], [True, False, True, True])
    mean, variance = -0.85 / 3, 1 / 3
    assert value(CalibrationError(), examples) == pytest.approx(math.sqrt(max(0, 3 / 4 * (mean**2 - variance / 3))))
    # All right at 0.6: the same gap each time, and no variance.
    assert value(CalibrationError(), sure([0.6] * 5, [True] * 5)) == pytest.approx(0.4)


def test_what_is_deferred_for_another_reason_counts_as_deferred():
    # Of four cases the last is under the threshold, and the second, which is wrong, was left to a person since its
    # reason does not support it.
    examples = sure([0.9, 0.8, 0.7, 0.4], [True, False, True, False])
    assert (value(Deferred(0.5), examples), value(SelectiveError(0.5), examples)) == (1 / 4, 1 / 3)
    told = [replace(own, deferred=own.id == examples.predictions[1].id) for own in examples.predictions]
    examples = replace(examples, predictions=told)
    assert (value(Deferred(0.5), examples), value(SelectiveError(0.5), examples)) == (2 / 4, 0)


def test_where_no_threshold_is_shown_all_is_deferred():
    calibration = Calibration.fit([np.log([0.8, 0.2])] * 5, [0] * 5, [0] * 5)  # five cases show nothing
    records, predictions, labels = data()
    results = evaluation(records, predictions, labels, calibration=calibration).results
    assert results.metrics["deferred"].value == 1 and results.metrics["selective_error"].value is None


def test_the_reliability_curve_by_hand():
    # Of fifteen bins the fourteenth and tenth from below have cases; accuracy and confidence are means within each.
    found = reliability_curve(reliability_sums(sure([0.9, 0.92, 0.6, 0.64], [True, False, True, True])))
    assert found == [
        {"confidence": pytest.approx(0.62), "accuracy": 1.0, "n": 2},
        {"confidence": pytest.approx(0.91), "accuracy": 0.5, "n": 2},
    ]


def test_the_consistency_band_is_what_a_true_confidence_gives():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.3, 1, 300)
    mean, most = consistency_band(confidence)
    simulated = [
        value(ExpectedCalibrationError(), sure(confidence.tolist(), (rng.random(300) < confidence).tolist()))
        for _ in range(100)
    ]
    assert mean == pytest.approx(np.mean(simulated), abs=0.005)
    assert 0.88 <= np.mean(np.array(simulated) <= most) <= 1


def test_calibration_survives_a_file_and_holds_what_came_out():
    scores = [np.array([2.0, 0.0]), np.array([0.0, 1.0]), np.array([3.0, 0.0])]
    calibration = Calibration.fit(scores, [0, 0, 0])
    assert calibration.right.tolist() == [True, False, True]
    again = Calibration.from_json(calibration.to_json())
    assert again.temperature == calibration.temperature and again.threshold(0.4) == calibration.threshold(0.4)
    assert (again.gold_probabilities == calibration.gold_probabilities).all()
    for own, p, right in zip(scores, calibration.gold_probabilities, calibration.right, strict=True):
        assert p == pytest.approx(label_distribution(own, calibration.temperature)[0], abs=1e-6)
        assert right == (own.argmax() == 0)

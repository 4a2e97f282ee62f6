"""Metrics against hand-derived numbers, scikit-learn and sacrebleu."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import NotComputed
from reason2decide.evaluation import metrics
from reason2decide.evaluation.metrics import METRICS, Accuracy, Bleu, Chrf, Examples, MacroF1

LABELS = ("home", "clinic", "hospital")
words = st.sampled_from(["fever", "no", "cough", "three", "days", "pain", "chest", "denies", "Chest."])
texts = st.lists(words, max_size=12).map(" ".join)


def decided(gold, predicted, labels=LABELS):
    records = [Record(f"r{i}", "text", label) for i, label in enumerate(gold)]
    predictions = [Prediction(f"r{i}", label) for i, label in enumerate(predicted)]
    return Examples(records, predictions, LabelSet(tuple(labels)))


def explained(gold, written, source="nurse"):
    records = [Record(f"r{i}", "t", "a", {} if text is None else {"nurse": text}) for i, text in enumerate(gold)]
    predictions = [Prediction(f"r{i}", "a", None, text) for i, text in enumerate(written)]
    return Examples(records, predictions, LabelSet(("a", "b")), source)


def value(metric, examples):
    return float(metric.aggregate(metric.statistics(examples).total()))


def test_accuracy_and_macro_f1_by_hand():
    examples = decided(["home", "home", "clinic", "clinic"], ["home", "clinic", "clinic", "clinic"])
    assert value(Accuracy(), examples) == 3 / 4
    # home: 2·1/(2+1) = 2/3; clinic: 2·2/(2+3) = 4/5; hospital is in neither and counts as 0.
    assert value(MacroF1(), examples) == pytest.approx((2 / 3 + 4 / 5 + 0) / 3, abs=1e-15)


def test_confusion_has_gold_rows_and_predicted_columns():
    examples = decided(["home", "home", "clinic"], ["clinic", "home", "hospital"])
    matrix = metrics.confusion_matrix(examples)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]  # the last column: no answer
    scores = metrics.per_label_scores(matrix, LABELS)
    assert scores["home"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert scores["hospital"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40))
def test_decisions_equal_scikit_learn(pairs):
    gold, predicted = zip(*pairs, strict=True)
    examples = decided(gold, predicted)
    matrix = metrics.confusion_matrix(examples)
    assert value(Accuracy(), examples) == pytest.approx(accuracy_score(gold, predicted))
    expected = f1_score(gold, predicted, labels=list(LABELS), average="macro", zero_division=0)
    assert value(MacroF1(), examples) == pytest.approx(expected, abs=1e-12)
    assert matrix[:, :-1].tolist() == confusion_matrix(gold, predicted, labels=list(LABELS)).tolist()
    assert not matrix[:, -1].any()
    table = precision_recall_fscore_support(gold, predicted, labels=list(LABELS), zero_division=0)
    ours = metrics.per_label_scores(matrix, LABELS)
    for i, label in enumerate(LABELS):
        assert list(ours[label].values()) == pytest.approx([column[i] for column in table])


def test_two_hundred_labels_keep_the_statistics_small():
    labels = [f"label {i}" for i in range(200)]
    gold = [labels[i % 200] for i in range(5000)]
    statistics = MacroF1().statistics(decided(gold, gold, labels))
    assert statistics.rows.shape == (200, 600) and len(statistics) == 5000


def test_open_label_sets_have_accuracy_only():
    records = [Record("a", "t", "A", choices=("A", "B")), Record("b", "t", "C", choices=("C", "D", "E"))]
    examples = Examples(records, [Prediction("a", "A"), Prediction("b", "E")], LabelSet())
    assert value(Accuracy(), examples) == 0.5
    for call in (MacroF1().statistics, metrics.confusion_matrix):
        with pytest.raises(NotComputed, match="open"):
            call(examples)


def test_own_choices_outside_the_declared_set_are_no_macro_f1():
    records = [Record("a", "t", "home"), Record("b", "t", "maybe", choices=("maybe", "never"))]
    examples = Examples(records, [Prediction("a", "home"), Prediction("b", "maybe")], LabelSet(LABELS))
    with pytest.raises(NotComputed, match="1 of 2 records"):
        MacroF1().statistics(examples)


@pytest.mark.parametrize(("metric", "theirs"), [(Bleu(), sacrebleu.BLEU()), (Chrf(), sacrebleu.CHRF())])
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts.filter(bool), texts), min_size=1, max_size=6))
def test_overlap_equals_sacrebleu(metric, theirs, pairs):
    gold, written = (list(side) for side in zip(*pairs, strict=True))
    examples = explained(gold, written)
    assert value(metric, examples) == pytest.approx(theirs.corpus_score(written, [gold]).score, abs=1e-9)


@pytest.mark.parametrize(("metric", "theirs"), [(Bleu(), sacrebleu.BLEU()), (Chrf(), sacrebleu.CHRF())])
def test_overlap_aggregates_many_resamples_as_sacrebleu_each(metric, theirs):
    gold = ["chest pain for two days, denies fever", "cough and fever since Monday", "no red flags", "ok"]
    written = ["chest pain for three days, denies fever", "cough, no fever since Monday", "", "ok"]
    statistics = metric.statistics(explained(gold, written))
    weights = np.random.default_rng(0).multinomial(4, [0.25] * 4, size=25)
    ours = metric.aggregate(weights @ statistics.rows)
    assert ours.shape == (25,)
    for row, score in zip(weights, ours, strict=True):
        resampled = np.repeat(np.arange(4), row)
        expected = theirs.corpus_score([written[i] for i in resampled], [[gold[i] for i in resampled]]).score
        assert score == pytest.approx(expected, abs=1e-9)
    assert metric.signature() == str(theirs.get_signature())


def test_bleu_by_hand():
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, 0 of 2 quadruples (smoothed to 1/2), equal length: BP = 1.
    score = value(Bleu(), explained(["a b c d e"], ["a b c x e"]))
    assert score == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3 * (1 / 2) / 2) ** 0.25, abs=1e-9)
    # A perfect but short output: only the brevity penalty remains.
    assert value(Bleu(), explained(["a b c d e f"], ["a b c d"])) == pytest.approx(100 * math.exp(1 - 6 / 4), abs=1e-9)


def test_rationales_without_gold_are_left_out_and_missing_ones_count_as_empty():
    examples = explained(
        ["fever for two days", None, "  ", "cough for two days"], ["fever for two days", "x", "y", None]
    )
    statistics = Bleu().statistics(examples)
    assert statistics.positions.tolist() == [0, 3]
    assert "2 of 4 records have no gold rationale" in statistics.notes[0]
    assert "1 of 2 predicted rationales are missing or empty" in statistics.notes[1]
    # All n-grams of the one text match; 4 words stand against 8.
    assert value(Bleu(), examples) == pytest.approx(100 * math.exp(1 - 8 / 4), abs=1e-9)
    assert value(Bleu(), explained(["fever"], [""])) == value(Chrf(), explained(["fever"], [""])) == 0


@pytest.mark.parametrize("metric", [Bleu(), Chrf()])
def test_overlap_says_why_it_is_not_computed(metric):
    with pytest.raises(NotComputed, match="no rationale source"):
        metric.statistics(explained(["x"], ["x"], source=None))
    with pytest.raises(NotComputed, match="no prediction has a rationale"):
        metric.statistics(explained(["x"], [None]))
    with pytest.raises(NotComputed, match="no record has a gold rationale of source 'llm'"):
        metric.statistics(explained(["x"], ["x"], source="llm"))


def test_counting_in_chunks_changes_nothing(monkeypatch):
    gold = [f"cough for {i} days" for i in range(1, 8)]
    examples = explained(gold, list(reversed(gold)))
    whole = Bleu().statistics(examples).rows
    monkeypatch.setattr("reason2decide.evaluation.metrics.overlap.CHUNK", 3)
    assert (Bleu().statistics(examples).rows == whole).all()


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_says_why_its_formula_range_and_source(metric):
    for word in ("Why:", "Formula:", "Range", "Source:"):
        assert word in (type(metric).__doc__ or "")
    assert metric.worst != metric.best
    assert len({other.name for other in METRICS}) == len(METRICS)

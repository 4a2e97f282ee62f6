"""ROUGE-L against a reference implementation and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rationale_cases import LABELS, value
from rouge_score.rouge_scorer import RougeScorer

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.errors import NotComputed
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.metrics.rouge import RougeL, common_subsequence


def compared(gold, written):
    records = [Record(f"r{i}", "t", "home", {} if text is None else {"nurse": text}) for i, text in enumerate(gold)]
    predictions = [Prediction(f"r{i}", "home", None, text) for i, text in enumerate(written)]
    return Examples(records, predictions, LABELS, "nurse")


ascii_texts = st.text(alphabet="abcAB .,-_'\n12", max_size=50)


def test_rouge_l_by_hand():
    # The common subsequence is "fever two days": 2 · 3 / (4 + 5).
    assert value(RougeL(), compared(["Fever for two days"], ["fever, since two. days (39)"])) == pytest.approx(
        100 * 2 * 3 / (4 + 5)
    )
    found = compared(["same words", None, "not written", "?"], ["Same words!", "x", None, "?"])
    assert value(RougeL(), found) == pytest.approx(100 / 3)
    assert RougeL().statistics(found).notes == (
        "1 of 4 records have no gold rationale of source 'nurse' and are left out",
        "1 of 3 predicted rationales are missing or empty and count as empty text",
    )
    with pytest.raises(NotComputed, match="no record has a gold rationale"):
        RougeL().statistics(compared([None], ["x"]))
    with pytest.raises(NotComputed, match="no rationale source"):
        RougeL().statistics(replace(found, rationale_source=None))


@settings(max_examples=200, deadline=None)
@given(ascii_texts.filter(str.strip), ascii_texts)
def test_rouge_l_equals_rouge_score(gold, written):
    expected = RougeScorer(["rougeL"]).score(gold, written)["rougeL"].fmeasure
    assert value(RougeL(), compared([gold], [written])) == pytest.approx(100 * expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=100), st.lists(st.sampled_from("abc"), max_size=100))
def test_common_subsequence_equals_the_textbook_table(one, other):
    row = [0] * (len(other) + 1)
    for a in one:
        previous = row
        row = [0]
        for j, b in enumerate(other):
            row.append(previous[j] + 1 if a == b else max(previous[j + 1], row[j]))
    assert common_subsequence(one, other) == common_subsequence(other, one) == row[-1]

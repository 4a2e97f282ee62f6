"""The report as a file: what it shows, that data cannot break out of it, its size, and the files beside it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
import string
import sys
from dataclasses import replace

import numpy as np
import pytest
from narrowing import present
from report_data import HOSTILE, LABELS, MARKUP, SEX, calibrated, data, evaluation, long_cases, report, training_log

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import MissingExtraError
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.results import MetricValue
from reason2decide.evaluation.slices import Column
from reason2decide.evaluation.statistics import wilson_interval
from reason2decide.model.calibration import Calibration
from reason2decide.report import render_report, write_report_files
from reason2decide.report.cases import MAX_BARS, CaseViews, marked_parts, pack, select_cases
from reason2decide.report.evaluation_page import MAX_BYTES, calibration_sentences, largest_confusions
from reason2decide.report.metric_views import headline, largest_gaps, metric_view, notes_of, number
from reason2decide.report.plots import MAX_MATRIX, calibration_plots
from reason2decide.report.training_plots import MAX_POINTS, thinned, training_plots


def packed_of(html: str) -> dict:
    stored = present(re.search(r'<script type="text/plain" id="data">([^<]*)</script>', html))
    return json.loads(gzip.decompress(base64.b64decode(stored[1])))


def test_it_shows_the_results_and_is_self_contained():
    html = report(*data(), training_log=training_log(), description={"Method": "r2d"})
    assert html.count('<div class="value">0.750</div>') == 2  # accuracy, and here macro-F1 too
    assert "12 of 60 records have no gold rationale" in html
    assert "must be verified by a human" in html and "reason2decide:" in html and "<dd>r2d</dd>" in html
    assert html.count("<svg") == html.count("</svg>") == 6  # two of calibration, four of training
    assert len(packed_of(html)["columns"]["id"]) == 60
    assert not re.findall(r"https?:|<link|<img|<iframe|@import|url\((?!#)", html)


def test_only_our_script_may_run():
    html = report(*data())
    (code,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert present(re.search(r'Content-Security-Policy" content="([^"]*)"', html))[1] == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hashed}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|fetch\(", code)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    assert report(*data(), training_log=training_log()) == report(*data(), training_log=training_log())
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_report_files(tmp_path / name, calibrated(), training_log=training_log())
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / n).rglob("*.*")} for n in ("one", "other"))
    assert one == other and len(one) > 20


def test_markup_in_data_is_text_everywhere():
    labels = (MARKUP, "b" + MARKUP)
    records = [
        Record(f"{i}{MARKUP}", HOSTILE, labels[i % 2], {MARKUP: HOSTILE}, meta={"sex": MARKUP}) for i in range(4)
    ]
    predictions = [Prediction(record.id, labels[0], {labels[0]: 0.5, labels[1]: 0.5}, HOSTILE) for record in records]
    log = [{"event": "train", "stage": MARKUP, "step": 1, "loss": 1.0}]
    given = {"title": MARKUP, "description": {MARKUP: MARKUP}, "training_log": log, "slices": (SEX,)}
    html = report(records, predictions, LabelSet(labels), source=MARKUP, **given)
    assert "<b>bold" not in html and "<script>document.title" not in html and "&lt;script&gt;" in html
    assert html.count("<script") == html.count("</script") == 2 and "<!--" not in html
    html.encode()  # half a character would not
    assert packed_of(html)["columns"]["text"][0] == HOSTILE.replace("\ud83d", "?")


def test_packed_cases_by_hand():
    text = "\U0001f600 fever since Monday. Nothing else."
    record = Record("a", text, "maybe", {"nurse": "gold"}, choices=("maybe", "never"), meta={"sex": "F"})
    other = Record("b", "cough", "yes", meta={"sex": "M"})
    predictions = [Prediction("a", "never", {"maybe": 0.25, "never": 0.75}, "Fever."), Prediction("b", NO_ANSWER)]
    own = evaluation([record, other], predictions, LabelSet(("yes", "no")))
    views = CaseViews(own.examples, (Column(SEX),))
    value = json.loads(gzip.decompress(base64.b64decode(views.packed(10**6)[0])))
    assert value == {
        "labels": ["yes", "no", "maybe", "never"],
        "columns": {
            "id": ["b", "a"],  # the label of the set first
            "verdict": [2, 1],
            "gold": [0, 2],
            "predicted": [-1, 3],
            "bars": [[], [[2, 25.0], [3, 75.0]]],
            "others": [0, 0],
            "slices": [["M"], ["F"]],
            "text": ["cough", text],
            "parts": [[5], [3, 5, 28]],  # the face has two of JavaScript's characters
            "rationale": ["", "Fever."],
            "gold_rationale": ["", "gold"],
            "doubted": [0, 0],
        },
    }


def test_marked_parts_alternate():
    assert marked_parts("Fever since Monday, no cough", "He has a fever.") == ("", "Fever", " since Monday, no cough")
    assert marked_parts("Fever", "") == ("Fever",)


def test_what_was_not_computed_is_listed_with_its_reason():
    records = [Record("r", "text", "A", choices=("A", "B"))]
    html = report(records, [Prediction("r", "B")], LabelSet(), source=None)
    assert "the label set is open" in html and '<h3 class="after">Not computed</h3>' in html
    assert "Gold rationale" not in html and "Decisions by label" not in html and "<svg" not in html
    own = evaluation(records, [Prediction("r", "B")], LabelSet(), None).results
    absent, others = notes_of(own)
    assert any("Macro-F1" in titles and reason.startswith("the label set is open") for titles, reason in absent)
    assert [text for titles, text in others if titles == "Accuracy"] == [
        "all resamples agree, so the interval is a point and understates the uncertainty"
    ]


def test_numbers_are_rounded_as_their_scale_deserves():
    assert number("accuracy", 0.12345) == "0.123" and number("bleu", 15.06) == "15.1"
    assert number("mcc", -0.5) == "−0.500" and number("accuracy", 0.01, signed=True) == "+0.010"
    assert number("mae", 1.23456) == "1.235" and number("unheard_of", 12.3456) == "12.346"
    assert present(metric_view("mae", MetricValue(0.5, 0.4, 0.6, 9))).track is None  # its range has no end
    assert present(metric_view("mcc", MetricValue(0.0, -0.5, 0.5, 9))).track == (25, 50, 50)
    assert present(metric_view("under_triage", MetricValue(0.1, 0.1, 0.1, 9))).direction == "↓"
    assert metric_view("accuracy", MetricValue(None, None, None, 0)) is None


def test_bleu_is_a_headline_only_where_bertscore_is_missing():
    results = evaluation(*data()).results
    assert [view.name for view in headline(results)] == ["macro_f1", "accuracy", "bleu"]
    results = replace(results, metrics={**results.metrics, "bertscore_f1": MetricValue(0.9, 0.8, 1.0, 60)})
    assert [view.name for view in headline(results)] == ["macro_f1", "accuracy", "bertscore_f1"]


def test_many_labels_list_their_largest_mistakes():
    labels = [f"label {i:02d}" for i in range(MAX_MATRIX + 5)]
    records, predictions, label_set = data(120, labels)
    html = report(records, predictions, label_set)
    assert "too many labels for a matrix" in html and 'class="matrix"' not in html
    assert f"{len(labels) - MAX_BARS} less likely choices are not shown" in html


def test_largest_confusions_by_hand():
    records = [Record(str(i), "t", gold) for i, gold in enumerate("aaaaabb")]
    predicted = ["a", "b", "b", "c", NO_ANSWER, "b", "a"]
    predictions = [Prediction(str(i), label) for i, label in enumerate(predicted)]
    results = evaluation(records, predictions, LabelSet(("a", "b", "c")), None).results
    found = largest_confusions(results, 3)
    assert found == [("a", "b", 2, 40.0), ("a", "c", 1, 20.0), ("a", "(no answer)", 1, 20.0)]


def test_calibration_in_words():
    sentences = calibration_sentences(calibrated().results)
    assert "temperature of 2.00" in sentences[0]
    assert "confidence below 60.0 %" in sentences[1] and "Here it defers 0.0 % (0.0 to 0.0 %)" in sentences[1]
    assert "25.0 % (" in sentences[1]  # every fourth is wrong
    assert "95 % confidence that this keeps an error rate of 10 %" in sentences[1]
    assert "for all cases together, not for each kind of case" in sentences[2]
    assert calibration_sentences(evaluation(*data()).results)[0].startswith("Nothing was fitted")
    few = Calibration(2.0, np.array([0.9, 0.6]), np.array([True, True]), np.array([0.9, 0.6]))
    records, predictions, labels = data()
    sentences = calibration_sentences(evaluation(records, predictions, labels, calibration=few).results)
    assert (
        "no threshold that keeps an error rate of 10 %" in sentences[1]
        and "every case is left to a person" in sentences[1]
    )


def test_the_page_says_what_an_interval_allows_and_where_there_is_none():
    html = report(*data())
    assert "the values that other records of the same kind could have given" in html
    row = re.search(r"Expected calibration error.*?</tr>", html, re.S)
    assert row is not None and "no interval" in row.group()
    assert re.search(r"with these confidences a perfectly calibrated system would have [\d.]+ on average", html)


def test_labels_absent_from_a_slice_are_named():
    records, predictions, labels = data(40)
    records = [replace(record, meta={SEX: "F" if record.label == LABELS[0] else "M"}) for record in records]
    html = report(records, predictions, labels, slices=(SEX,))
    assert f"without: {LABELS[1]}, {LABELS[2]}" in html and f"without: {LABELS[0]}" in html


def test_wilson_interval_is_that_of_the_textbook():
    assert wilson_interval(0.8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)


def test_largest_gaps_come_with_their_slices():
    gaps = largest_gaps(calibrated().results)
    accuracy = next(gap for gap in gaps if gap.title == "Accuracy")
    # Every fourth is wrong, and all of these are F: 15 of its 30.
    assert (accuracy.column, accuracy.gap, accuracy.least, accuracy.most) == ("sex", "0.500", "F", "M")


def test_cases_are_half_wrong_spread_over_labels_and_independent_of_order():
    records, predictions, _ = data(600)
    cases = select_cases(records, predictions, LABELS)
    wrong = [record for record, prediction in cases if record.label != prediction.predicted_label]
    assert len(cases) == 20 and len(wrong) == 10 and len({record.id for record, _ in cases}) == 20
    for label in LABELS:
        assert sum(record.label == label for record in wrong) in (3, 4)
    assert cases == select_cases(records[::-1], predictions[::-1], LABELS)


@pytest.mark.parametrize(("wrong", "right", "expected"), [(0, 50, 0), (3, 50, 3), (50, 4, 16), (50, 0, 20), (2, 3, 2)])
def test_the_other_half_fills_up_where_one_is_short(wrong, right, expected):
    records = [Record(str(i), "t", "a") for i in range(wrong + right)]
    predictions = [Prediction(str(i), "b" if i < wrong else "a") for i in range(wrong + right)]
    cases = select_cases(records, predictions, ("a", "b"))
    assert len(cases) == min(20, wrong + right)
    assert sum(prediction.predicted_label == "b" for _, prediction in cases) == expected


def test_five_thousand_long_cases_stay_under_five_mebibytes():
    records, predictions, labels = long_cases(5000)
    own = evaluation(records[:60], predictions[:60], labels, "authors")  # the numbers of few fill as much of the page
    own = replace(own, examples=Examples(records, predictions, labels, "authors"))
    html = render_report(own, title="A report")
    assert len(html.encode()) < 5 * 2**20
    assert len(packed_of(html)["columns"]["id"]) == 5000 and "records are here" not in html


def test_five_thousand_real_abstracts_would_stay_under_five_mebibytes(shared_data):
    articles = list(json.loads((shared_data / "pubmedqa" / "ori_pqal.json").read_text("utf-8")).items())
    records = [
        Record(id_, "\n".join([own["QUESTION"], *own["CONTEXTS"]]), own["final_decision"], {"a": own["LONG_ANSWER"]})
        for id_, own in articles
    ]
    labels = LabelSet(("yes", "no", "maybe"))
    rng = np.random.default_rng(0)
    predictions = [
        Prediction(r.id, "no", dict(zip(labels.values, rng.dirichlet((1, 1, 1)), strict=True)), r.rationales["a"])
        for r in records
    ]
    views = CaseViews(evaluation(records, predictions, labels, "a", resamples=2).examples)
    assert 5 * len(pack(views.chosen(1000), labels.values)) < MAX_BYTES - 200_000


def test_where_cases_do_not_fit_fewer_are_taken_and_the_page_says_so():
    rng = random.Random(0)
    noise = ["".join(rng.choices(string.ascii_letters, k=20_000)) for _ in range(400)]
    records = [Record(str(i), text, "ab"[i % 2]) for i, text in enumerate(noise)]
    predictions = [Prediction(record.id, "a") for record in records]
    html = report(records, predictions, LabelSet(("a", "b")), source=None)
    ids = packed_of(html)["columns"]["id"]
    assert 0.9 * MAX_BYTES < len(html.encode()) <= MAX_BYTES and 200 < len(ids) < 400
    assert f"it contains {len(ids)} of 400 records" in html
    assert sum(int(id_) % 2 for id_ in ids) == len(ids) // 2  # half of them wrong, by the same rule


def test_plots_have_only_what_was_logged():
    titles = [plot.title for plot in training_plots(training_log()[:-3])]
    assert titles == ["Loss, stage1", "Loss, stage2", "Validation, stage2", "Schedule, stage1 then stage2"]
    assert training_plots([]) == [] and training_plots([{"event": "train", "step": 1}]) == []
    svg = training_plots(training_log())[0].svg
    assert "currentColor" in svg and "var(--series-1)" in svg and "DejaVu" not in svg and "<metadata" not in svg


def test_ids_are_unique_over_the_plots_of_a_page():
    plots = [*training_plots(training_log()), *calibration_plots(calibrated().results)]
    ids = re.findall(r'\bid="([^"]+)"', "".join(plot.svg for plot in plots))
    assert ids and len(set(ids)) == len(ids)


def test_long_logs_stay_small():
    points = [(float(i), float(i)) for i in range(100_000)]
    kept = thinned(points)
    assert len(kept) == MAX_POINTS and kept[0] == points[0] and kept[-1] == points[-1] and kept == sorted(set(kept))
    log = [{"event": "train", "stage": "s", "step": i, "loss": (i * 37 % 101) / 50} for i in range(1, 20_000)]
    assert len(training_plots(log)[0].svg) < 20_000


def test_without_matplotlib_only_plots_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what an import of a package not installed comes to
    records, predictions, labels = data()
    bare = [Prediction(own.id, own.predicted_label) for own in predictions]
    assert "<svg" not in report(records, bare, labels)
    with pytest.raises(MissingExtraError, match=r"reason2decide\[report\]"):
        report(records, predictions, labels)

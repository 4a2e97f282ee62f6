"""The report: what it shows, that data cannot break out of it, and that a browser shows it well."""

from __future__ import annotations

import re
import shutil
import sys

import pytest

from reason2decide.errors import MissingExtraError
from reason2decide.evaluation import evaluate
from reason2decide.predictions import Prediction
from reason2decide.records import LabelSet, Record
from reason2decide.report import CASES, MAX_BARS, MAX_MATRIX, largest_confusions, render_report, select_cases
from reason2decide.report.charts import MAX_POINTS, thinned, training_charts

LABELS = ("home care", "see a doctor", "call an ambulance")
MARKUP = "<script>document.title = 'taken over'</script><b>bold</b> & \"quoted\""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def training_log():
    rows = [
        {"event": "train", "stage": "stage1", "step": step, "loss": 3 / step, "rationale_loss": 3 / step, "alpha": 0.0}
        for step in range(10, 300, 10)
    ]
    for step in range(10, 300, 10):
        row = {"event": "train", "stage": "stage2", "step": step, "loss": 2 / step, "label_loss": 1 / step}
        rows.append(row | {"alpha": 0.7, "sampling_probability": step / 400, "drawn_share": step / 410})
    rows.append({"event": "validation", "stage": "stage1", "step": 100, "loss": 1.0, "label_loss": None})
    rows.append({"event": "validation", "stage": "stage2", "step": 100, "macro_f1": 0.6, "accuracy": 0.7})
    rows += [{"event": "train", "stage": "stage2"}, {"event": "train", "step": 5, "loss": float("nan")}, {}]
    return rows


def data(n=60, labels=LABELS, text="54F, cough 3/7, denies SOB"):
    records, predictions = [], []
    for i in range(n):
        gold, predicted = labels[i % len(labels)], labels[(i + (i % 4 == 0)) % len(labels)]
        records.append(Record(f"call {i}", text, gold, {"nurse": f"cough {i} days"} if i % 5 else {}))
        probabilities = {label: 0.4 / (len(labels) - 1) for label in labels} | {predicted: 0.6}
        predictions.append(
            Prediction(f"call {i}", predicted, probabilities, "Cough without red flags." if i % 7 else "")
        )
    return records, predictions, LabelSet(tuple(labels))


def report(records, predictions, labels, source="nurse", **options):
    results = evaluate(
        predictions,
        records,
        labels,
        rationale_source=source,
        split="test",
        dataset_name="calls",
        dataset_sha256="0" * 64,
        resamples=100,
    )
    return render_report(results, records, predictions, rationale_source=source, **({"title": "A report"} | options))


def test_it_shows_the_results_and_is_self_contained():
    html = report(*data(), training_log=training_log(), description={"Method": "r2d"})
    assert html.count('<div class="value">0.750</div>') == 2  # accuracy, and here macro-F1 too
    assert "n = 48" in html and "12 of 60 records have no gold rationale" in html
    assert "must be verified by a human" in html and "reason2decide:" in html and "<dd>r2d</dd>" in html
    assert html.count("<svg") == html.count("</svg>") == 4
    assert html.count('<article class="case') == CASES
    assert not re.findall(r"https?:|<script|<link|<img|@import|url\((?!#)", html)


def test_the_same_input_gives_the_same_bytes():
    assert report(*data(), training_log=training_log()) == report(*data(), training_log=training_log())


def test_markup_in_data_is_text_everywhere():
    labels = (MARKUP, "b" + MARKUP)
    records = [Record(f"{i}{MARKUP}", MARKUP, labels[i % 2], {MARKUP: MARKUP}) for i in range(4)]
    predictions = [Prediction(record.id, labels[0], {labels[0]: 0.5, labels[1]: 0.5}, MARKUP) for record in records]
    log = [{"event": "train", "stage": MARKUP, "step": 1, "loss": 1.0}]
    given = {"title": MARKUP, "description": {MARKUP: MARKUP}, "training_log": log}
    html = report(records, predictions, LabelSet(labels), source=MARKUP, **given)
    assert "<script" not in html and "<b>bold" not in html
    assert "&lt;script&gt;" in html


def test_not_computed_metrics_and_absent_parts():
    records = [Record("r", "text", "A", choices=("A", "B"))]
    html = report(records, [Prediction("r", "B")], LabelSet(), source=None)
    assert html.count("Not computed; see the notes.") == 3
    assert "the label set is open" in html and "The system gave none." in html and "None was written." in html
    assert "Gold rationale" not in html and "Decisions by label" not in html and "<svg" not in html


def test_many_labels_list_their_largest_mistakes():
    labels = [f"label {i:02d}" for i in range(MAX_MATRIX + 5)]
    records, predictions, label_set = data(120, labels)
    html = report(records, predictions, label_set)
    assert "too many labels for a matrix" in html and 'class="matrix"' not in html
    assert f"{len(labels) - MAX_BARS} less likely choices are not shown" in html


def test_largest_confusions_by_hand():
    records = [Record(str(i), "t", gold) for i, gold in enumerate("aaaabb")]
    predictions = [Prediction(str(i), predicted) for i, predicted in enumerate("abbcba")]
    results = evaluate(
        predictions,
        records,
        LabelSet(("a", "b", "c")),
        rationale_source=None,
        split="test",
        dataset_name="d",
        dataset_sha256="0",
        resamples=10,
    )
    assert largest_confusions(results, 2) == [("a", "b", 2, 50.0), ("a", "c", 1, 25.0)]


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


def test_charts_have_only_what_was_logged():
    titles = [chart.title for chart in training_charts(training_log()[:-3])]
    assert titles == ["Loss, stage1", "Loss, stage2", "Validation, stage2", "Schedule, stage1 then stage2"]
    assert training_charts([]) == [] and training_charts([{"event": "train", "step": 1}]) == []
    svg = training_charts(training_log())[0].svg
    assert "currentColor" in svg and "var(--series-1)" in svg and "DejaVu" not in svg and "<metadata" not in svg


def test_ids_are_unique_over_the_charts_of_a_page():
    ids = re.findall(r'\bid="([^"]+)"', "".join(chart.svg for chart in training_charts(training_log())))
    assert ids and len(set(ids)) == len(ids)


def test_long_logs_stay_small():
    points = [(float(i), float(i)) for i in range(100_000)]
    kept = thinned(points)
    assert len(kept) == MAX_POINTS and kept[0] == points[0] and kept[-1] == points[-1] and kept == sorted(set(kept))
    log = [{"event": "train", "stage": "s", "step": i, "loss": (i * 37 % 101) / 50} for i in range(1, 20_000)]
    assert len(training_charts(log)[0].svg) < 20_000


def test_without_matplotlib_only_curves_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what an import of a package not installed comes to
    assert "<svg" not in report(*data())
    with pytest.raises(MissingExtraError, match=r"reason2decide\[report\]"):
        report(*data(), training_log=training_log())


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs a browser, which CI installs: no chromium, chromium-browser or google-chrome is on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_in_a_browser(browser, tmp_path, width, scheme):
    labels = (*LABELS, "go-to-the-emergency-department-right-now-and-do-not-drive-yourself-there")
    records, predictions, label_set = data(60, labels, MARKUP + " 54F cough " * 200 + "x" * 300)
    path = tmp_path / "report.html"
    path.write_text(report(records, predictions, label_set, training_log=training_log()), "utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    assert (complaints, requests) == ([], [path.as_uri()])
    assert page.title() == "A report" and page.locator("script").count() == 0
    assert MARKUP in page.locator(".note").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] > brightness[1]) == (scheme == "dark")
    assert page.evaluate("getComputedStyle(document.querySelector('figure text')).fill") == ink
    page.close()

"""What a report writes beside its page, plots and tables, and the comparison of systems."""

from __future__ import annotations

import csv
import io
import re
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from narrowing import present
from report_data import LABELS, MARKUP, calibrated, comparison, data, evaluation, training_log

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.report import render_comparison, write_comparison_files, write_report_files
from reason2decide.report.comparison_page import metric_table, p_value
from reason2decide.report.drawing import LIGHT
from reason2decide.report.plots import calibration_plots
from reason2decide.report.tables import LATEX, ReportTable, evaluation_tables, latex_escaped


def test_files_have_the_light_colours_of_the_page(tmp_path):
    css = (resources.files("reason2decide.report") / "templates" / "style.css").read_text("utf-8").split("@media")[0]
    named = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css))
    assert (LIGHT.ink, LIGHT.muted, LIGHT.rule, LIGHT.tint) == tuple(named[n] for n in ("ink", "muted", "rule", "tint"))
    assert LIGHT.series == tuple(named[f"series-{i}"] for i in range(1, 5))
    write_report_files(tmp_path, calibrated(), training_log=training_log())
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert names == {"reliability", "risk_coverage", "confusion", "loss_1", "loss_2", "validation_2", "schedule"}
    for name in names:
        svg = (tmp_path / "plots" / f"{name}.svg").read_text("utf-8")
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "currentColor" not in svg and "var(--" not in svg and LIGHT.ink in svg
        head = (tmp_path / "plots" / f"{name}.png").read_bytes()[:24]
        assert head.startswith(b"\x89PNG") and min(struct.unpack(">II", head[16:])) > 500


def test_the_reliability_diagram_has_confidence_across_and_accuracy_up():
    points = ({"confidence": 0.62, "accuracy": 1.0, "n": 30}, {"confidence": 0.91, "accuracy": 0.5, "n": 10})
    results = replace(calibrated().results, reliability=points)
    (plot,) = (own for own in calibration_plots(results) if own.name == "reliability")
    figure: Any = Figure()
    plot.paint(figure, LIGHT)
    shares, cases = figure.axes
    assert [line.get_xydata().tolist() for line in shares.lines] == [[[0, 0], [1, 1]], [[0.62, 1.0], [0.91, 0.5]]]
    assert [bar.get_height() for bar in cases.patches] == [0.75, 0.25]
    assert (shares.get_ylabel(), cases.get_xlabel()) == ("right", "confidence")


def test_labels_of_any_kind_can_be_drawn(tmp_path):
    labels = ("$x_{", "tab\there \x00", "发烧 \U0001f600")
    write_report_files(tmp_path, evaluation(*data(labels=labels)))
    for path in (tmp_path / "plots").glob("*.svg"):
        ElementTree.parse(path)
    assert "$x_{" in (tmp_path / "plots" / "confusion.svg").read_text("utf-8")


def test_tables_hold_what_results_do(tmp_path):
    own = calibrated()
    write_report_files(tmp_path, own)
    read = {
        p.stem: list(csv.DictReader(io.StringIO(p.read_text("utf-8")))) for p in (tmp_path / "tables").glob("*.csv")
    }
    assert set(read) == {"metrics", "labels", "confusion", "calibration", "slices_1"}
    accuracy = next(row for row in read["metrics"] if row["metric"] == "accuracy")
    assert float(accuracy["low"]) == own.results.metrics["accuracy"].low and accuracy["n"] == "60"
    assert next(row for row in read["metrics"] if row["metric"] == "expected_cost")["value"] == ""
    assert read["confusion"][0] == {
        "gold": "home care",
        LABELS[0]: "15",
        LABELS[1]: "5",
        LABELS[2]: "0",
        "(no answer)": "0",
    }
    assert {(row["sex"], row["records"]) for row in read["slices_1"]} == {("F", "30"), ("M", "30")}
    assert float(read["calibration"][0]["before"]) == own.results.calibration.before["log_loss"]


def test_latex_by_hand():
    table = ReportTable("t", ("label", "f1", "p_holm"), (("[a]_b & c", 0.12345, 0.0001), ("d", -0.5, None)), "f1")
    assert table.latex().splitlines()[1:] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"label & f1 & p\_holm \\",
        r"\midrule",
        r"{[}a]\_b \& c & 0.123 & \textless{}0.001 \\",
        r"d & \textminus{}0.500 & – \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@given(st.text() | st.text(alphabet='\\{}$&#%_~^<>|"`[*−a \n'))
def test_latex_prints_the_text_and_nothing_else(text):
    escaped = latex_escaped(text)
    printed = {code: character for character, code in LATEX.items()}
    tokens = re.findall(r"\\[a-z]+\{\}|\\.|\{.\}|.", escaped)
    assert "".join(tokens) == escaped
    for token in tokens:  # whatever TeX would act upon is one of our codes
        assert token in printed or token not in "\\{}$&#%_~^"
    shown = "".join(printed.get(token, token) for token in tokens)
    assert shown == "".join(character for character in " ".join(text.split()) if character.isprintable())


def test_no_cell_is_a_formula():
    table = ReportTable(
        "t", ("=label", "f1"), (("=HYPERLINK(1)", -0.5), ("+1", 1.0), ("@a", None), ("-a", 2.0), ("a=1", 3.0))
    )
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert [row[0] for row in rows] == ["'=label", "'=HYPERLINK(1)", "'+1", "'@a", "'-a", "a=1"]
    assert [row[1] for row in rows[1:]] == ["-0.5", "1.0", "", "2.0", "3.0"]


def test_tables_of_hostile_names_have_one_line_a_row():
    records = [Record(str(i), "t", f"a&b\\\\\n{i % 2}", {}, meta={"x/y": "p & q"}) for i in range(20)]
    labels = LabelSet(("a&b\\\\\n0", "a&b\\\\\n1"))
    own = evaluation(records, [Prediction(r.id, present(r.label)) for r in records], labels, None, slices=("x/y",))
    for table in evaluation_tables(own.results):
        rows = table.latex().split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
        assert len(rows) == len(table.rows)
        assert all(len(re.findall(r"(?<!\\)&", row)) == len(table.header) - 1 for row in rows)


def test_a_comparison_by_hand():
    accuracy, under = (metric_table(comparison(), name) for name in ("accuracy", "under_triage"))
    assert [row.system for row in accuracy.rows] == ["sft", "r2d", "dss"]
    assert [row.side for row in accuracy.rows] == ["", "better", "worse"]
    assert [row.side for row in under.rows] == ["", "better", ""]  # fewer is better
    r2d = accuracy.rows[1]
    assert (r2d.mean, r2d.interval, r2d.spread, r2d.difference) == ("0.800", "0.750 to 0.850", "0.010", "+0.100")
    assert r2d.difference_interval == "+0.050 to +0.150"
    # The axis reaches 0.15 on either side, at 1 and 99 per cent.
    assert r2d.forest == pytest.approx((50 + 49 / 3, 2 * 49 / 3, 50 + 49 * 2 / 3))
    assert r2d.p_values == ("<0.001", "<0.001", "0.001", "–")
    assert [p_value(p) for p in (0.0009, 0.001, 1.0, None)] == ["<0.001", "0.001", "1.000", "–"]


def test_a_comparison_page_has_its_warnings_and_no_script():
    html = render_comparison(comparison(MARKUP, warnings=(MARKUP,)), title=MARKUP)
    assert "<script" not in html and "<b>bold" not in html and html.count("&lt;script&gt;") > 4
    assert 'class="warnings"' in html and 'class="warnings"' not in render_comparison(comparison(), title="x")
    assert html == render_comparison(comparison(MARKUP, warnings=(MARKUP,)), title=MARKUP)


def test_a_comparison_page_says_what_is_tested_and_what_is_not():
    html = render_comparison(comparison(), title="x")
    assert "<strong>Tested:</strong> Accuracy, Under-triage" in html and "of twenty such differences one" in html
    assert re.search(r"BLEU[^\n]*\(exploratory\)", html) and not re.search(r"<h3[^\n]*Accuracy[^\n]*exploratory", html)
    # A difference of a metric that is not primary is never coloured, however small its p value.
    own = comparison()
    explored = replace(own, primary=(), differences=tuple(replace(change, p_holm=None) for change in own.differences))
    assert {row.side for row in metric_table(explored, "accuracy").rows} == {""}
    assert metric_table(explored, "accuracy").rows[1].p_values[2] == "–"


def test_files_of_a_comparison(tmp_path):
    write_comparison_files(tmp_path, comparison("$r2d_"))
    plots, tables = ({path.name for path in (tmp_path / folder).iterdir()} for folder in ("plots", "tables"))
    metrics = ("accuracy", "under_triage")
    assert plots == {f"forest_{name}.{kind}" for name in metrics for kind in ("svg", "png")}
    assert tables == {f"comparison_{name}.{kind}" for name in (*metrics, "bleu") for kind in ("csv", "tex")}
    svg = (tmp_path / "plots" / "forest_under_triage.svg").read_text("utf-8")
    assert (
        "← better" in svg
        and "$r2d_" in svg
        and "$r2d_" not in (tmp_path / "tables" / "comparison_bleu.csv").read_text()
    )
    rows = list(csv.DictReader((tmp_path / "tables" / "comparison_accuracy.csv").open(encoding="utf-8")))
    assert [(row["system"], row["difference"], row["p_holm"]) for row in rows] == [
        ("$r2d_", "0.1", "0.001"),
        ("sft", "", ""),
        ("dss", "-0.1", "0.04"),
    ]

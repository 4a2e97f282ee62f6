"""Rationales for other labels than the gold one: stored apart, imported, checked, and those of synthetic calls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import reason2decide as r2d
from reason2decide.cli import app
from reason2decide.data.check import check_dataset
from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record, parse_record, record_from_json
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.data.sources.synthetic_calls.facts import Fact, decide, draw_call
from reason2decide.data.sources.synthetic_calls.rules import load_rules
from reason2decide.data.sources.synthetic_calls.weighing import Weighed, Weighing, argued, by_rules, level_argued
from reason2decide.errors import DataError
from reason2decide.evaluation.citations import citations, deciding, true_now

INFO = DatasetInfo("notes", "triage", LabelSet(("home", "doctor", "ambulance")), ("nurse",))
WORDS = st.text(min_size=1).filter(str.strip)


def record(i: int, **contrasts: str) -> Record:
    label = INFO.labels.values[i % 3]
    kept = {"nurse": {name: text for name, text in contrasts.items() if name != label}}
    rationales = {"nurse": f"Cough for {i} days. That is {label}."}
    return Record(f"r{i}", f"cough for {i} days", label, rationales, contrasts=kept if kept["nurse"] else {})


# ---- Records and files


@given(
    st.dictionaries(WORDS, st.dictionaries(WORDS.filter(lambda label: label != "yes"), WORDS, min_size=1), max_size=3)
)
def test_contrasts_survive_json(contrasts: dict[str, dict[str, str]]) -> None:
    made = Record("r", "t", "yes", {"nurse": "gold"}, contrasts=contrasts)
    assert parse_record(json.dumps(made.to_json()), "here") == made
    assert ("contrasts" in made.to_json()) == bool(contrasts)  # files of before stay as they are


@pytest.mark.parametrize(
    ("contrasts", "message"),
    [
        ({"nurse": {"home": "x"}}, "has a contrast of source 'nurse' for its own label 'home'"),
        (["nurse"], "'contrasts' to be an object of source -> label -> text"),
        ({"nurse": "x"}, "'contrasts' to be an object of source -> label -> text"),
        ({"nurse": {"doctor": 3}}, "'contrasts' to be an object of source -> label -> text"),
    ],
)
def test_unusable_contrasts_are_refused(contrasts: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"here: .*{message}"):
        record_from_json({"id": "r", "text": "t", "label": "home", "contrasts": contrasts}, "here")


def test_blank_contrasts_are_none() -> None:
    value = {"id": "r", "text": "t", "label": "home", "contrasts": {"nurse": {"doctor": " "}, "llm": {}}}
    assert record_from_json(value, "here").contrasts == {}


@pytest.mark.parametrize(
    ("contrasts", "message"),
    [
        (
            {"nurse": {"hospital": "x"}},
            "for the label 'hospital', which is not in its set: 'home', 'doctor', 'ambulance'",
        ),
        ({"llm": {"doctor": "x"}}, "of source 'llm', of which no record has a rationale.*nurse"),
    ],
)
def test_a_dataset_has_no_contrast_that_cannot_be_used(tmp_path: Path, contrasts: Any, message: str) -> None:
    splits = {name: [record(i), record(i + 1)] for name, i in (("train", 0), ("validation", 3), ("test", 6))}
    splits["train"][0] = replace(splits["train"][0], contrasts=contrasts)
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "d", INFO, splits)


# ---- Import


def imported(tmp_path: Path, rows: list[dict[str, Any]], *options: str, code: int = 0) -> str:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("--text", "note", "--label", "label", "--id", "id", "--rationale", "nurse=why")
    out = ("--out", str(tmp_path / "d"), "--force")
    result = CliRunner().invoke(app, ["data", "import", "table", str(tmp_path / "t.jsonl"), *columns, *options, *out])
    assert bool(result.exception) == bool(code), result.output
    return str(result.exception) if code else result.stderr


def rows(**extra: Any) -> list[dict[str, Any]]:
    labels = INFO.labels.values
    return [
        {"id": f"r{i}", "note": f"cough for {i} days", "label": labels[i % 3], "why": f"day {i}", **extra}
        for i in range(30)
    ]


def all_records(path: Path) -> list[Record]:
    dataset = DatasetFolder.open(path)
    return [one for split in dataset.hashes for one in dataset.split(split)]


def test_a_column_of_objects_holds_contrasts(tmp_path: Path) -> None:
    for form in (dict, json.dumps):
        given_rows = rows()
        given_rows[0]["others"] = form({"doctor": "It lasts.", "ambulance": None})
        given_rows[1]["others"] = form({"Home ": "It is mild."})
        imported(tmp_path, given_rows, "--contrast", "nurse=others", "--labels", "home,doctor,ambulance")
        found = {one.id: one.contrasts for one in all_records(tmp_path / "d") if one.contrasts}
        assert found == {"r0": {"nurse": {"doctor": "It lasts."}}, "r1": {"nurse": {"home": "It is mild."}}}


def test_a_column_for_each_label_leaves_out_the_gold_one(tmp_path: Path) -> None:
    told = imported(
        tmp_path, rows(for_home="Mild.", for_doctor="Long."),
        "--contrast", "nurse/home=for_home", "--contrast", "nurse/doctor=for_doctor",
    )  # fmt: skip
    assert "20 contrasts are for the gold label of their row and were left out" in told
    for one in all_records(tmp_path / "d"):
        expected = {label: text for label, text in (("home", "Mild."), ("doctor", "Long.")) if label != one.label}
        assert one.contrasts == {"nurse": expected}


@pytest.mark.parametrize(
    ("cell", "option", "message"),
    [
        ({"home": "x"}, "nurse=others", "has a contrast for the row's own label 'home'"),
        ("mild, it is", "nurse=others", "expected an object of label -> text"),
        ([1], "nurse=others", "expected an object of label -> text"),
        ({"hospital": "x"}, "nurse=others", "for the label 'hospital', which is not in its set"),
        ({"doctor": "x"}, "llm=others", "names the source 'llm', for which no --rationale is given"),
        ({"doctor": "x"}, "nurse:others", "expected SOURCE=COL or SOURCE/LABEL=COL"),
        ({"doctor": "x"}, "nurse=missing", "no column 'missing'"),
    ],
)
def test_what_cannot_be_imported_is_told(tmp_path: Path, cell: Any, option: str, message: str) -> None:
    given_rows = rows()
    given_rows[0]["others"] = cell
    assert message in imported(tmp_path, given_rows, "--contrast", option, code=2)


def test_contrasts_go_to_a_table_and_back() -> None:
    given_rows = rows(others={"ambulance": "It may get worse."})
    given_rows = [row for row in given_rows if row["label"] != "ambulance"]
    columns: dict[str, Any] = {"text": "note", "label": "label", "id": "id", "rationales": {"nurse": "why"}}
    data = r2d.Dataset.from_list(given_rows, contrasts={"nurse": "others"}, labels=INFO.labels, **columns)
    table = data.to_list()
    assert json.loads(table[0]["contrasts_nurse"]) == {"ambulance": "It may get worse."}
    columns |= {"text": "text", "rationales": {"nurse": "rationale_nurse"}, "split": "split"}
    again = r2d.Dataset.from_list(table, contrasts={"nurse": "contrasts_nurse"}, labels=INFO.labels, **columns)
    assert [list(again[split]) for split in again.splits] == [list(data[split]) for split in data.splits]


# ---- Check


def test_the_check_tells_how_many_labels_are_argued_for_and_what_teaches_little(tmp_path: Path) -> None:
    gold = record(1).rationales["nurse"]
    train = [
        record(1, home=gold, ambulance="Cough for 1 days. That is ambulance."),  # the same; another last sentence
        record(2, home="Only a cough. Nothing else. Home it is."),
        record(3),
    ]
    splits = {"train": train, "validation": [record(4), record(5)], "test": [record(6), record(7)]}
    write_dataset(tmp_path / "d", INFO, splits)
    report = check_dataset(tmp_path / "d")
    counts = report.contrasts["nurse"]["train"]
    assert (counts.records, dict(counts.labels)) == (2, {"home": 2, "ambulance": 1})
    assert (counts.repeats_gold, counts.one_sentence) == (1, 1)
    told = "\n".join(report.warnings)
    assert "1 of 3 contrasts of source 'nurse' equal the gold rationale" in told
    assert "1 of 3 contrasts of source 'nurse' differ from the gold rationale in one sentence" in told
    printed = CliRunner().invoke(app, ["data", "check", str(tmp_path / "d")]).output
    assert "labels argued for" in printed and "2 (67%)" in printed and "home 2, ambulance 1" in printed


def test_contrasts_added_by_hand_of_a_source_nobody_has_are_errors(tmp_path: Path) -> None:
    splits = {name: [record(i), record(i + 1)] for name, i in (("train", 0), ("validation", 3), ("test", 6))}
    write_dataset(tmp_path / "d", INFO, splits)
    extra = replace(record(9), contrasts={"llm": {"doctor": "x"}})
    with (tmp_path / "d" / "train.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(extra.to_json()) + "\n")
    assert any("have contrasts that cannot be used" in error for error in check_dataset(tmp_path / "d").errors)


# ---- Synthetic calls


def test_synthetic_contrasts_weigh_the_same_true_facts_otherwise(tmp_path: Path) -> None:
    calls = list(synthesize_calls(tmp_path / "d", train=1, validation=1, test=400).split("test"))
    labels, urgency = load_rules().labels, load_rules().rationale["urgency"]
    weighed = 0
    for call in calls:
        assert set(call.contrasts["llm"]) == {*labels} - {call.label}
        for label, text in call.contrasts["llm"].items():
            assert text.endswith(urgency[labels.index(label)])
            cited = citations(text)
            assert cited.present <= true_now(call) and not cited.denied & true_now(call)
            assert deciding(call) <= cited.present  # what decided is named, whichever way it is weighed
            assert level_argued(text, load_rules()) == labels.index(label)  # the moves lead there
            facts = set(text.removesuffix(urgency[labels.index(label)]).split(". "))
            gold = set(call.rationales["llm"].removesuffix(urgency[labels.index(str(call.label))]).split(". "))
            weighed += facts != gold
    assert weighed == 4 * len(calls)  # no contrast differs in its verdict only
    lower, higher = (next(c for c in calls if c.label == labels[i]).contrasts["llm"] for i in (-1, 0))
    assert "Against this speaks" in lower[labels[0]] and "raises the urgency no further" in lower[labels[0]]
    assert "by four levels" in higher[labels[-1]] or "by three levels" in higher[labels[-1]]


def test_levels_argued_by_hand() -> None:
    """Home care is level 0, a routine visit 1, a prompt one 2."""
    rules = load_rules()
    up = "A warning sign, chest pain, raises the urgency by two levels."
    down = "It is mild and of recent onset, so the urgency goes down by one level."
    start = "Usually a routine visit is enough for a man with cough for two days."
    for text, level in (
        (start, 1),
        (f"{start} {up}", 3),
        (f"{start} {up} {down} A doctor should look at this before tomorrow.", 2),
        (f"{start} It is severe now, which raises the urgency no further.", 1),
        (f"{start} {up} {up}", None),  # beyond the labels
        (f"{up} {down}", None),  # it begins nowhere
        ("", None),
    ):
        assert level_argued(text, rules) == level


def test_gold_rationales_weigh_by_the_rules(tmp_path: Path) -> None:
    """Also where the label is noisy: the facts are then weighed for the label given."""
    calls = synthesize_calls(tmp_path / "d", train=1, validation=1, test=300, label_noise=0.3).split("test")
    labels = load_rules().labels
    assert all(level_argued(call.rationales["llm"], load_rules()) == labels.index(str(call.label)) for call in calls)


LEVELS = st.integers(0, 4)


@given(st.integers(0, 2**31), LEVELS)
def test_facts_weighed_for_any_level_lead_to_it(seed: int, level: int) -> None:
    """And no fact that raises the urgency is made to lower it."""
    rules = load_rules()
    call = draw_call(Random(seed), rules, held_out=bool(seed % 2))
    decision = decide(call, rules)
    base = rules.complaints[call.complaint].base
    natural = by_rules(decision, base)
    assert base + sum(own.levels for own in natural.weighed) == decision.level and natural.rest == 0
    weighing = argued(natural, level - decision.level)
    assert base + sum(own.levels for own in weighing.weighed) + weighing.rest == level
    assert all((own.levels <= 0) if own.kind == "mild" else (own.levels >= 0) for own in weighing.weighed)
    assert [(own.kind, own.facts) for own in weighing.weighed] == [(own.kind, own.facts) for own in natural.weighed]


def test_weighing_by_hand() -> None:
    """Up by two for a red flag and one for a risk, against a mild course that counts only when it has to."""
    flag, risk = (Fact(kind, kind, kind, "") for kind in ("red_flags", "risk"))
    natural = Weighing((Weighed("red_flags", (flag,), 2), Weighed("risk", (risk,), 1)))
    levels = {away: [own.levels for own in argued(natural, away).weighed] for away in (-4, -3, -2, -1, 0, 1)}
    assert levels == {-4: [0, 0], -3: [0, 0], -2: [1, 0], -1: [2, 0], 0: [2, 1], 1: [3, 1]}
    assert [argued(natural, away).rest for away in (-4, -3, 1)] == [-1, 0, 0]
    mild = Weighing((Weighed("mild", (Fact("mild", "mild_recent", "mild", ""),), -1),))
    assert [argued(mild, away).weighed[0].levels for away in (-1, 1, 3)] == [-2, 0, 0]
    assert [argued(mild, away).rest for away in (-1, 1, 3)] == [0, 0, 2]

"""The PubMedQA importer, on files of its format and on the official ones."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reason2decide.cli import app
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import JsonlRecords, Record
from reason2decide.data.sources import pubmedqa
from reason2decide.errors import UserError


def r2d(*arguments: object, ok: bool = True) -> str:
    """What `r2d data import pubmedqa` says; with `ok` false the message of the error it must end with."""
    result = CliRunner().invoke(app, ["data", "import", "pubmedqa", *map(str, arguments)])
    if ok:
        assert result.exit_code == 0, result.exception or result.output
        return result.stderr
    assert isinstance(result.exception, UserError), result.exception
    return str(result.exception)


def question(decision: str | None, **changes: object) -> dict[str, object]:
    item: dict[str, object] = {
        "QUESTION": "Does it help?",
        "CONTEXTS": ["We asked.", "It did."],
        "LABELS": ["BACKGROUND", "RESULTS"],
        "LONG_ANSWER": "It seems to help.",
    }
    return item | ({"final_decision": decision} if decision else {}) | changes


def write(path: Path, decisions: list[str | None], first: int = 0) -> Path:
    content = {str(first + i): question(decision, QUESTION=f"Does {i} help?") for i, decision in enumerate(decisions)}
    path.write_text(json.dumps(content, indent=2))
    return path


def test_a_question_becomes_a_record(tmp_path: Path) -> None:
    source = write(tmp_path / "q.json", ["yes", "no", "maybe"] * 10)
    r2d(source, "--out", tmp_path / "d", "--seed", 1)
    dataset = DatasetFolder.open(tmp_path / "d")
    found = {record.id: record for split in dataset.hashes for record in dataset.split(split)}
    assert found["1"] == Record(
        "1",
        "question: Does 1 help?\nBACKGROUND: We asked.\nRESULTS: It did.",
        "no",
        {"human": "It seems to help."},
        group="1",
    )
    assert dataset.info.labels.values == ("yes", "no", "maybe") and not dataset.info.labels.ordinal
    assert dataset.info.rationale_sources == ("human",)
    assert {split: len(dataset.split(split)) for split in dataset.hashes} == {"train": 24, "validation": 3, "test": 3}


def test_contexts_without_sections_and_without_rationale(tmp_path: Path) -> None:
    content = {str(i): question("yes" if i % 2 else "no", LABELS=[], LONG_ANSWER="") for i in range(40)}
    for i, item in enumerate(content.values()):
        item["QUESTION"] = f"q{i}"
    (tmp_path / "q.json").write_text(json.dumps(content))
    said = r2d(tmp_path / "q.json", "--out", tmp_path / "d")
    record = DatasetFolder.open(tmp_path / "d").split("test")[0]
    assert record.text.endswith("\ncontext: We asked.\ncontext: It did.") and not record.rationales
    assert "rationale sources: none" in said and "labels: yes, no" in said


def test_test_ids_are_the_test_split_and_files_can_be_joined(tmp_path: Path) -> None:
    one = write(tmp_path / "one.json", ["yes", "no"] * 20)
    two = write(tmp_path / "two.json", ["yes", "no"] * 20, first=100)
    (tmp_path / "ids.json").write_text(json.dumps({str(i): "yes" for i in range(20)}))
    r2d(one, two, "--test-ids", tmp_path / "ids.json", "--out", tmp_path / "d")
    dataset = DatasetFolder.open(tmp_path / "d")
    assert {record.id for record in dataset.split("test")} == {str(i) for i in range(20)}
    assert (len(dataset.split("train")), len(dataset.split("validation"))) == (54, 6)
    (tmp_path / "ids.json").write_text(json.dumps(["0", "7777"]))
    message = r2d(one, "--test-ids", tmp_path / "ids.json", "--out", tmp_path / "e", ok=False)
    assert "1 of the 2 test ids" in message and "'7777'" in message
    assert "already occurs" in r2d(one, one, "--out", tmp_path / "e", ok=False)


def test_questions_without_a_decision_become_plain_records(tmp_path: Path) -> None:
    unlabelled, mixed = write(tmp_path / "u.json", [None] * 3), write(tmp_path / "m.json", ["yes", "no", None] * 20)
    message = r2d(unlabelled, "--out", tmp_path / "d", ok=False)
    assert "none of the 3 questions" in message and "--unlabelled-out" in message
    r2d(unlabelled, "--unlabelled-out", tmp_path / "u.jsonl")
    assert [record.label for record in JsonlRecords(tmp_path / "u.jsonl")] == [None] * 3
    assert "20 questions without a final_decision were left out" in r2d(mixed, "--out", tmp_path / "d")
    r2d(mixed, "--out", tmp_path / "e", "--unlabelled-out", tmp_path / "m.jsonl")
    assert len(JsonlRecords(tmp_path / "m.jsonl")) == 20
    assert "already exists" in r2d(mixed, "--out", tmp_path / "f", "--unlabelled-out", tmp_path / "m.jsonl", ok=False)
    message = r2d(write(tmp_path / "y.json", ["yes"]), "--unlabelled-out", tmp_path / "y.jsonl", ok=False)
    assert "every question has a final_decision" in message
    assert "nothing to write" in r2d(mixed, ok=False)
    assert not (tmp_path / "f").exists() and not (tmp_path / "y.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[1]", "is not a PubMedQA file"),
        ("{}", "none of the 0 questions"),
        ('{"1": {"QUESTION": "q",\n "CONTEXTS": [}}', "line 2: not valid JSON"),
        ('{"1": {"QUESTION": "q"},\n\n "2": {"QUES', "line 3: not valid JSON"),
        ('{"1": {"QUESTION": "q"}\n "2": {}}', "line 2: not valid JSON (expected ',' or '}')"),
        ('{"1": {"QUESTION": "q"}}\n{}', "line 2: not valid JSON (more text"),
        ("{1: {}}", "expected a PMID in quotes"),
        ('{"1": {"question": "q"}}', "PMID 1: expected an object with a QUESTION"),
        ('{"1": {"QUESTION": "q", "final_decision": "perhaps"}}', "'perhaps'; expected one of yes, no, maybe"),
        ('{"1": {"QUESTION": "q", "final_decision": "yes"}}', "all 1 records have the label 'yes'"),
    ],
)
def test_bad_files_are_named_and_leave_nothing(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "q.json").write_text(content)
    assert message in r2d(tmp_path / "q.json", "--out", tmp_path / "d", ok=False)
    assert [item.name for item in tmp_path.iterdir()] == ["q.json"]
    assert "not UTF-8" in r2d(_latin(tmp_path / "l.json"), "--out", tmp_path / "d", ok=False)


def _latin(path: Path) -> Path:
    path.write_bytes('{"1": {"QUESTION": "œdème"}}'.encode("cp1252"))
    return path


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
def test_the_streaming_reader_agrees_with_json(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubmedqa, "CHUNK", chunk)
    chance = random.Random(chunk)
    content = {f"{i}": {"QUESTION": 'é"\\\n' * chance.randrange(9), "n": [chance.random(), None]} for i in range(25)}
    for indent in (None, 3):
        (tmp_path / "q.json").write_text(f" \n{json.dumps(content, indent=indent)}\n ")
        assert dict(pubmedqa._items(tmp_path / "q.json")) == content


def test_the_official_split(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "pubmedqa"
    for out in ("d", "again"):
        r2d(folder / "ori_pqal.json", "--test-ids", folder / "test_ground_truth.json", "--out", tmp_path / out)
    dataset, again = DatasetFolder.open(tmp_path / "d"), DatasetFolder.open(tmp_path / "again")
    assert dataset.hashes == again.hashes
    truth = json.loads((folder / "test_ground_truth.json").read_text())
    assert {record.id: record.label for record in dataset.split("test")} == truth
    assert (len(dataset.split("train")), len(dataset.split("validation")), len(dataset.split("test"))) == (450, 50, 500)
    labels = Counter(record.label for split in dataset.hashes for record in dataset.split(split))
    assert labels == {"yes": 552, "no": 338, "maybe": 110}
    assert Counter(record.label for record in dataset.split("validation")) == {"yes": 28, "no": 17, "maybe": 5}
    assert all("human" in record.rationales for record in dataset.split("train"))


def test_the_labelled_questions_without_test_ids(tmp_path: Path, shared_data: Path) -> None:
    r2d(shared_data / "pubmedqa" / "ori_pqal.json", "--out", tmp_path / "d")
    dataset = DatasetFolder.open(tmp_path / "d")
    assert {split: len(dataset.split(split)) for split in dataset.hashes} == {
        "train": 800,
        "validation": 100,
        "test": 100,
    }

"""The BioASQ importer, on a file written after the task's guidelines (its own files need a registration)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reason2decide.cli import app
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.errors import UserError


def r2d(*arguments: object, ok: bool = True) -> str:
    """What `r2d data import bioasq` says; with `ok` false the message of the error it must end with."""
    result = CliRunner().invoke(app, ["data", "import", "bioasq", *map(str, arguments)])
    if ok:
        assert result.exit_code == 0, result.exception or result.output
        return result.stderr
    assert isinstance(result.exception, UserError), result.exception
    return str(result.exception)


def question(number: int, **changes: object) -> dict[str, object]:
    return {
        "id": f"56{number:04d}",
        "type": "yesno",
        "body": f"Is gene {number} involved?",
        "documents": ["http://www.ncbi.nlm.nih.gov/pubmed/1"],
        "exact_answer": "yes" if number % 4 else "no",
        "ideal_answer": [f"Gene {number} is.", "Another way to say it."],
        "snippets": [
            {"text": f"Gene {number} was found.", "document": "d", "beginSection": "abstract"},
            {"text": f"Gene {number} was found.", "document": "d", "beginSection": "title"},
            {"text": " It was seen twice. ", "document": "e"},
        ],
    } | changes


def write(path: Path, questions: list[object]) -> Path:
    path.write_text(json.dumps({"questions": questions}))
    return path


def records(folder: Path) -> dict[str, Record]:
    dataset = DatasetFolder.open(folder)
    return {record.id: record for split in dataset.hashes for record in dataset.split(split)}


def test_questions_become_records(tmp_path: Path) -> None:
    source = write(tmp_path / "b.json", [question(i) for i in range(40)])
    said = r2d(source, "--out", tmp_path / "d")
    assert records(tmp_path / "d")["560001"] == Record(
        "560001",
        "question: Is gene 1 involved?\nsnippet: Gene 1 was found.\nsnippet: It was seen twice.",
        "yes",
        {"human": "Gene 1 is."},
    )
    assert "train 32, validation 4, test 4" in said and "labels: yes, no" in said
    assert "left out" not in said


@pytest.mark.parametrize(
    ("changes", "label", "rationale"),
    [
        ({"exact_answer": "Yes"}, "yes", "Gene 1 is."),
        ({"exact_answer": ["no"]}, "no", "Gene 1 is."),
        ({"exact_answer": "No."}, "no", "Gene 1 is."),
        ({"ideal_answer": " It is. "}, "yes", "It is."),
        ({"ideal_answer": []}, "yes", None),
        ({"ideal_answer": None}, "yes", None),
        ({"snippets": []}, "yes", "Gene 1 is."),
    ],
)
def test_answers_as_the_years_write_them(
    tmp_path: Path, changes: dict[str, object], label: str, rationale: str | None
) -> None:
    source = write(tmp_path / "b.json", [question(1, **changes), *(question(i) for i in range(2, 40))])
    r2d(source, "--out", tmp_path / "d")
    record = records(tmp_path / "d")["560001"]
    assert (record.label, record.rationales.get("human")) == (label, rationale)


def test_what_is_left_out_is_said_and_why(tmp_path: Path) -> None:
    first = write(
        tmp_path / "1.json",
        [
            *(question(i) for i in range(40)),
            question(50, type="factoid", exact_answer=[["BRCA1"]]),
            question(51, type="list"),
            question(52, type="list"),
            question(53, exact_answer="maybe"),
            question(54, exact_answer=None),
        ],
    )
    second = write(tmp_path / "2.json", [question(1, body="Changed?"), question(60)])
    said = r2d(first, second, "--out", tmp_path / "d")
    for note in (
        "left out 2 questions: of type 'list', not 'yesno'",
        "left out 1 questions: of type 'factoid', not 'yesno'",
        "left out 2 questions: without an exact answer 'yes' or 'no'",
        "left out 1 questions: their id occurs earlier",
    ):
        assert note in said
    found = records(tmp_path / "d")
    assert len(found) == 41 and "Is gene 1 involved?" in found["560001"].text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (
            '{"questions": [\n{]}',
            "in double quotes at line 2, column 2)",
        ),
        ('{"data": []}', "is not a BioASQ Task B file"),
        ("[]", "is not a BioASQ Task B file"),
        ('{"questions": []}', "no questions found"),
        ('{"questions": [{"type": "list"}]}', "1 of type 'list'"),
        ('{"questions": [3]}', "question 1: expected a JSON object"),
        (json.dumps({"questions": [question(1, body=" ")]}), "question 1: the question's 'body' is empty"),
        (json.dumps({"questions": [question(1, id=7)]}), "question 1: expected 'id' to be a string"),
        (json.dumps({"questions": [question(1, snippets=[{"txt": 1}])]}), "question 1: expected 'snippets'"),
        (json.dumps({"questions": [question(1, ideal_answer=[3])]}), "question 1: expected 'rationales'"),
        (json.dumps({"questions": [question(1), question(2)]}), "all 2 records have the label 'yes'"),
    ],
)
def test_bad_files_are_named_and_leave_nothing(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "b.json").write_text(content)
    assert message in r2d(tmp_path / "b.json", "--out", tmp_path / "d", ok=False)
    assert [item.name for item in tmp_path.iterdir()] == ["b.json"]
    assert "there is no file" in r2d(tmp_path / "absent.json", "--out", tmp_path / "d", ok=False)

"""The input recipe: what makes a text at import makes it at use: files, standard input, HTTP, Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from forks import Forks
from hypothesis import given
from hypothesis import strategies as st
from toy import CUES, settings

import reason2decide as r2d_api
from reason2decide.data.cases import Cases, case_of
from reason2decide.data.dataset_folder import DatasetFolder, write_dataset
from reason2decide.data.recipe import InputRecipe
from reason2decide.data.sources.rows import stop
from reason2decide.errors import DataError
from reason2decide.model.manifest import read_manifest
from reason2decide.serve.app import create_app
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings
from reason2decide.training.config_file import parse_config
from reason2decide.training.run import train

HEADER = "No;Sex;Age;Complaint;Where"
COLUMNS = ("Sex", "Age", "Complaint")


def table(rows: int = 60) -> str:
    """A table as a Turkish spreadsheet writes it; every seventh age is an error of the spreadsheet."""
    lines = [HEADER]
    for i in range(rows):
        where = list(CUES)[i % 3]
        lines.append(f"p{i};{'KE'[i % 2]};{'#BOŞ!' if i % 7 == 0 else 20 + i};{CUES[where]} (ağrı), {i};{where}")
    return "\r\n".join(lines) + "\r\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> tuple[DatasetFolder, Path]:
    """A dataset imported from columns, and a bundle trained on it."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "calls.csv").write_bytes(table().encode("cp1254"))
    done = forks.run(
        *("data", "import", "table", folder / "calls.csv", "--out", folder / "data", "--text", ",".join(COLUMNS)),
        *("--label", "Where", "--id", "No", "--delimiter", ";", "--encoding", "cp1254", "--missing", "#BOŞ!"),
    )
    assert done.returncode == 0, done.stderr
    dataset = DatasetFolder.open(folder / "data")
    chosen = settings(dataset, method="sft")
    del chosen["rationale_source"]
    return dataset, train(parse_config(chosen, "test"), folder / "run")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same decision on the same tokens; other batches may differ in the last digits."""
    assert {**one, "probabilities": pytest.approx(one["probabilities"], abs=1e-5)} == other


def test_the_recipe_goes_from_the_table_to_the_bundle(made: tuple[DatasetFolder, Path]) -> None:
    dataset, bundle = made
    recipe = InputRecipe(text=COLUMNS, id="No", missing=("#BOŞ!",), delimiter=";", encoding="cp1254")
    assert dataset.info.recipe == recipe == read_manifest(bundle).recipe
    texts = {record.id: record.text for split in dataset.hashes for record in dataset.split(split)}
    assert texts["p1"] == "Sex: E\nAge: 21\nComplaint: high fever (ağrı), 1"
    assert texts["p7"] == "Sex: E\nComplaint: high fever (ağrı), 7"  # its age is #BOŞ!


def test_predict_reads_what_import_read(made: tuple[DatasetFolder, Path], tmp_path: Path, forks: Forks) -> None:
    """The raw table, the dataset's file, JSON rows and JSON lines on standard input all give the same decisions."""
    dataset, bundle = made
    (tmp_path / "raw.csv").write_bytes(table().encode("cp1254"))
    assert forks.run("predict", bundle, tmp_path / "raw.csv", "--out", tmp_path / "raw.jsonl").returncode == 0
    assert forks.run("predict", bundle, dataset.path / "test.jsonl", "--out", tmp_path / "own.jsonl").returncode == 0
    raw = {row["id"]: row for row in rows(tmp_path / "raw.jsonl")}
    assert len(raw) == 60 and {"deferred", "prediction_set", "tokens", "tokens_read"} <= raw["p1"].keys()
    for own in rows(tmp_path / "own.jsonl"):
        same(own, raw[own["id"]])
    objects = [dict(zip(HEADER.split(";"), line.split(";"), strict=True)) for line in table().splitlines()[1:]]
    piped = forks.run("predict", bundle, "-", stdin="\n".join(map(json.dumps, objects)))
    for typed, read in zip(map(json.loads, piped.stdout.splitlines()), raw.values(), strict=True):
        same(typed, read)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("Sex;Age\nE;3\n", (), "no column 'Complaint'; it has 'Sex', 'Age'; this model's texts are made of 'Sex', "),
        (
            "Complaint\nfever\n",
            ("--text", "Complaint"),
            "'Complaint' given as text, but this model's texts are made of",
        ),
        ("text\nfever\n", (), "not a text as this model was trained on"),
        ("Sex;Age;Complaint\nE;3;x\n", ("--id", "number"), "no column 'number'"),
    ],
)
def test_what_does_not_fit_is_refused(
    made: tuple[DatasetFolder, Path], tmp_path: Path, content: str, options: tuple[str, ...], message: str, forks: Forks
) -> None:
    (tmp_path / "in.csv").write_text(content)
    done = forks.run("predict", made[1], tmp_path / "in.csv", *options)
    assert done.returncode == 2 and message in done.stderr and done.stdout == "" and "Traceback" not in done.stderr


def test_plain_lines_are_refused_where_texts_have_columns(made: tuple[DatasetFolder, Path], forks: Forks) -> None:
    done = forks.run("predict", made[1], "-", stdin="fever\n")
    assert done.returncode == 2 and "give a JSON object a line" in done.stderr


def test_columns_of_other_names_and_ids(made: tuple[DatasetFolder, Path], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"s": "E", "a": 21, "c": "high fever (ağrı), 1", "n": "x", "Sex": "K"}\n')
    recipe = made[0].info.recipe
    (record,) = Cases(tmp_path / "in.jsonl", recipe, ("s", "a", "c"), "n").records(stop)
    assert (record.id, record.text) == ("x", "Sex: E\nAge: 21\nComplaint: high fever (ağrı), 1")


@pytest.fixture(scope="module")
def client(made: tuple[DatasetFolder, Path]) -> Iterator[TestClient]:
    app = create_app([ServedModel("triage", made[1])], ServeSettings())
    with TestClient(app, base_url="http://localhost") as running:
        yield running


def asked(state: object) -> dict[str, Any]:
    return {"model": "triage", "state": state, "questions": {"q": {"type": "choice", "criteria": dict.fromkeys(CUES)}}}


def test_the_server_takes_an_object_of_columns(made: tuple[DatasetFolder, Path], client: TestClient) -> None:
    row = {"Sex": "E", "Age": 21, "Complaint": "high fever (ağrı), 1"}
    text = "Sex: E\nAge: 21\nComplaint: high fever (ağrı), 1"
    model = r2d_api.load(made[1])
    answers = [client.post("/v1/systemone", json=asked(state)).json()["answers"]["q"] for state in (row, text)]
    assert answers[0] == answers[1] and answers[0]["probabilities"] == model.decide(row).probabilities
    assert model.decide([row, text])[1].probabilities == pytest.approx(model.decide(row).probabilities, abs=1e-5)
    part = {"type": "input_json", "data": row}
    choices = [{"value": label} for label in CUES]
    body = {"model": "triage", "input": [{"role": "user", "content": [part]}]}
    body["questions"] = [{"type": "choice", "name": "q", "choices": choices}]
    assert client.post("/v1/decisions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("high fever", "send an object of them"),
        ({"Complaint": "high fever"}, "it has no 'Sex', 'Age'"),
        ({"Sex": "E", "Age": 1, "Complaint": "x", "SECRET": 1}, "1 of its keys are none of them"),
        ({"Sex": None, "Age": "#BOŞ!", "Complaint": " "}, "the state is empty"),
        ({"Sex": {"SECRET": 1}, "Age": 1, "Complaint": "x"}, "values that are no text"),
        (["high fever"], "not a list"),
    ],
)
def test_the_server_refuses_what_does_not_fit(client: TestClient, state: object, message: str) -> None:
    refused = client.post("/v1/systemone", json=asked(state))
    assert refused.status_code == 422 and message in refused.text and "'Sex', 'Age', 'Complaint'" in refused.text
    assert "SECRET" not in refused.text


def test_charts_have_notes_and_no_columns(client: TestClient) -> None:
    assert client.get("/cds-services").json() == {"services": []}


def test_python_refuses_what_does_not_fit(made: tuple[DatasetFolder, Path]) -> None:
    model = r2d_api.load(made[1])
    for case in ("high fever", {"Complaint": "high fever"}):
        with pytest.raises(DataError, match="made of 'Sex', 'Age', 'Complaint'"):
            model.decide(case)


# --- recipes of one column, of choices, of items ----------------------------------------------------------------------


def test_lines_of_text_are_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in (None, InputRecipe(text=("note",))):
        monkeypatch.setattr("sys.stdin", iter(["\n", "fever for 3 days\n", "  \n", "{cough}\n"]))
        found = list(Cases(Path("-"), recipe).records(stop))
        assert [(record.id, record.text) for record in found] == [("1", "fever for 3 days"), ("3", "{cough}")]


def test_choices_are_made_as_at_import() -> None:
    row = {"q": "Why?\n1. Cold\n2. Flu", "c": "a|b"}
    in_text = case_of(InputRecipe(text=("q",), choices_in_text=True), row, "here", "1")
    assert (in_text.text, in_text.choices) == ("Why?", ("Cold", "Flu"))
    own = case_of(InputRecipe(text=("q",), choices="c"), row, "here", "1")
    assert own.choices == ("a", "b")


def test_items_of_question_files(tmp_path: Path) -> None:
    questions = [
        {"id": "1", "type": "yesno", "body": "Is it?", "snippets": [{"text": "It is."}]},
        {"id": "2", "type": "factoid", "body": "What?"},
    ]
    (tmp_path / "bioasq.json").write_text(json.dumps({"questions": questions}))
    bad: list[DataError] = []
    (found,) = Cases(tmp_path / "bioasq.json", InputRecipe("bioasq")).records(bad.append)
    assert (found.id, found.text) == ("1", "question: Is it?\nsnippet: It is.") and "'factoid'" in str(bad[0])
    item = {"QUESTION": "Is it?", "CONTEXTS": ["It is."], "LABELS": ["RESULTS"]}
    (tmp_path / "ori.json").write_text(json.dumps({"77": item}))
    (found,) = Cases(tmp_path / "ori.json", InputRecipe("pubmedqa")).records(stop)
    assert (found.id, found.text) == ("77", "question: Is it?\nRESULTS: It is.")


@given(
    st.builds(
        InputRecipe,
        text=st.lists(st.text(min_size=1), min_size=1, max_size=4).map(tuple),
        id=st.none() | st.text(min_size=1),
        missing=st.lists(st.text()).map(tuple),
        delimiter=st.none() | st.sampled_from(";|"),
        choices_in_text=st.booleans(),
    )
)
def test_a_recipe_is_read_as_it_was_written(recipe: InputRecipe) -> None:
    assert InputRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("value", [{"text": 3}, {"columns": ["a"]}, {"source": "excel"}, [], None])
def test_another_form_is_no_recipe(value: Any) -> None:
    with pytest.raises(ValueError):
        InputRecipe.from_json(value)


@given(st.dictionaries(st.sampled_from(COLUMNS), st.text() | st.none() | st.integers()))
def test_what_a_recipe_makes_it_knows(row: dict[str, Any]) -> None:
    recipe = InputRecipe(text=COLUMNS)
    try:
        text = recipe.text_of("here", row)
    except DataError:
        return
    assert recipe.has_made(text)


def test_lists_are_joined_by_what_they_hold() -> None:
    recipe = InputRecipe(text=("a",))
    assert recipe.text_of("here", {"a": ["It is.", "It was."]}) == "It is. It was."
    assert recipe.text_of("here", {"a": ["fever", "cough", 3]}) == "fever; cough; 3"


def test_a_dataset_made_otherwise_is_told(made: tuple[DatasetFolder, Path], tmp_path: Path, forks: Forks) -> None:
    """The same records, joined from other columns: figures on them are of texts the model has never seen."""
    dataset, bundle = made
    info = replace(dataset.info, recipe=InputRecipe(text=("Complaint",)))
    other = write_dataset(tmp_path / "other", info, {split: list(dataset.split(split)) for split in dataset.hashes})
    told = "texts are made of whole notes here, of 'Sex', 'Age', 'Complaint' in training"
    done = forks.run("evaluate", bundle, other.path, "--out", tmp_path / "a", "--resamples", 20)
    assert done.returncode == 0 and told in " ".join(done.stderr.split()) and f"note: {told}" in done.stdout
    assert told not in forks.run("evaluate", bundle, dataset.path, "--out", tmp_path / "b", "--resamples", 20).stdout

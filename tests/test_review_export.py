"""From answers to datasets, Label Studio and back, and the commands of `r2d feedback`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from hypothesis import given
from hypothesis import strategies as st
from reviewing import Person, Site, filled, people
from typer.testing import CliRunner

from reason2decide.cli import app
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.recipe import InputRecipe
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sources.label_studio import import_label_studio
from reason2decide.errors import DataError
from reason2decide.evaluation.agreement import cohen_kappa, krippendorff_alpha
from reason2decide.model.decision import Decision
from reason2decide.review.answers import GivenAnswer, keep
from reason2decide.review.dashboard import dashboard
from reason2decide.review.export import export_feedback, record_of
from reason2decide.review.label_studio import write_tasks
from reason2decide.review.opening import keep_model
from reason2decide.review.queueing import NewCase, add_cases, keep_prediction
from reason2decide.review.summary import summary_lines

NOTES = [(f"n{i}", f"{20 + i} yo with {'chest pain' if i % 2 else 'a cough'} since {i} days") for i in range(1, 13)]


class Answered:
    """A site on which two people and an adjudicator have answered."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder / "s.sqlite", reviews_per_case=2)
        add_cases(self.site.store, [NewCase(*note) for note in NOTES], source="queue", wanted=2)
        self.site.decide()
        self.labels = self.site.model.labels.values
        rows = self.site.store.rows("SELECT case_id, label, rationale FROM predictions ORDER BY case_id")
        self.model = {row["case_id"]: (row["label"], row["rationale"]) for row in rows}

    def other(self, case_id: int) -> str:
        """A label that the model did not choose."""
        return next(label for label in self.labels if label != self.model[case_id][0])

    def answer(self, person: Person, case_id: int, **fields: str) -> None:
        done = person.answer(person.get(f"/case/{case_id}"), **fields)
        assert done.status_code == 200


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answered]:
    own = Answered(tmp_path_factory.mktemp("review"))
    with people(own.site, "nina", "olga", "adam") as (nina, olga, adam):
        agreed = {"action": "decide", "label": own.model[1][0]}
        for person in (nina, olga):
            own.answer(person, 1, **agreed)  # accepted as it is
            own.answer(person, 2, action="decide", label=own.other(2), rationale=f"{person is nina}: seen otherwise.")
        own.answer(nina, 3, action="decide", label=own.model[3][0], rationale="Corrected words.")
        own.answer(olga, 3, action="decide", label=own.model[3][0])
        own.answer(nina, 4, action="decide", label=own.model[4][0], comment="ça va")
        own.answer(olga, 4, action="decide", label=own.other(4), rationale="Olga argues.", reason="red flag")
        own.answer(adam, 4, action="decide", label=own.model[4][0], rationale="Adam settles.")
        own.answer(nina, 5, action="defer")
        own.answer(olga, 5, action="decide", label=own.model[5][0])  # disputed, not settled
        own.answer(nina, 6, action="decide", label=own.model[6][0])  # reviewed by one only
        for case_id in range(7, 13):
            for person in (nina, olga):
                own.answer(person, case_id, action="decide", label=own.labels[case_id % 3])
        yield own


def records_of(dataset: DatasetFolder) -> dict[str, Record]:
    return {record.id: record for split in ("train", "validation", "test") for record in dataset.split(split)}


def test_a_dataset_of_feedback_knows_where_each_reason_comes_from(answered: Answered, tmp_path: Path) -> None:
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    exported = export_feedback(answered.site.store, tmp_path / "d", shares=shares, seed=0)
    records, model = records_of(exported.dataset), answered.model
    assert exported.dataset.info.labels == answered.site.model.labels and exported.unsettled == 2
    assert set(records) == {f"n{i}" for i in range(1, 13)} - {"n5", "n6"}

    accepted = records["n1"]
    assert accepted.label == model[1][0] and accepted.rationales == {"model": model[1][1]} and not accepted.contrasts
    assert accepted.meta["votes"] == {model[1][0]: 1.0}

    overridden = records["n2"]
    assert overridden.label == answered.other(2) and set(overridden.rationales) == {"nurse"}
    assert overridden.rationales["nurse"] == "False: seen otherwise."  # the later one
    assert overridden.contrasts == {"model": {model[2][0]: model[2][1]}}

    corrected = records["n3"]
    assert corrected.rationales == {"nurse": "Corrected words.", "model": model[3][1]} and not corrected.contrasts

    settled = records["n4"]
    assert settled.label == model[4][0] and settled.rationales == {"nurse": "Adam settles.", "model": model[4][1]}
    assert settled.contrasts == {"nurse": {answered.other(4): "Olga argues."}}
    assert (
        settled.meta["votes"] == {model[4][0]: 0.5, answered.other(4): 0.5} and settled.meta["state"] == "adjudicated"
    )
    first, second, third = settled.meta["reviews"]
    assert (first["kind"], second["kind"], third["kind"]) == ("review", "review", "adjudication")
    assert second["reason"] == "red flag" and second["edited"] == "Olga argues." and second["original"] == model[4][1]
    assert second["model_hash"] == answered.site.model.hash and second["action"] == "override"
    assert second["blind"] is False and second["sampled"] == "link" and second["at"] > second["opened"]
    assert first["comment"] == "ça va" and len({own["reviewer"] for own in settled.meta["reviews"]}) == 3
    names = json.dumps([record.to_json() for record in records.values()])
    assert not any(f'"{name}"' in names for name in ("nina", "olga", "adam"))


def test_a_patients_cases_stay_in_one_split(tmp_path: Path) -> None:
    """The column of the model's training data that says whose they are is read from the queue too."""
    queue = tmp_path / "queue.csv"
    rows = [f"q{i},p{i % 10},{20 + i} yo with chest pain" for i in range(60)]
    queue.write_text("\n".join(["id,patient,note", *rows]))
    recipe = InputRecipe(text=("note",), id="id", group="patient")
    site = Site(tmp_path / "s.sqlite", recipe=recipe, queue=queue)
    site.decide()
    labels = site.model.labels.values
    for case in site.store.rows("SELECT id FROM cases"):
        keep(site.store, given_answer(case["id"], labels[case["id"] % 2]))
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    dataset = export_feedback(site.store, tmp_path / "d", shares=shares, seed=0).dataset
    write_tasks(site.store, tmp_path / "tasks")
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text())
    assert {task["data"]["patient"] for task in tasks} == {f"p{i}" for i in range(10)}
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    import_label_studio(tmp_path / "export.json", tmp_path / "back", labels=site.model.labels)
    back = DatasetFolder.open(tmp_path / "back")
    assert {record.group for split in back.hashes for record in back.split(split)} == {f"p{i}" for i in range(10)}
    groups = [{record.group for record in dataset.split(split)} for split in dataset.hashes]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 10


def given_answer(case_id: int, label: str) -> GivenAnswer:
    shown = {
        "prediction": None,
        "kind": "review",
        "action": "override",
        "label": label,
        "rationale": "",
        "edited": False,
    }
    rest = {"reason": "", "comment": "", "blind": False, "first_label": None, "first_at": None}
    claim = {"sampled": "random", "share": 1.0, "opened": "2026-01-01T00:00:00Z"}
    values: dict[str, Any] = {"key": f"{case_id}", "case_id": case_id, "reviewer": 1, **shown, **rest, **claim}
    return GivenAnswer(**values)


def test_the_summary_is_about_the_model_that_is_reviewed_now(tmp_path: Path) -> None:
    """Not the one before it, whose decisions came first; and its shares are none below 0."""
    site = filled(tmp_path)
    case = {row["case_id"]: row for row in site.store.rows("SELECT * FROM predictions")}
    labels = site.model.labels
    for own, row in case.items():
        other = next(label for label in labels.values if label != row["label"])
        decision = Decision(
            other, dict.fromkeys(labels.values, 1 / 3), (other,), deferred=False, tokens=1, tokens_read=1
        )
        keep_prediction(site.store, own, "new", "new hash", decision, None, labels, shown=True)
        keep(site.store, given_answer(own, other))
    keep_model(site.store, "new hash")
    lines = "\n".join(summary_lines(site.store))
    assert f"the model right: {len(case)} of {len(case)}" in lines and "(-0%" not in lines
    assert lines.index("new (new hash") < lines.index("triage (")


def test_nobody_is_measured_by_a_label_of_their_own(tmp_path: Path) -> None:
    site = filled(tmp_path)
    label = site.model.labels.values[0]
    for case_id, reviewer in ((1, 1), (2, 1), (2, 2)):
        own = given_answer(case_id, label)
        own = replace(own, key=f"{case_id} {reviewer}", reviewer=reviewer, blind=True, first_label=label)
        keep(site.store, own)
    with site.store.transaction() as database:
        database.execute("UPDATE cases SET state = 'reviewed'")
    found = dashboard(site.store, site.model.labels, [site.model.hash]).blind
    assert [(own.label, own.n) for own in found][:2] == [("alone", 2), ("with_model", 2)]


def test_blind_answers_are_counted_before_and_after_the_model_was_seen(tmp_path: Path) -> None:
    """Three reviewers are put right by the model; one was right alone and stays so where the model is wrong."""
    site = filled(tmp_path)
    cases = site.store.rows("SELECT id, case_id, label FROM predictions ORDER BY case_id")
    for own in cases[:3]:
        first = next(label for label in site.model.labels.values if label != own["label"])
        answer_twice(site, own, first=first, last=own["label"])
    right = next(label for label in site.model.labels.values if label != cases[3]["label"])
    answer_twice(site, cases[3], first=right, last=right)
    with site.store.transaction() as database:
        database.execute("UPDATE cases SET state = 'reviewed'")
    found = dashboard(site.store, site.model.labels, [site.model.hash]).blind
    counts = [(own.label, own.count, own.n) for own in found]
    assert counts == [("alone", 1, 4), ("with_model", 4, 4), ("model_alone", 3, 4)]


def answer_twice(site: Site, prediction: Any, first: str, last: str) -> None:
    """Two people answer a case alike; one of them decided by themselves first."""
    own = replace(given_answer(prediction["case_id"], last), prediction=prediction["id"])
    keep(site.store, replace(own, key=f"{own.key} blind", blind=True, first_label=first))
    keep(site.store, replace(own, reviewer=2))


ANSWER = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["review", "review", "adjudication"]),
        "label": st.sampled_from(["a", "b", None]),
        "model_label": st.sampled_from(["a", "b", None]),
        "edited": st.booleans(),
        "rationale": st.sampled_from(["", "mine", "yours"]),
    }
)


@given(st.lists(ANSWER, min_size=1, max_size=5))
def test_a_reason_never_stands_under_a_label_it_does_not_argue_for(given_: list[dict[str, Any]]) -> None:
    """Whatever was answered: gold reasons argue for the final label, contrasts for another, the model's words apart."""
    answers = [
        {
            **own,
            "action": "accept" if own["label"] else "defer",
            "original": own["model_label"] and f"model on {own['model_label']}",
            "rationale": own["rationale"] and f"{own['rationale']} on {own['label']}",
            "pseudonym": "p",
            "model": "m",
            "model_hash": "h",
            "blind": 0,
            **dict.fromkeys(("first_label", "first_at", "sampled", "share", "opened", "at", "reason", "comment"), ""),
        }
        for own in given_
    ]
    record = record_of({"key": "k", "text": "t", "patient": None, "source": "queue", "state": "reviewed"}, answers)
    for source, text in record.rationales.items():
        assert text.endswith(f" on {record.label}") and (source == "model") == text.startswith("model")
    for source, by_label in record.contrasts.items():
        for label, text in by_label.items():
            assert label != record.label and text.endswith(f" on {label}")
            assert (source == "model") == text.startswith("model")


def test_the_dashboard_counts_what_was_answered(answered: Answered) -> None:
    numbers = dashboard(answered.site.store, answered.site.model.labels, [answered.site.model.hash])
    ranks = {label: i for i, label in enumerate(answered.labels)}
    rows = answered.site.answers("kind = 'review' AND action != 'skip'")
    given_: dict[int, dict[str, int]] = {}
    for row in rows:
        if row["label"] is not None:
            given_.setdefault(row["case_id"], {})[row["name"]] = ranks[row["label"]]
    both = [own for own in given_.values() if len(own) == 2]
    assert len(both) == 10 == numbers.pairs[0].value.n
    one, other = [own["nina"] for own in both], [own["olga"] for own in both]
    assert numbers.pairs[0].value.value == pytest.approx(cohen_kappa(one, other, "quadratic"))
    assert numbers.alpha.value == pytest.approx(krippendorff_alpha([one, other], "ordinal"))
    wrong = sum(row["action"] == "override" for row in rows)
    assert sum(own.count for own in numbers.overrides) == wrong and sum(own.n for own in numbers.overrides) == len(rows)
    final = {1: answered.model[1][0], 2: answered.other(2), 3: answered.model[3][0], 4: answered.model[4][0]}
    final |= {i: answered.labels[i % 3] for i in range(7, 13)}
    right = sum(answered.model[i][0] == label for i, label in final.items())
    assert [(own.count, own.n) for own in numbers.models] == [(right, 10)]
    assert sum(own.count for own in numbers.calibration) == right
    assert numbers.reasons == [((answered.model[4][0], answered.other(4), "red flag"), 1)]
    text = "\n".join(summary_lines(answered.site.store))
    assert f"{right} of 10" in text and "1 adjudicated" in text and "1 disputed" in text and "kappa" in text


def test_nothing_was_answered_yet(tmp_path: Path) -> None:
    site = Site(tmp_path / "s.sqlite")
    numbers = dashboard(site.store, site.model.labels, [site.model.hash])
    assert numbers.alpha.value is None and not numbers.pairs and not numbers.overrides and numbers.estimate.n == 0
    assert numbers.models[0].interval == (0.0, 1.0)


def test_label_studio_and_back(answered: Answered, tmp_path: Path) -> None:
    done = r2d("feedback", "to-label-studio", answered.site.path, "--out", tmp_path / "ls")
    assert done.exit_code == 0, done.output
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    assert len(tasks) == 12 and tasks[0]["predictions"][0]["score"] > 1 / 3
    config = ElementTree.parse(tmp_path / "ls" / "config.xml").getroot()
    assert [own.get("value") for own in config.iter("Choice")] == list(answered.labels)
    names = {own["from_name"] for task in tasks for own in task["predictions"][0]["result"]}
    assert names == {own.get("name") for own in config if own.tag in ("Choices", "TextArea")}

    labels = ",".join(answered.labels)
    back = r2d(
        "data", "import", "label-studio", tmp_path / "ls" / "tasks.json", "--out", tmp_path / "d", "--labels", labels
    )
    assert back.exit_code == 0, back.output
    assert "1 tasks left out: people decided differently" not in back.output
    found = records_of(DatasetFolder.open(tmp_path / "d"))
    assert found["n1"].label == answered.model[1][0] and found["n2"].label == answered.other(2)
    assert found["n4"].label == answered.model[4][0] and found["n4"].rationales == {"nurse": "Adam settles."}
    assert found["n4"].contrasts == {"nurse": {answered.other(4): "Olga argues."}}
    # What stands in a reviewer's form unchanged is the model's, and comes back as nobody's.
    assert found["n1"].rationales == {} and found["n2"].rationales == {"nurse": "False: seen otherwise."}
    assert found["n5"].label == answered.model[5][0]  # a deferral is no annotation


def r2d(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(own) for own in arguments])


# ---- bad input


def exported_tasks(*labels: str) -> list[dict[str, Any]]:
    """A task as Label Studio exports it, with an annotation for each label."""
    chosen = [
        {"was_cancelled": False, "result": [{"type": "choices", "value": {"choices": [label]}}]} for label in labels
    ]
    return [{"id": 7, "data": {"text": "a note"}, "annotations": chosen}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "expected a JSON export of Label Studio"),
        ('{"tasks": []}', "expected a list of tasks"),
        ('[{"text": "min", "decision": "a"}]', "export the project as JSON"),
        ('[{"id": 3, "data": {"note": "x"}, "annotations": []}]', "task 3: its data have no 'text'"),
        (json.dumps(exported_tasks("c")), "'c' is not one of the labels given"),
        (json.dumps(exported_tasks("a", "b")), "contains no records"),
    ],
)
def test_what_is_no_export_of_label_studio_is_refused(content: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    file.write_text(content)
    with pytest.raises(DataError, match=reason):
        import_label_studio(file, tmp_path / "d", labels=LabelSet(("a", "b")))
    assert not (tmp_path / "d").exists()


def test_ties_and_cancelled_annotations_are_left_out_and_told(tmp_path: Path) -> None:
    tasks = [*exported_tasks("a"), *exported_tasks("b", "b", "a"), *exported_tasks("a", "b"), *exported_tasks()]
    tasks[0]["annotations"].append({**exported_tasks("b")[0]["annotations"][0], "was_cancelled": True})
    tasks += exported_tasks("a") * 9
    tasks = [{**task, "id": number, "data": {"text": f"note {number}"}} for number, task in enumerate(tasks)]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    imported = import_label_studio(tmp_path / "export.json", tmp_path / "d")
    assert imported.dataset is not None
    labels = {record.id: record.label for record in records_of(imported.dataset).values()}
    assert labels == {"0": "a", "1": "b"} | {str(number): "a" for number in range(4, 13)}
    assert imported.notes == (
        "1 tasks left out: people decided differently, as many each way",
        "1 tasks left out: nobody decided",
    )


def test_commands_say_what_is_wrong(forks: Forks, tmp_path: Path) -> None:
    def feedback(command: str, *arguments: object, stdin: str | None = None) -> tuple[int, str]:
        ended = forks.run("feedback", command, *arguments, stdin=stdin)
        return ended.returncode, ended.stderr

    file, words = tmp_path / "s.sqlite", "long enough words\n"
    code, said = feedback("summary", file)
    assert code == 2 and "there is no file" in said and not file.exists()
    code, said = feedback("add-reviewer", file, "nina", stdin=words)
    assert code == 0 and "nina may review as reviewer; exports name them reviewer-" in said
    code, said = feedback("add-reviewer", file, "nina", stdin=words)
    assert code == 2 and "named 'nina' already" in said
    code, said = feedback("add-reviewer", file, "olga", stdin="short\n")
    assert code == 2 and "use 12 or more" in said
    assert feedback("set-password", file, "nina", stdin="another long one\n")[0] == 0
    code, said = feedback("remove-reviewer", file, "nobody")
    assert code == 2 and "there is no reviewer named 'nobody'; there are: nina" in said
    assert feedback("remove-reviewer", file, "nina")[0] == 0
    for command, *options in (("summary",), ("export", "--out", tmp_path / "d"), ("to-label-studio", "--out", "x")):
        code, said = feedback(command, file, *options)
        assert code == 2 and "has no answers yet: serve a model with --review" in said
    assert feedback("backup", file, tmp_path / "copy")[0] == 0
    assert feedback("backup", file, tmp_path / "copy")[0] == 2
    code, said = feedback("backup", file, file / "copy")
    assert code == 2 and "cannot" in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy"]

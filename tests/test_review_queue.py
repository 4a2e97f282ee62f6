"""Where the cases of the review pages come from: pasted notes, the queue file, and what the server does with them."""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from reviewing import NOTES, Person, Site, decided, filled, form_csrf, message, people
from serving import triage_bundle

from reason2decide.data.recipe import InputRecipe
from reason2decide.model.reading import ReadingSettings
from reason2decide.review.opening import load_queue
from reason2decide.review.queueing import NewCase, add_cases, keys_of_other_texts
from reason2decide.serve.app import create_app
from reason2decide.serve.audit import AuditLog
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

# ---- pasted notes


def test_a_pasted_note_is_decided_and_reviewed(site: Site, nina: Person) -> None:
    page = nina.post("/paste", {"csrf": form_csrf(nina.get().text), "text": "chest pain\r\nsince 2 days"})
    assert page.status_code == 200 and "pasted" in page.text and "chest pain" in page.text
    nina.answer(page, action="decide", label=site.model.labels.values[0])
    case = site.store.rows("SELECT * FROM cases WHERE source = 'pasted'")[0]
    assert (case["text"], case["state"]) == ("chest pain\nsince 2 days", "reviewed")


def test_what_a_reviewer_asks_of_the_model_is_recorded(tmp_path: Path) -> None:
    """A pasted note and the case for another label, with who asked; nothing comes without its row."""
    site = filled(tmp_path)
    with AuditLog(tmp_path / "audit.sqlite", 30) as audit:
        site.app = create_app([site.model], ServeSettings(), extension=site.pages, audit=audit)
        with people(site, "nina") as (nina,):
            page = nina.post("/paste", {"csrf": form_csrf(nina.get().text), "text": "chest pain"})
            label = site.model.labels.values[0] if decided(site, 1) != site.model.labels.values[0] else None
            nina.answer(nina.get("/case/1"), why=label or site.model.labels.values[1])
            assert page.status_code == 200
    rows = sqlite3.connect(tmp_path / "audit.sqlite").execute("SELECT caller, model FROM requests").fetchall()
    assert len(rows) >= 2 and all("nina" in caller and model == "triage" for caller, model in rows)


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("", 422, "The note is empty."),
        (" \n\t ", 422, "The note is empty."),
        ("%PDF-1.4\x00\x01\x02", 422, "characters that are no text"),
        ("word " * 60_000, 422, "The note has 300000 characters; at most 262144"),
    ],
)
def test_what_is_no_note_is_refused_and_stays(text: str, status: int, reason: str, nina: Person) -> None:
    page = nina.post("/paste", {"csrf": form_csrf(nina.get().text), "text": text})
    assert page.status_code == status and reason in message(page)
    assert text.strip()[:4] in page.text


def test_bytes_that_are_no_form_are_refused(nina: Person) -> None:
    broken = nina.client.post(
        "/review/paste", content=b"text=%ff%fe\xff", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert broken.status_code == 422 and "no text" in message(broken)


def test_a_long_note_is_shown_whole_with_what_was_not_read(site: Site, nina: Person) -> None:
    text = "Patient has chest pain and denies fever. " * 1250
    page = nina.post("/paste", {"csrf": form_csrf(nina.get().text), "text": text})
    assert page.status_code == 200 and len(re.sub("<[^>]*>", "", page.text)) > 50_000
    assert re.search(r"Only about the first \d+ % of the note was read", page.text)


# ---- the queue file and the server


def test_bad_lines_of_a_queue_file_are_told_and_the_rest_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = tmp_path / "queue.jsonl"
    queue.write_text('{"id": "a", "text": "one"}\n{broken\n{"id": "a", "text": "again"}\n{"id": "b", "text": "two"}\n')
    site = Site(tmp_path / "s.sqlite", queue=queue)
    assert [row["key"] for row in site.store.rows("SELECT key FROM cases")] == ["a", "b"]
    said = capsys.readouterr().err
    assert "line 2: not valid JSON" in said and "'a' occurs earlier" in said
    assert "2 new cases of 2" in said and "2 rows left out" in said
    site.store.close()
    again = Site(tmp_path / "s.sqlite", queue=queue)
    assert "0 new cases of 2" in capsys.readouterr().err and len(again.store.rows("SELECT * FROM cases")) == 2


def test_a_note_without_an_id_is_known_by_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first line of tomorrow's file is another note, not the first one of today's."""
    queue = tmp_path / "queue.jsonl"
    queue.write_text('{"text": "one"}\n{"text": "two"}\n')
    Site(tmp_path / "s.sqlite", queue=queue).store.close()
    queue.write_text('{"text": "three"}\n{"text": "one"}\n')
    site = Site(tmp_path / "s.sqlite", queue=queue)
    assert [row["text"] for row in site.store.rows("SELECT text FROM cases ORDER BY id")] == ["one", "two", "three"]
    assert "1 new cases of 2" in capsys.readouterr().err


def test_a_known_id_with_another_text_is_told_and_no_patient_goes_to_the_wrong_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path / "s.sqlite")
    add_cases(site.store, [NewCase("a", "one"), NewCase("b", "two")], source="queue", wanted=1)
    given = [NewCase("a", "another", "p1"), NewCase("b", "two", "p2")]
    assert keys_of_other_texts(site.store, given) == ["a"]
    add_cases(site.store, given, source="queue", wanted=1)
    rows = site.store.rows("SELECT text, patient FROM cases ORDER BY id")
    assert [(row["text"], row["patient"]) for row in rows] == [("one", None), ("two", "p2")]
    queue = tmp_path / "queue.jsonl"
    queue.write_text('{"id": "a", "text": "another"}\n{"id": "c", "text": "three"}\n')
    load_queue(site.store, queue, site.model, 1)
    assert "1 rows of the queue have the id of a case with another text ('a')" in capsys.readouterr().err


def test_cases_are_prepared_while_nobody_calls(tmp_path: Path) -> None:
    site = Site(tmp_path / "s.sqlite")
    add_cases(site.store, [NewCase(*note) for note in NOTES], source="queue", wanted=1)
    with people(site, "nina") as (nina,):
        until = time.monotonic() + 60
        counted = 'to review</td><td class="number">4'  # the page's numbers may be a second old
        while counted not in nina.get().text and time.monotonic() < until:
            time.sleep(0.1)
        assert counted in nina.get().text
        states = site.store.rows("SELECT state, confidence, urgency FROM cases")
    assert all(row["state"] == "open" and 0 < row["confidence"] <= 1 and row["urgency"] <= 0 for row in states)


def test_what_another_model_cannot_read_stays_open_for_the_reviewed_one(tmp_path: Path) -> None:
    """Of two models that are compared, only the reviewed one decides whether a case can be reviewed."""
    other = ServedModel("other", triage_bundle(), ReadingSettings("refuse"))
    other.hash = "of another bundle"
    site = Site(tmp_path / "s.sqlite", beside=[other])
    add_cases(site.store, [NewCase("long", "chest pain " * 200), NewCase("short", "a cough")], source="queue", wanted=1)
    with people(site, "nina"):
        until = time.monotonic() + 60
        while len(site.store.rows("SELECT * FROM predictions")) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)  # nothing more comes
        rows = site.store.rows(
            "SELECT c.key, p.model FROM predictions p JOIN cases c ON c.id = p.case_id ORDER BY 1, 2"
        )
        states = {row["state"] for row in site.store.rows("SELECT state FROM cases")}
    assert [(row["key"], row["model"]) for row in rows] == [("long", "triage"), ("short", "other"), ("short", "triage")]
    assert states == {"open"}


def test_what_one_server_cannot_read_another_tries_again(tmp_path: Path) -> None:
    site = Site(tmp_path / "s.sqlite")
    add_cases(site.store, [NewCase("long", "chest pain " * 200)], source="queue", wanted=1)
    site.pages._mark_unreadable(1)
    with people(site, "nina") as (nina,):
        page = nina.get("/case/1")
        assert page.status_code == 409 and "cannot read this note" in page.text
    site.store.close()
    again = Site(tmp_path / "s.sqlite")
    assert again.store.rows("SELECT state FROM cases") == [{"state": "waiting"}]


def test_card_feedback_lands_in_the_store_with_its_free_text(site: Site) -> None:
    card = "0f9d7a0e-5d56-4b1b-8c0f-0d1c8d1e7a11"
    item = {
        "card": card,
        "outcome": "overridden",
        "overrideReason": {
            "reason": {"code": "x", "system": "y"},
            "userComment": "The patient said otherwise: Müller" + 30_000 * ".",
        },
        "outcomeTimestamp": "2026-01-02T03:04:05Z",
    }
    with TestClient(site.app, base_url="http://localhost") as client:
        reply = client.post("/cds-services/triage/feedback", json={"feedback": [item]})
        assert reply.status_code == 200
    (kept,) = Site(site.path).store.rows("SELECT * FROM card_feedback")
    assert kept["comment"] == "The patient said otherwise: Müller" + 30_000 * "." and kept["card"] == card
    assert (kept["outcome"], kept["reason_code"], kept["service"]) == ("overridden", "x", "triage")


def test_a_model_of_columns_asks_for_them(tmp_path: Path) -> None:
    """The note is made of them as the training texts were."""
    site = Site(tmp_path / "s.sqlite", recipe=InputRecipe(text=("complaint", "history")))
    with people(site, "nina") as (nina,):
        home = nina.get()
        sent = {"csrf": form_csrf(home.text), "column:complaint": "chest pain", "column:history": "smokes"}
        assert {f'name="{name}"' in home.text for name in sent} == {True}
        assert nina.post("/paste", sent).status_code == 200
        (case,) = site.store.rows("SELECT text FROM cases")
        assert case["text"] == "complaint: chest pain\nhistory: smokes"
        empty = nina.post("/paste", sent | {"column:complaint": "", "column:history": ""})
        assert empty.status_code == 422 and "complaint" in message(empty)

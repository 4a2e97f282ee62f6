"""The review pages over HTTP: cases, answers, blind mode, disagreements, and what must not be lost."""

from __future__ import annotations

import html
import json
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from reviewing import NOTES, PASSWORD, Person, Site, decided, filled, form_csrf, form_fields, message, people

from reason2decide.model.reading import ReadingSettings

# ---- a case


def test_a_case_shows_the_note_first_and_everything_about_the_decision(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    text = page.text
    assert text.index("40 yo with") < text.index("Your decision") < text.index("Correct it if it is wrong")
    probabilities = site.store.rows("SELECT probabilities FROM predictions WHERE case_id = 1")[0]["probabilities"]
    for label, probability in json.loads(probabilities).items():
        assert label in text and f"{100 * probability:.1f} %" in text
    assert " checked" not in text  # agreeing takes as many steps as disagreeing


def test_markup_in_notes_is_text(site: Site, nina: Person) -> None:
    page = nina.get("/case/3")
    assert "<script>alert" not in page.text and "&lt;script&gt;alert(&#39;note&#39;)&lt;/script&gt;" in page.text
    typed = form_fields(page) | {
        "action": "decide",
        "comment": "</textarea><script>1</script>",
    }  # no label: shown again
    again = nina.post("/case/3", typed)
    assert again.status_code == 422 and "<script>1" not in again.text and "&lt;/textarea&gt;" in again.text


def test_agreeing_and_deciding_otherwise(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    own = site.store.rows("SELECT * FROM predictions WHERE case_id = 1")[0]
    after = nina.answer(page, action="decide", label=own["label"])
    assert after.status_code == 200 and "/case/" in str(after.url)
    kept = site.answers()[0]
    assert (kept["action"], kept["label"], kept["edited"], kept["rationale"]) == (
        "accept",
        own["label"],
        0,
        own["rationale"],
    )
    assert kept["prediction"] == own["id"] and kept["name"] == "nina" and kept["sampled"] == "link"

    other = next(label for label in site.model.labels.values if label != own["label"])
    page = nina.get("/case/2")
    nina.answer(page, action="decide", label=other, rationale="Übelkeit zählt.", reason="red flag", comment="é")
    kept = site.answers("case_id = 2")[0]
    assert (kept["label"], kept["edited"], kept["rationale"]) == (other, 1, "Übelkeit zählt.")
    assert (kept["reason"], kept["comment"]) == ("red flag", "é")
    second = site.store.rows("SELECT label FROM predictions WHERE case_id = 2")[0]["label"]
    assert kept["action"] == ("accept" if second == other else "override")


def test_the_next_case_is_the_one_of_the_queue_and_why_it_is(site: Site, nina: Person) -> None:
    page = nina.get("/next")
    claim = site.store.rows("SELECT * FROM claims")[0]
    assert page.url.path == f"/review/case/{claim['case_id']}" and "taken" in page.text
    nina.answer(page, action="defer", comment="I would call back")
    kept = site.answers()[0]
    assert (kept["action"], kept["label"], kept["sampled"]) == ("defer", None, claim["sampled"])
    assert kept["share"] == claim["share"] > 0
    for _ in range(3):
        page = nina.answer(nina.get("/next"), action="skip")
    assert message(page) == "Nothing is left to review for you."


def test_the_case_for_another_label_keeps_what_was_typed(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    label = next(own for own in site.model.labels.values if own != decided(site, 1))
    typed = {"why": label, "comment": "half a thought", "label": label}
    again = nina.answer(page, **typed)
    assert again.status_code == 200 and f"The case for {label}" in again.text
    (reason,) = site.model.explain([NOTES[0][1]], [label])
    assert reason.text in re.sub(r"&#39;", "'", again.text) and site.answers() == []
    assert form_fields(again)["comment"] == "half a thought" and form_fields(again)["label"] == label
    assert nina.answer(page, why="no label").status_code == 422


def undoing(page: Response) -> str:
    """The answer that a page's undo button takes back."""
    (form,) = [part for part in page.text.split("<form")[1:] if part.startswith(' method="post" action="/review/undo"')]
    found = re.search(r'name="answer" value="(\d*)"', form)
    assert found is not None
    return found[1]


def test_an_answer_corrected_after_going_back_is_kept(site: Site, nina: Person) -> None:
    """The page that shows the case for another label is loaded again by the browser's "back", after it was answered."""
    first, last = site.model.labels.values[0], site.model.labels.values[-1]
    page = nina.get("/case/1")
    typed = form_fields(page) | {"why": last if last != decided(site, 1) else first}
    shown = nina.post("/case/1", typed)
    nina.answer(shown, action="decide", label=first)
    back = nina.post("/case/1", typed)
    nina.answer(back, action="decide", label=last)
    assert [own["label"] for own in site.answers("a.undone IS NULL")] == [last] and len(site.answers()) == 2


def test_undo_brings_the_answer_back(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    label = site.model.labels.values[0]
    nina.answer(nina.get("/case/2"), action="skip")
    following = nina.answer(page, action="decide", label=label, comment="too fast")
    sent = {"csrf": form_csrf(page.text), "answer": undoing(following)}
    again = nina.post("/undo", sent)
    assert "taken back" in message(again) and form_fields(again)["comment"] == "too fast"
    for _ in range(2):  # loading the page again takes nothing else back
        assert [own["case_id"] for own in site.answers("a.undone IS NULL")] == [2] and len(site.answers()) == 2
        assert "taken back" in message(nina.post("/undo", sent))
    nothing = nina.post("/undo", sent | {"answer": ""})
    assert "no answer of yours" in message(nothing)


def test_history_is_ones_own_and_filters(site: Site) -> None:
    with people(site, "nina", "olga", "ada") as (nina, olga, ada):
        label = site.model.labels.values[1]
        nina.answer(nina.get("/case/1"), action="decide", label=label)
        nina.answer(nina.get("/case/2"), action="skip")
        olga.answer(olga.get("/case/4"), action="defer")
        assert shown_in(nina.get("/history")) == ["n2", "n1"] and shown_in(olga.get("/history")) == ["n4"]
        assert shown_in(nina.get(f"/history?label={label}")) == shown_in(nina.get("/history?key=n1")) == ["n1"]
        assert shown_in(nina.get("/history?action=skip")) == ["n2"] and shown_in(nina.get("/history?key=n4")) == []
        of_all = ada.get("/history")
        assert shown_in(of_all) == ["n4", "n2", "n1"] and "olga" in of_all.text
        # A case's page is for answering it: one's own cases are linked, others' are only listed.
        assert "/review/case/1" in nina.get("/history").text and "/review/case/" not in of_all.text
        assert "You answered this case" in message(nina.get("/case/1"))
        assert olga.get("/case/1").status_code == 409  # it has been reviewed, and others' answers are not shown


def shown_in(history: Any) -> list[str]:
    """Keys of the cases listed, with or without a link."""
    return re.findall(r"</time></td><td>(?:<a [^>]*>)?(\w+)<", history.text)


# ---- nothing typed is lost


def test_a_session_that_ended_in_mid_edit_loses_nothing(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    with site.store.transaction() as database:
        database.execute("UPDATE sessions SET seen = ?", (time.time() - 3600,))
    ended = nina.answer(page, action="decide", label=site.model.labels.values[0], rationale='A "long" edit\n& more')
    assert ended.status_code == 401 and "what you typed is kept" in message(ended)
    assert site.answers() == []
    fields = dict(re.findall(r'name="(to|kept)" value="([^"]*)"', ended.text))
    fields = {name: html.unescape(value) for name, value in fields.items()}
    back = nina.post("/sign-in", fields | {"name": "nina", "password": PASSWORD})
    assert form_fields(back)["rationale"] == 'A "long" edit\n& more'
    assert form_fields(back)["label"] == site.model.labels.values[0]
    saved = nina.post("/case/1", form_fields(back) | {"action": "decide"})
    assert saved.status_code == 200 and site.answers()[0]["rationale"] == 'A "long" edit\n& more'


def test_a_session_that_ended_loses_no_pasted_note_and_no_way_back(site: Site, nina: Person) -> None:
    csrf = form_csrf(nina.get().text)

    def back(path: str, **fields: str) -> Any:
        with site.store.transaction() as database:
            database.execute("DELETE FROM sessions")
        ended = nina.post(path, {"csrf": csrf, **fields})
        assert ended.status_code == 401
        held = dict(re.findall(r'name="(to|kept)" value="([^"]*)"', ended.text))
        held = {name: html.unescape(value) for name, value in held.items()}
        return nina.post("/sign-in", held | {"name": "nina", "password": PASSWORD})

    assert "a whole note</textarea>" in back("/paste", text="a whole note").text
    for path in ("/undo", "/sign-out"):
        assert "Paste a note" in back(path).text
    assert site.answers() == []


def test_a_locked_store_loses_nothing(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    site.store._writer.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(site.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    failed = nina.answer(page, action="decide", label=site.model.labels.values[0], comment="worth keeping")
    assert failed.status_code == 503 and "Not saved" in message(failed) and "locked" in message(failed)
    kept = dict(re.findall(r'<textarea name="(\w+)"[^>]*>(.*?)</textarea>', failed.text, re.DOTALL))
    assert kept["comment"] == "worth keeping" and nina.get("/case/1").status_code == 200
    assert nina.get("/next").status_code == 503
    other.execute("ROLLBACK")
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', failed.text))
    assert nina.post("/case/1", hidden | kept).status_code == 200
    assert site.answers()[0]["comment"] == "worth keeping"


def test_what_is_sent_while_the_server_shuts_down_is_kept(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    site.app.state.door.draining = True
    answered = nina.answer(page, action="decide", label=site.model.labels.values[0], comment="worth keeping")
    assert answered.status_code == 200 and site.answers()[0]["comment"] == "worth keeping"
    assert answered.headers["connection"] == "close"
    assert nina.client.get("/v1/models").status_code == 503


def test_signing_in_again_at_a_locked_store_loses_nothing(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    with site.store.transaction() as database:
        database.execute("DELETE FROM sessions")
    ended = nina.answer(page, action="decide", label=site.model.labels.values[0], comment="worth keeping")
    held = {n: html.unescape(v) for n, v in re.findall(r'name="(to|kept)" value="([^"]*)"', ended.text)}
    site.store._writer.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(site.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    failed = nina.post("/sign-in", held | {"name": "nina", "password": PASSWORD})
    assert failed.status_code == 503 and "worth keeping</textarea>" in failed.text and PASSWORD not in failed.text
    assert 'action="/review/case/1"' in failed.text
    elsewhere = nina.post("/sign-in", held | {"to": "https://a.org/", "name": "nina", "password": PASSWORD})
    assert "a.org" not in elsewhere.text.split("<form")[-1]
    other.execute("ROLLBACK")


def test_a_pasted_note_is_saved_after_a_stale_form(site: Site, nina: Person) -> None:
    """The page that keeps the note has the secret of now."""
    stale = nina.post("/paste", {"csrf": "of another session", "text": "chest pain since Monday"})
    assert stale.status_code == 403 and "chest pain since Monday</textarea>" in stale.text
    again = nina.post("/paste", {"csrf": form_csrf(stale.text.split("<form")[-1]), "text": "chest pain since Monday"})
    assert again.status_code == 200 and "/review/case/" in str(again.url)


def test_a_case_that_the_model_of_now_cannot_read_says_so(tmp_path: Path) -> None:
    site = filled(tmp_path)
    label = site.model.labels.values[-1]
    site.model.predictor.reading = ReadingSettings("refuse")
    with site.store.transaction() as database:  # an earlier model, which read long notes, has decided
        database.execute("UPDATE cases SET text = ? WHERE id = 1", ("chest pain " * 200,))
        database.execute("UPDATE predictions SET model_hash = 'earlier', model = 'spring'")
    with people(site, "nina") as (nina,):
        page = nina.get("/case/1")
        assert "spring, an earlier model, decided this case" in page.text
        asked = nina.answer(page, why=label)
        assert asked.status_code == 422 and "tokens" in message(asked)


def test_a_field_that_is_too_long_loses_nothing(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    long = nina.answer(page, action="decide", label=site.model.labels.values[0], comment="x" * 20_001)
    assert long.status_code == 422 and "20001 characters; at most 20000" in message(long)
    assert form_fields(long)["comment"] == "x" * 20_001 and site.answers() == []


def test_too_many_requests_lose_nothing(tmp_path: Path) -> None:
    site = filled(tmp_path, requests_a_minute=2)
    with people(site, "nina") as (nina,):  # the first request is the page after signing in
        page = nina.get("/case/1")
        refused = nina.answer(page, action="decide", label=site.model.labels.values[0], comment="worth keeping")
        assert refused.status_code == 429 and "worth keeping</textarea>" in refused.text


def test_two_windows_on_one_case(site: Site, nina: Person) -> None:
    labels = site.model.labels.values
    first, second = nina.get("/case/1"), nina.get("/case/1")
    nina.answer(first, action="decide", label=labels[0])
    noticed = nina.answer(second, action="decide", label=labels[1], comment="second thought")
    assert noticed.status_code == 409 and "another window" in message(noticed) and labels[0] in message(noticed)
    assert [own["label"] for own in site.answers()] == [labels[0]]
    assert form_fields(noticed)["comment"] == "second thought"
    nina.post("/case/1", form_fields(noticed) | {"action": "decide"})
    assert [own["label"] for own in site.answers("a.undone IS NULL")] == [labels[1]]


def test_what_is_sent_after_others_have_reviewed_is_kept(site: Site) -> None:
    with people(site, "nina", "olga") as (nina, olga):
        page = nina.get("/case/1")
        olga.answer(olga.get("/case/1"), action="decide", label=site.model.labels.values[0])
        late = nina.answer(page, action="decide", label=site.model.labels.values[1], comment="late")
        assert late.status_code == 200 and [own["comment"] for own in site.answers("name = 'nina'")] == ["late"]
        assert site.store.rows("SELECT state FROM cases WHERE id = 1") == [{"state": "disputed"}]


@pytest.mark.parametrize("value", ["²", "9" * 30, "-1", "x", "2"])
def test_ids_that_are_none(value: str, site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    kept = nina.answer(page, action="skip", prediction=value, replaces=value)
    assert kept.status_code == 200 and site.answers()[0]["action"] == "skip"
    assert nina.get(f"/history?before={'9' * 30}").status_code == 200
    if value != "2":
        assert nina.get(f"/case/{value}").status_code == 404


def test_ids_of_others_change_nothing_of_theirs(tmp_path: Path) -> None:
    site = filled(tmp_path, reviews_per_case=2)
    label = site.model.labels.values[0]
    with people(site, "nina", "olga") as (nina, olga):
        nina.answer(nina.get("/case/1"), action="decide", label=label)
        nina.answer(nina.get("/case/2"), action="decide", label=label)
        elsewhere = str(site.store.rows("SELECT id FROM predictions WHERE case_id = 2")[0]["id"])
        olga.answer(olga.get("/case/1"), action="decide", label=label, replaces="1", prediction=elsewhere)
        olga.answer(olga.get("/case/2"), action="decide", label=label)
        olga.answer(olga.get("/case/2"), action="decide", label=label, replaces="3")  # hers, of another case
        standing = {(own["name"], own["case_id"]) for own in site.answers("a.undone IS NULL")}
        assert standing == {("nina", 1), ("nina", 2), ("olga", 1), ("olga", 2)}
        of_case = {row["id"]: row["case_id"] for row in site.store.rows("SELECT id, case_id FROM predictions")}
        assert all(own["prediction"] is None or of_case[own["prediction"]] == own["case_id"] for own in site.answers())


def test_what_the_sign_in_page_held_may_be_anything(site: Site) -> None:
    with TestClient(site.app, base_url="http://localhost") as client:
        for kept in ("{", "[1]", "null", '{"label": 3}'):
            data = {"name": "nina", "password": PASSWORD, "to": "/review/case/1", "kept": kept}
            assert client.post("/review/sign-in", data=data).status_code == 200


def test_a_form_of_another_site_does_nothing(site: Site, nina: Person) -> None:
    page = nina.get("/case/1")
    forged = nina.answer(page, csrf="guess", action="decide", label=site.model.labels.values[0], comment="kept")
    assert forged.status_code == 403 and "too old or was not made by this page" in message(forged)
    assert site.answers() == [] and form_fields(forged)["comment"] == "kept"
    for path in ("/undo", "/paste", "/sign-out"):
        assert nina.post(path, {"text": "a note"}).status_code == 403


# ---- blind mode, several reviewers, disagreements


def test_in_blind_mode_the_reviewer_decides_first(tmp_path: Path) -> None:
    site = filled(tmp_path, blind_share=1.0)
    with people(site, "nina") as (nina,):
        page = nina.get("/case/1")
        written = site.store.rows("SELECT rationale FROM predictions WHERE case_id = 1")[0]["rationale"]
        assert "taken" not in page.text  # why a case was taken tells of the model
        assert "You decide first" in page.text and " %" not in page.text and "The model&#39;s decision" not in page.text
        assert written not in page.text and "<mark" not in page.text
        first, last = site.model.labels.values[0], site.model.labels.values[2]
        assert nina.answer(page, action="decide", label=last).status_code == 422  # not before the first decision
        assert nina.answer(page, why=last).status_code == 422
        shown = nina.answer(page, action="first", label=first)
        assert f"You first decided: {first}" in shown.text and " %" in shown.text
        nina.answer(page, action="first", label=last)  # the first one stands
        nina.answer(shown, action="decide", label=last)
        (kept,) = site.answers()
        nina.answer(nina.get("/case/2"), action="skip")
        assert "You decide first" in nina.get("/case/2").text  # skipping shows nothing either
        assert site.answers("case_id = 2")[0]["prediction"] is None
        assert not any(f"<td>{label}</td>" in nina.get("/history?key=n2").text for label in site.model.labels.values)
    assert (kept["blind"], kept["first_label"], kept["label"]) == (1, first, last)
    assert kept["opened"] <= kept["first_at"] <= kept["at"]


def test_reviewers_do_not_see_each_other_and_an_adjudicator_settles(tmp_path: Path) -> None:
    site = filled(tmp_path, reviews_per_case=2)
    home, doctor = site.model.labels.values[:2]
    with people(site, "nina", "olga", "adam", "nora") as (nina, olga, adam, nora):
        nina.answer(nina.get("/case/1"), action="decide", label=home, comment="ninas thought")
        page = olga.get("/case/1")
        assert "ninas thought" not in page.text
        olga.answer(page, action="decide", label=doctor, rationale="Olga wrote this.")
        assert olga.get("/adjudicate").status_code == 404 and "Disagreements" not in olga.get().text
        assert nora.get("/case/1").status_code == 409  # a third reviewer, by the link of the disputed case
        settle = adam.get("/adjudicate")
        assert settle.url.path == "/review/case/1"
        assert "ninas thought" in settle.text and "Olga wrote this." in settle.text
        assert "nina" not in settle.text.replace("ninas thought", "") and "olga" not in settle.text  # pseudonyms
        after = adam.answer(settle, action="decide", label=doctor)
        assert message(after) == "No disagreement waits for you."
        assert "Reasons given" in adam.get("/dashboard").text  # which are others' words
        assert "Agreement of reviewers" in nina.get("/dashboard").text
        assert "Reasons given" not in nina.get("/dashboard").text
        assert "before seeing the model" not in settle.text  # nobody was blind
        assert site.store.rows("SELECT state FROM cases WHERE id = 1")[0]["state"] == "adjudicated"
        assert site.answers("kind = 'adjudication'")[0]["sampled"] == "disputed"

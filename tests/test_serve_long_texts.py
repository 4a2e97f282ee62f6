"""A note that is longer than the model reads: every reply, card and row says so, and the setting decides what becomes
of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import CHOICE, TEXT, TRIAGE, decided, systemone, triage_bundle

from reason2decide.model.calibration import OperatingPoint
from reason2decide.serve.app import create_app
from reason2decide.serve.audit import AuditLog
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

LONG = "the caller is calm and has no fever. " * 40 + TEXT


@contextmanager
def server(tmp_path: Path, **settings: Any) -> Iterator[tuple[TestClient, ServedModel]]:
    chosen = ServeSettings(**settings)
    model = ServedModel("triage", triage_bundle(), chosen.reading)
    model.predictor.operating_point = OperatingPoint(0, 0)  # sure enough of everything: only the cut defers
    app = create_app([model], chosen, audit=AuditLog(tmp_path / "audit.db", 30))
    with TestClient(app, base_url="http://localhost") as client:
        yield client, model


def card(client: TestClient, text: str) -> dict[str, Any]:
    context = {"userId": "Practitioner/1", "patientId": "2", "text": text}
    body = {"hook": "patient-view", "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea", "context": context}
    reply = client.post("/cds-services/triage", json=body)
    assert reply.status_code == 200, reply.text
    (found,) = reply.json()["cards"]
    return dict(found)


def ask(client: TestClient, text: str, **more: Any) -> dict[str, Any]:
    reply = client.post("/v1/systemone", json=systemone(state=text, **more))
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_every_reply_tells_how_much_was_read(tmp_path: Path) -> None:
    with server(tmp_path) as (client, model):
        (decision,) = decided(model, LONG)
        read = {"tokens": decision.tokens, "tokens_read": decision.tokens_read, "cut": True}
        assert decision.tokens_read == model.predictor.encoder.room(predict=True) < decision.tokens
        assert ask(client, LONG)["text"] == read
        choices = [{"value": label} for label in TRIAGE.values]
        question = {"type": "choice", "name": "where", "choices": choices}
        body = {"model": "triage", "input": LONG, "questions": [question]}
        reply = client.post("/v1/decisions", json=body).json()
        assert reply["text"] == read and reply["answers"][0]["deferred"] is True
        for label in (None, TRIAGE.values[0]):
            asked = {"model": "triage", "text": LONG, "label": label}
            assert client.post("/v1/explain", json={**asked, "stream": False}).json()["text"] == read
            events = [
                json.loads(line.removeprefix("data: "))
                for line in client.post("/v1/explain", json=asked).text.splitlines()
                if line.startswith("data: ")
            ]
            assert events[-1]["text"] == read and (label is not None or events[0]["text"] == read)
        found = card(client, LONG)
        assert found["summary"].startswith("The note was not read whole, a person should decide; most likely: ")
        assert f"has read {decision.tokens_read} of the text's {decision.tokens} tokens" in found["detail"]
        assert "which has read" not in found["detail"] and "not sure enough" not in found["detail"]
    rows = sqlite3.connect(tmp_path / "audit.db").execute("SELECT tokens, tokens_read FROM requests").fetchall()
    assert rows == [(decision.tokens, decision.tokens_read)] * 7


def test_a_note_that_is_read_whole_says_so(tmp_path: Path) -> None:
    with server(tmp_path) as (client, _):
        reply, found = ask(client, TEXT), card(client, TEXT)
    tokens = reply["text"]["tokens"]
    assert reply["text"] == {"tokens": tokens, "tokens_read": tokens, "cut": False}
    assert not any("deferred" in answer for answer in reply["answers"].values())
    assert "which has read: the text of the request" in found["detail"] and "whole" not in found["summary"]


@pytest.mark.parametrize(("long_texts", "deferred"), [("defer", True), ("decide", False)])
def test_a_cut_note_is_deferred_or_decided(long_texts: Any, deferred: bool, tmp_path: Path) -> None:
    with server(tmp_path, long_texts=long_texts) as (client, _):
        reply = ask(client, LONG, questions={"where": CHOICE})
        assert reply["answers"]["where"]["deferred"] is deferred and reply["text"]["cut"]
        assert ("a person should decide" in card(client, LONG)["summary"]) is deferred


def test_a_cut_note_is_refused(tmp_path: Path) -> None:
    with server(tmp_path, long_texts="refuse") as (client, _):
        requests = (
            ("/v1/systemone", systemone(state=LONG)),
            ("/v1/explain", {"model": "triage", "text": LONG, "label": TRIAGE.values[0]}),
            ("/v1/explain", {"model": "triage", "text": LONG, "stream": False}),
        )
        for path, body in requests:
            reply = client.post(path, json=body)
            assert reply.status_code == 413 and "fit in the model's prompt; send less" in reply.json()["detail"]
        assert ask(client, TEXT)["text"]["cut"] is False


@pytest.mark.parametrize("more", [{"long_texts": "windows"}, {"input_tokens": 600}])
def test_a_long_note_is_read_whole(more: dict[str, Any], tmp_path: Path) -> None:
    with server(tmp_path, **more) as (client, model):
        reply = ask(client, LONG[-600:], include=["rationale"])
        assert reply["text"]["cut"] is False and reply["text"]["tokens"] > 64
        assert model.predictor.bundle.manifest.lengths.input == 64
        assert next(iter(reply["rationales"].values()))


def test_a_text_of_which_nothing_is_read_is_refused(tmp_path: Path) -> None:
    with server(tmp_path) as (client, _):
        reply = client.post("/v1/systemone", json=systemone(state="\u00ad\u200b"))
    assert reply.status_code == 422 and "nothing to decide on" in str(reply.json())

"""CDS Hooks 2.0: feedback on cards, who may call, and the services within the whole server."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jwt
import pytest
from cds import CARD, PUBLIC, URL, application, call, feedback, observation, reason, rows, toy_model
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient
from toy import LABELS

from reason2decide.serve import cards
from reason2decide.serve.app import create_app
from reason2decide.serve.audit import AuditLog
from reason2decide.serve.auth import Authenticator, new_token
from reason2decide.serve.batching import Batcher
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return toy_model()


@pytest.fixture
def client(model: ServedModel, batcher: Batcher, audit: AuditLog) -> TestClient:
    return application([model], batcher, audit=audit)


# ---- Feedback


def test_feedback_is_kept_with_its_reason(client: TestClient, audit: AuditLog) -> None:
    (card,) = client.post(URL, json=call()).json()["cards"]
    told = [
        feedback(card=card["uuid"], overrideReason=reason("other-decision", display="x", extra="y")),
        feedback(outcome="accepted", acceptedSuggestions=[{"id": CARD}]),
        feedback(outcome="accepted"),
        feedback(overrideReason={"userComment": "Miller had this twice"}),
        feedback(overrideReason=reason("1234567008", "http://snomed.info/sct")),
        feedback(overrideReason=reason("Miller had this twice")),
        feedback(overrideReason=reason("x", "Miller: had this")),
        feedback(),
    ]
    reply = client.post(f"{URL}/feedback", json={"feedback": told})
    assert reply.status_code == 200 and reply.content == b""
    found = rows(audit, "feedback")
    assert [(row["outcome"], row["reason_code"]) for row in found] == [
        ("overridden", "other-decision"),
        ("accepted", None),
        ("accepted", None),
        ("overridden", None),
        ("overridden", "other"),
        ("overridden", "other"),
        ("overridden", "other"),
        ("overridden", None),
    ]
    assert found[0]["card"] == card["uuid"] and found[0]["reason_system"] == cards.REASONS_SYSTEM
    assert found[0]["outcome_at"].startswith("2026-12-11T10:05:31.52") and found[0]["service"] == "Toy triage"
    with closing(sqlite3.connect(audit.path)) as connection:
        joined = connection.execute("SELECT label FROM requests JOIN feedback USING (card)").fetchall()
    assert len(joined) == 1 and joined[0][0] in LABELS.values


def test_feedback_on_one_card_may_come_again(client: TestClient, audit: AuditLog) -> None:
    for _ in range(2):
        assert client.post(f"{URL}/feedback", json={"feedback": [feedback(), feedback()]}).status_code == 200
    assert len(rows(audit, "feedback")) == 4


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"feedback": []},
        {"feedback": {}},
        {"feedback": [feedback()] * 101},
        {"feedback": [feedback(card=None)]},
        {"feedback": [feedback(card="Miller")]},
        {"feedback": [feedback(outcome=None)]},
        {"feedback": [feedback(outcome="Miller")]},
        {"feedback": [feedback(outcomeTimestamp=None)]},
        {"feedback": [feedback(outcomeTimestamp="Miller")]},
        {"feedback": [feedback(outcomeTimestamp="2026-12-11T10:05:31")]},
        {"feedback": [feedback(overrideReason={"reason": {"code": "x"}})]},
        {"feedback": [feedback(), feedback(overrideReason="Miller")]},
    ],
)
def test_feedback_of_another_form_is_refused_without_quoting(client: TestClient, audit: AuditLog, body: Any) -> None:
    reply = client.post(f"{URL}/feedback", json=body)
    assert reply.status_code == 422 and "Miller" not in reply.text
    assert rows(audit, "feedback") == []


def test_dates_at_the_ends_of_time_are_no_error(client: TestClient) -> None:
    for date in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"):
        assert client.post(f"{URL}/feedback", json={"feedback": [feedback(outcomeTimestamp=date)]}).status_code == 200


def test_without_a_record_there_is_no_feedback(model: ServedModel, batcher: Batcher) -> None:
    own = application([model], batcher)
    assert own.post(f"{URL}/feedback", json={"feedback": [feedback()]}).status_code == 404
    assert own.post(URL, json=call()).status_code == 200


# ---- Callers

KEY = ec.generate_private_key(ec.SECP384R1())
TOKEN, LINE = new_token("ward")
ISSUER = "https://ehr.example.org/"


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> ServeSettings:
    folder = tmp_path_factory.mktemp("callers")
    own = {**dict(json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key()))), "kid": "k"}
    (folder / "keys.json").write_text(json.dumps({"keys": [own]}))
    (folder / "issuers.toml").write_text(f'[issuers]\n"{ISSUER}" = "keys.json"\n')
    (folder / "tokens").write_text(LINE)
    return ServeSettings(
        tokens=folder / "tokens",
        jwt_issuers=folder / "issuers.toml",
        public_url=PUBLIC,
        cors=("https://ehr.example.org",),
        deadline_ms=60_000,
    )


@pytest.fixture
def secured(model: ServedModel, batcher: Batcher, audit: AuditLog, protected: ServeSettings) -> TestClient:
    authenticator = Authenticator(protected, audit)
    return application([model], batcher, authenticator=authenticator, audit=audit, settings=protected)


def bearer(path: str, jti: str = "", **changes: Any) -> dict[str, str]:
    now = int(time.time())
    own = {"iss": ISSUER, "aud": PUBLIC + path, "iat": now, "exp": now + 300, "jti": jti or str(time.perf_counter_ns())}
    return {"Authorization": "Bearer " + jwt.encode({**own, **changes}, KEY, "ES384", headers={"kid": "k"})}


def test_discovery_needs_no_token(secured: TestClient) -> None:
    assert secured.get("/cds-services").status_code == 200


def test_calls_and_feedback_need_a_token(secured: TestClient, audit: AuditLog) -> None:
    for path in (URL, f"{URL}/feedback", "/cds-services/unknown"):
        for headers in ({}, {"Authorization": "Bearer x.y.z"}, bearer(path, aud="https://other.example")):
            reply = secured.post(path, content=b"not even JSON", headers=headers)
            assert (reply.status_code, reply.json()) == (401, {"detail": "unauthorized"})
            assert reply.headers["www-authenticate"] == "Bearer"
    assert rows(audit) == []


def test_a_web_token_is_for_one_call_of_one_address(secured: TestClient, audit: AuditLog) -> None:
    for path, body in ((URL, call()), (f"{URL}/feedback", {"feedback": [feedback()]})):
        assert secured.post(path, json=body, headers=bearer(f"{path}x")).status_code == 401
        headers = bearer(path)
        assert [secured.post(path, json=body, headers=headers).status_code for _ in range(2)] == [200, 401]
    assert [(row["caller"], row["status"]) for row in rows(audit)] == [(ISSUER, 200)] * 2
    assert rows(audit, "feedback")[0]["caller"] == ISSUER


def test_the_host_header_makes_no_audience(secured: TestClient) -> None:
    headers = {**bearer(URL, aud=f"https://other.example{URL}"), "Host": "other.example"}
    assert secured.post(URL, json=call(), headers=headers).status_code == 401
    assert secured.post(URL, json=call(), headers={**bearer(URL), "Host": "internal:8080"}).status_code == 200


def test_a_static_token_names_its_caller(secured: TestClient, audit: AuditLog) -> None:
    assert secured.post(URL, json=call(), headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert rows(audit)[0]["caller"] == "ward"


# ---- In the whole server


def test_browsers_of_allowed_origins_may_call(model: ServedModel, protected: ServeSettings) -> None:
    with TestClient(create_app([model], protected, authenticator=Authenticator(protected))) as server:
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        allowed = server.options(URL, headers={"Origin": "https://ehr.example.org", **asks})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://ehr.example.org"
        other = server.options(URL, headers={"Origin": "https://evil.example", **asks})
        assert "access-control-allow-origin" not in other.headers
        reply = server.post(URL, json=call(), headers={"Origin": "https://ehr.example.org", **bearer(URL)})
        assert reply.status_code == 200 and reply.headers["access-control-allow-origin"]


def test_the_endpoints_stand_in_the_openapi_document(model: ServedModel, audit: AuditLog) -> None:
    paths = create_app([model], ServeSettings(), audit=audit).openapi()["paths"]
    assert {path for path in paths if path.startswith("/cds")} == {
        "/cds-services",
        "/cds-services/{service}",
        "/cds-services/{service}/feedback",
    }


CANARY = "Zebulon Quirke Kxqzwv"


def test_canaries_of_patient_text_are_nowhere_but_in_the_reply(
    model: ServedModel, protected: ServeSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "httpx2")  # the client's own log
    audit = AuditLog(tmp_path / "audit.sqlite", 30)
    bodies = [
        call(CANARY),
        call(None, {"observations": observation(CANARY), CANARY: CANARY}),
        call(None, {CANARY: observation(CANARY)}),
        call(CANARY, fhirServer=CANARY, fhirAuthorization={"access_token": CANARY}, extension={CANARY: CANARY}),
        call(hookInstance=CANARY),
        call(hook=CANARY),
        call(context=CANARY),
        call(context={CANARY: CANARY}),
        call(prefetch=CANARY),
        call(None, {"observations": observation(f"{CANARY} " * 9900)}),
        CANARY,
        {"feedback": [feedback(card=CANARY)]},
        {"feedback": [feedback(outcome=CANARY, outcomeTimestamp=CANARY)]},
        {"feedback": [feedback(overrideReason={**reason(CANARY, CANARY, display=CANARY), "userComment": CANARY})]},
        {"feedback": [feedback(acceptedSuggestions=[{"id": CANARY}], outcome="accepted")]},
        {"feedback": {CANARY: CANARY}},
    ]
    statuses = []
    with TestClient(create_app([model], protected, authenticator=Authenticator(protected, audit), audit=audit)) as own:
        for body in bodies:
            for path in (URL, f"{URL}/feedback"):
                reply = own.post(path, json=body, headers=bearer(path))
                statuses.append(reply.status_code)
                assert reply.status_code == 200 or CANARY.split()[0] not in reply.text
        for path in (f"/cds-services/{CANARY}", f"{URL}?{CANARY}"):
            for shown in (TOKEN, CANARY):
                reply = own.post(path, json=call(CANARY), headers={"Authorization": f"Bearer {shown}"})
                statuses.append(reply.status_code)
                assert reply.status_code == 200 or CANARY.split()[0] not in reply.text
        metrics = own.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    kept += b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert {200, 401, 404, 412, 413, 422} <= set(statuses) and max(statuses) < 500
    assert b"Toy triage" in kept and "toy" in metrics.lower()
    printed = "".join(capfd.readouterr())
    for part in CANARY.split():
        for where in (kept.decode("latin-1"), metrics, caplog.text, printed):
            assert part not in where.replace("%20", " ")

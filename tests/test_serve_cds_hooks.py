"""CDS Hooks 2.0: every rule on a service that `docs/cds_hooks.md` lists, on a small trained model."""

from __future__ import annotations

import ast
import base64
import json
import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving import decided, rationales
from toy import LABELS, run

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.errors import ConfigError
from reason2decide.serve import cards, cds_hooks
from reason2decide.serve.app import create_app
from reason2decide.serve.audit import AuditLog, AuditUnavailable
from reason2decide.serve.auth import Authenticator, new_token
from reason2decide.serve.batching import Batcher
from reason2decide.serve.cds_hooks import PREFETCH
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

DOCS = Path(__file__).parents[1] / "docs" / "cds_hooks.md"
NOTE = "31 yo with chest pain since 2 days"
URL = "/cds-services/toy-triage"
PUBLIC = "https://cds.example.org"
HOOK_INSTANCE = "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea"
CARD = "4e0a3a1e-3283-4575-ab82-028d55fe2719"


@pytest.fixture(scope="module")
def model(dataset: DatasetFolder, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model that has learnt the toy task: decisions are sure, and rationales sentences."""
    out = tmp_path_factory.mktemp("model") / "run"
    return ServedModel("Toy triage", run(dataset, out, method="r2d-no-stage1", steps=40, learning_rate=5e-3))


@pytest.fixture(scope="module")
def silent(dataset: DatasetFolder, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model that writes no rationales."""
    return ServedModel("silent", run(dataset, tmp_path_factory.mktemp("silent") / "run", method="sft"))


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    own = Batcher(max_requests=16, max_batch=8, max_streams=1)
    yield own
    own.close()


def application(
    models: list[Any],
    batcher: Any,
    *,
    authenticator: Authenticator | None = None,
    audit: AuditLog | None = None,
    settings: ServeSettings | None = None,
) -> TestClient:
    app = FastAPI()
    app.include_router(
        cds_hooks.router(models, batcher, authenticator, audit, settings or ServeSettings(deadline_ms=60_000))
    )
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog(tmp_path / "audit.sqlite", 30) as log:
        yield log


@pytest.fixture
def client(model: ServedModel, silent: ServedModel, batcher: Batcher, audit: AuditLog) -> TestClient:
    return application([model, silent], batcher, audit=audit)


def call(text: str | None = NOTE, prefetch: object = None, **changes: Any) -> dict[str, Any]:
    context = {"userId": "Practitioner/1", "patientId": "2", "encounterId": "3"} | ({"text": text} if text else {})
    own = {"hook": "patient-view", "hookInstance": HOOK_INSTANCE, "context": context, "prefetch": prefetch}
    return {key: value for key, value in {**own, **changes}.items() if value is not None}


def observation(text: str) -> dict[str, Any]:
    return {"resourceType": "Observation", "status": "final", "valueString": text}


def rows(audit: AuditLog, table: str = "requests") -> list[dict[str, Any]]:
    """The rows, when those that wait are written."""
    audit.close()
    with closing(sqlite3.connect(audit.path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY id")]


def values_of(value: object) -> Iterator[object]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from values_of(inner)


# ---- Discovery


def test_discovery_lists_a_service_for_each_model(client: TestClient, model: ServedModel) -> None:
    reply = client.get("/cds-services")
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"services"}
    first, second = reply.json()["services"]
    assert (first["id"], second["id"]) == ("toy-triage", "silent")
    assert first["hook"] == "patient-view" and first["title"] == "Toy triage"
    assert all(label in first["description"] for label in model.labels.values)
    assert first["prefetch"] == PREFETCH and "context.text" in first["usageRequirements"]
    assert client.post(f"/cds-services/{first['id']}", json=call()).status_code == 200


def test_discovery_without_models_is_an_empty_list(batcher: Batcher) -> None:
    reply = application([], batcher).get("/cds-services")
    assert (reply.status_code, reply.json()) == (200, {"services": []})


def test_prefetch_templates_keep_to_the_recommended_subset() -> None:
    read = r"[A-Z][a-zA-Z]+/\{\{context\.encounterId\}\}"
    search = r"[A-Z][a-zA-Z]+\?encounter=\{\{context\.encounterId\}\}(&_sort=-[a-z]+)?(&_count=\d+)?"
    for template in PREFETCH.values():
        assert re.fullmatch(f"{read}|{search}", template)
    assert set(re.findall(r"context\.(\w+)", str(PREFETCH))) <= set(cds_hooks.Context.model_fields)


def test_discovery_needs_no_token(secured: TestClient) -> None:
    assert secured.get("/cds-services").status_code == 200


@pytest.mark.parametrize(
    ("names", "message"), [(["a b", "A-B"], "both have the service id 'a-b'"), (["分"], "cannot form")]
)
def test_names_that_give_no_address_of_their_own_are_refused(batcher: Batcher, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        application([SimpleNamespace(name=name, reads_notes=True) for name in names], batcher)


# ---- A call and its card


def test_a_call_is_answered_with_one_card(client: TestClient, model: ServedModel) -> None:
    reply = client.post(URL, json=call())
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"cards"}
    (card,) = reply.json()["cards"]
    assert set(card) == {"uuid", "summary", "detail", "indicator", "source", "overrideReasons"}
    (decision,) = decided(model, NOTE)
    assert decision.label in card["summary"]
    assert card["source"] == {"label": "Reason2Decide: Toy triage"}
    for label, probability in decision.probabilities.items():
        assert f"| {label} | {cards._percent(probability)} |" in card["detail"]
    assert model.hash[:12] in card["detail"]


def test_the_rationale_is_in_the_detail(client: TestClient, model: ServedModel) -> None:
    (decision,) = decided(model, NOTE)
    (rationale,) = rationales(model, [NOTE], [decision.label])
    assert len(rationale.split()) > 2
    (card,) = client.post(URL, json=call()).json()["cards"]
    assert f"which nobody has checked:** {rationale}\n" in card["detail"]


def test_a_model_without_rationales_answers_too(client: TestClient) -> None:
    (card,) = client.post("/cds-services/silent", json=call()).json()["cards"]
    assert "own words" not in card["detail"] and "| Decision | Probability |" in card["detail"]


def test_each_card_has_a_uuid_of_its_own(client: TestClient) -> None:
    found = {client.post(URL, json=call()).json()["cards"][0]["uuid"] for _ in range(3)}
    assert len(found) == 3 and all(UUID(own).version == 4 for own in found)


def test_no_reply_holds_null_or_empty_values(client: TestClient) -> None:
    for reply in (client.get("/cds-services"), client.post(URL, json=call())):
        assert not [value for value in values_of(reply.json()) if value is None or value in ("", [], {})]


def test_a_source_url_is_given_where_it_is_configured(model: ServedModel, batcher: Batcher) -> None:
    own = application([model], batcher, settings=ServeSettings(source_url="https://h.example/ai", deadline_ms=60_000))
    (card,) = own.post(URL, json=call()).json()["cards"]
    assert card["source"]["url"] == "https://h.example/ai"


# ---- Where the text comes from


@pytest.mark.parametrize("name", ["F02_cds_url_only.json", "F02_cds_charset_utf8.json"])
def test_a_document_that_cannot_be_read_is_told(name: str, client: TestClient, shared_cases: Path) -> None:
    """F02: an encounter's harmless complaint, and a document that says more."""
    detail = card_detail(client.post(URL, json=json.loads((shared_cases / name).read_text())))
    told = "Not read by the model: 1 DocumentReference (only an address is given)" in detail
    assert told == ("1 DocumentReference" not in detail.splitlines()[-1]) == ("url" in name)


def test_without_text_it_is_said_what_could_not_be_read(client: TestClient) -> None:
    content = [{"attachment": {"contentType": "application/pdf", "data": "JVBERg=="}}]
    document = {"resourceType": "DocumentReference", "content": content}
    reply = client.post(URL, json=call(None, {"documents": document}))
    assert reply.status_code == 412 and reply.json()["detail"].endswith("(1 DocumentReference (it is a PDF))")


def card_detail(reply: Any) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["cards"][0]["detail"])


def hash_of(audit: AuditLog) -> str:
    return str(rows(audit)[-1]["input_hash"])


def test_plain_text_of_the_context_is_the_whole_text(client: TestClient, audit: AuditLog) -> None:
    detail = card_detail(client.post(URL, json=call(f"  {NOTE} ", {"observations": observation("other")})))
    assert "the text of the request" in detail
    assert hash_of(audit) == audit.input_hash(NOTE)


def test_text_comes_from_resources_in_context_and_prefetch(client: TestClient, audit: AuditLog) -> None:
    context = {"userId": "Practitioner/1", "patientId": "2", "draft": observation("first")}
    attachment = {"contentType": "text/plain", "data": base64.b64encode(b"third").decode()}
    prefetch = {
        "observations": {"resourceType": "Bundle", "entry": [{"resource": observation("fourth")}]},
        "documents": {"resourceType": "DocumentReference", "content": [{"attachment": attachment}]},
        "encounter": {"resourceType": "Encounter", "reasonCode": [{"text": "second"}]},
        "communications": None,
        "patient": observation("a key that was not asked for"),
    }
    detail = card_detail(client.post(URL, json=call(None, prefetch, context=context)))
    assert "2 Observation, 1 Encounter, 1 DocumentReference" in detail
    assert hash_of(audit) == audit.input_hash("first\n\nsecond\n\nthird\n\nfourth")


@pytest.mark.parametrize(
    "prefetch",
    [
        None,
        {},
        dict.fromkeys(PREFETCH),
        {"observations": {"resourceType": "Bundle", "type": "searchset"}},
        {"documents": "text", "encounter": 3, "observations": [observation("a list is no resource")]},
        {"encounter": {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "timeout"}]}},
        {"unknown": observation("a")},
    ],
)
@pytest.mark.parametrize("text", [None, " \n"])
def test_without_text_the_answer_is_412(client: TestClient, audit: AuditLog, prefetch: object, text: Any) -> None:
    reply = client.post(URL, json=call(text, prefetch))
    assert reply.status_code == 412 and "no text to decide on" in reply.json()["detail"]
    (row,) = rows(audit)
    assert row["status"] == 412 and row["label"] is None and row["model"] == "Toy triage"


def test_operation_outcomes_in_the_prefetch_are_noticed(client: TestClient) -> None:
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "timeout"}]}
    prefetch = {"encounter": outcome, "observations": observation(NOTE)}
    assert "has not seen everything" in card_detail(client.post(URL, json=call(None, prefetch)))
    del prefetch["encounter"]
    assert "has not seen everything" not in card_detail(client.post(URL, json=call(None, prefetch)))


def test_pages_that_are_missing_are_noticed(client: TestClient) -> None:
    page = {"resourceType": "Bundle", "entry": [{"resource": observation(NOTE)}], "link": [{"relation": "next"}]}
    assert "has not seen everything" in card_detail(client.post(URL, json=call(None, {"observations": page})))


def test_half_characters_are_no_error(client: TestClient) -> None:
    body = json.dumps(call("chest pain \ud800")).encode()
    reply = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200


def test_more_text_than_is_read_is_413(client: TestClient) -> None:
    reply = client.post(URL, json=call(None, {"observations": observation("Miller " * 40_000)}))
    assert reply.status_code == 413 and "Miller" not in reply.text


# ---- What is refused


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (call(hook="order-sign"), "hook"),
        ({key: value for key, value in call().items() if key != "hook"}, "hook"),
        ({key: value for key, value in call().items() if key != "hookInstance"}, "hookInstance"),
        (call(hookInstance="Miller"), "hookInstance"),
        (call(hookInstance=3), "hookInstance"),
        ({key: value for key, value in call().items() if key != "context"}, "context"),
        (call(context="Miller"), "context"),
        (call(context={"text": NOTE, "patientId": "2"}), "userId"),
        (call(context={"text": NOTE, "userId": "Practitioner/1", "patientId": ""}), "patientId"),
        (call(context={"text": ["Miller"], "userId": "Practitioner/1", "patientId": "2"}), "text"),
        (call(prefetch=["Miller"]), "prefetch"),
    ],
)
def test_a_request_of_another_form_is_refused_without_quoting(
    client: TestClient, audit: AuditLog, body: dict[str, Any], place: str
) -> None:
    reply = client.post(URL, json=body)
    assert reply.status_code == 422
    (problem,) = reply.json()["detail"]
    assert place in problem["loc"] and set(problem) == {"loc", "msg", "type"}
    assert "Miller" not in reply.text
    assert rows(audit)[0]["status"] == 422


@pytest.mark.parametrize("body", [b"", b"Miller", b"[]", b"3", b'{"hook": Miller}', b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_refused_without_quoting(client: TestClient, body: bytes) -> None:
    reply = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422 and "Miller" not in reply.text


def test_an_unknown_service_is_404(client: TestClient, audit: AuditLog) -> None:
    for path in ("/cds-services/miller", "/cds-services/miller/feedback"):
        reply = client.post(path, json=call())
        assert reply.status_code == 404 and "miller" not in reply.text
    assert [(row["status"], row["endpoint"], row["model"]) for row in rows(audit)] == [
        (404, "/cds-services/{service}", None),
        (404, "/cds-services/{service}/feedback", None),
    ]


def test_unknown_keys_and_extensions_are_disregarded(client: TestClient) -> None:
    body = call(extension={"com.example.x": "y"}, fhirServer="https://fhir.example", fhirAuthorization={"a": 1}, more=2)
    assert client.post(URL, json=body).status_code == 200


def test_an_overloaded_server_says_when_to_come_again(model: ServedModel) -> None:
    full = Batcher(max_requests=0, max_batch=1, max_streams=1)
    reply = application([model], full).post(URL, json=call())
    full.close()
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1


def test_too_late_is_504(model: ServedModel, batcher: Batcher, audit: AuditLog) -> None:
    hurried = application([model], batcher, audit=audit, settings=ServeSettings(deadline_ms=1))
    assert hurried.post(URL, json=call()).status_code in (503, 504)  # by the measured time it may not even begin
    (row,) = rows(audit)
    assert row["status"] in (503, 504) and row["label"] is None


def test_no_decision_leaves_without_its_record(model: ServedModel, batcher: Batcher, audit: AuditLog) -> None:
    class Full(AuditLog):
        def __init__(self) -> None:
            pass

        def _put(self, *given: Any) -> Any:
            raise AuditUnavailable("x")

        def input_hash(self, text: str) -> str:
            return "0"

    reply = application([model], batcher, audit=Full()).post(URL, json=call())
    assert reply.status_code == 503 and "cards" not in reply.text and reply.headers["retry-after"]


# ---- Feedback


def feedback(**changes: Any) -> dict[str, Any]:
    own = {"card": CARD, "outcome": "overridden", "outcomeTimestamp": "2026-12-11T10:05:31.52Z"}
    return {key: value for key, value in {**own, **changes}.items() if value is not None}


def reason(code: str, system: str = cards.REASONS_SYSTEM, **more: Any) -> dict[str, Any]:
    return {"reason": {"code": code, "system": system, **more}}


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


# ---- The table of the standard's rules


def test_every_test_that_the_document_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", DOCS.read_text("utf-8")))
    there = set()
    for file in Path(__file__).parent.glob("test_serve_*.py"):
        there |= {
            node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
        }
    assert named - there == set()
    assert len(named) >= 30


def test_every_rule_has_a_test_or_says_why_not() -> None:
    lines = [line for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| ") and "---" not in line]
    rules = [line for line in lines if re.search(r"\b(SHALL|MUST|SHOULD|REQUIRED|RECOMMENDED)\b", line)]
    assert len(rules) >= 40
    for line in rules:
        assert "`test_" in line or "Does not apply" in line, line

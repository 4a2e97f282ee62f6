"""CDS Hooks 2.0: every rule on a service that `docs/cds_hooks.md` lists, on a small trained model."""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from uuid import UUID

import pytest
from cds import NOTE, URL, application, call, observation, rows, toy_model
from fastapi.testclient import TestClient
from serving import decided, rationales, triage_bundle
from toy import run

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.errors import ConfigError
from reason2decide.model.calibration import OperatingPoint
from reason2decide.model.reasons import Reason, ReasonSettings
from reason2decide.serve import cards, cds_hooks
from reason2decide.serve.audit import AuditLog, AuditUnavailable
from reason2decide.serve.batching import Batcher
from reason2decide.serve.cds_hooks import PREFETCH
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

DOCS = Path(__file__).parents[1] / "docs" / "cds_hooks.md"


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return toy_model()


@pytest.fixture(scope="module")
def silent(dataset: DatasetFolder, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model that writes no rationales."""
    return ServedModel("silent", run(dataset, tmp_path_factory.mktemp("silent") / "run", method="sft"))


@pytest.fixture
def client(model: ServedModel, silent: ServedModel, batcher: Batcher, audit: AuditLog) -> TestClient:
    return application([model, silent], batcher, audit=audit)


def values_of(value: object) -> Iterator[object]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from values_of(inner)


def test_a_card_whose_reason_does_not_support_it_is_left_to_a_person(batcher: Batcher, tmp_path: Path) -> None:
    class Unsupported(ServedModel):
        def explain(self, texts: Sequence[str], labels: Sequence[str]) -> list[Reason]:
            return [Reason(own.text, 0.0, supports=False) for own in super().explain(texts, labels)]

    checks: tuple[tuple[Literal["defer", "flag"], bool], ...] = (("defer", True), ("flag", False))
    for check, deferred in checks:
        model = Unsupported("triage", triage_bundle(), reasons=ReasonSettings(check_reasons=check))
        model.predictor.operating_point = OperatingPoint(0, 0)  # sure enough of everything
        (card,) = application([model], batcher).post("/cds-services/triage", json=call()).json()["cards"]
        assert ("a person should decide" in card["summary"]) is deferred


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


def test_resources_of_another_patient_are_refused(client: TestClient) -> None:
    own = observation("pale") | {"subject": {"reference": "https://a.org/fhir/Patient/2"}}
    other = observation("pale") | {"subject": {"reference": "Patient/8"}}
    assert client.post(URL, json=call(None, {"observations": own})).status_code == 200
    bundle = {"resourceType": "Bundle", "entry": [{"resource": own}, {"resource": other}]}
    reply = client.post(URL, json=call(None, {"observations": bundle}))
    assert reply.status_code == 422 and "another patient than context.patientId" in reply.text


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

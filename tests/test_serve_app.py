"""The server's interfaces: decisions, rationales, errors, where text may appear, metrics, the OpenAPI document."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from backports import zstd
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import (
    CHOICE,
    SCREENING,
    TEXT,
    TRIAGE,
    choices,
    decided,
    decisions,
    post,
    rationales,
    systemone,
    train_bundle,
    triage_bundle,
)
from starlette.testclient import TestClient

from reason2decide.model.reasons import Reason
from reason2decide.serve.app import create_app
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

HOME, DOCTOR, AMBULANCE = TRIAGE.values
CANARY = "Zanzibar"


class Failing(ServedModel):
    def explain(self, texts: Sequence[str], labels: Sequence[str]) -> list[Reason]:
        if TEXT in texts:
            raise RuntimeError(f"cannot read {texts} {CANARY}")
        return super().explain(texts, labels)


@pytest.fixture(scope="module")
def bundle() -> Path:
    return triage_bundle()


@pytest.fixture(scope="module")
def models(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ServedModel]:
    screening = train_bundle(tmp_path_factory.mktemp("screening"), SCREENING, steps={"stage1": 1, "stage2": 1})
    plain = train_bundle(tmp_path_factory.mktemp("plain"), method="sft", steps=1)
    return [
        ServedModel("triage", bundle),
        ServedModel("hospital/screening", screening),
        ServedModel("plain", plain),
    ]


@pytest.fixture(scope="module")
def app(models: list[ServedModel]) -> FastAPI:
    return create_app(models, ServeSettings(cors=("https://ehr.example.org",), public_url="http://testserver"))


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)
    assert "".join(f"event: {kind}\ndata: {data}\n\n" for kind, data in found) == text
    return [(kind, json.loads(data)) for kind, data in found]


# ---- Decisions


def test_system_one(client: TestClient, models: list[ServedModel]) -> None:
    decision = decided(models[0], TEXT)[0]
    question = {"type": "score", "criteria": list(TRIAGE.values)}
    reply = post(client, "/v1/systemone", systemone(questions={"where": CHOICE, "urgency": question}))
    assert reply["model"] == "triage" and set(reply) == {"model", "text", "answers", "usage"}
    assert reply["usage"] == {"input_tokens": models[0].tokens([TEXT])[0], "output_tokens": 0}
    choice, score = reply["answers"]["where"], reply["answers"]["urgency"]
    assert set(choice) == {"type", "choice", "confidence", "probabilities"} and choice["choice"] == decision.label
    assert choice["probabilities"] == pytest.approx(dict(decision.probabilities), abs=1e-6)
    assert score["legend"] == {"0": HOME, "1": DOCTOR, "2": AMBULANCE}
    levels = list(decision.probabilities.values())
    assert score["score"] == pytest.approx(levels[1] + 2 * levels[2], abs=1e-6)


def test_decisions(client: TestClient, models: list[ServedModel]) -> None:
    decision = decided(models[0], TEXT)[0]
    choice = {"type": "choice", "name": "where", "choices": [{"value": label} for label in TRIAGE.values]}
    score = {"type": "score", "levels": [{"label": label, "description": "x"} for label in TRIAGE.values]}
    reply = post(client, "/v1/decisions", decisions(score, choice, safety_identifier="x"))
    assert [answer["type"] for answer in reply["answers"]] == ["score", "choice"]
    assert [answer["name"] for answer in reply["answers"]] == [None, "where"]
    assert reply["answers"][1]["choice"] == decision.label
    assert [entry["label"] for entry in reply["answers"][0]["probabilities"]] == list(TRIAGE.values)
    assert [entry["value"] for entry in reply["answers"][0]["probabilities"]] == [0, 1, 2]
    assert reply["usage"]["total_tokens"] == reply["usage"]["input_tokens"]


def test_yes_or_no_on_a_model_whose_name_has_a_slash(client: TestClient, models: list[ServedModel]) -> None:
    name = "hospital/screening"
    yes = decided(models[1], TEXT)[0].probabilities["yes"]
    noul = post(client, "/v1/systemone", systemone(name, questions={"q": {"type": "noul", "instructions": "Sick?"}}))
    predicate = post(client, "/v1/decisions", decisions({"type": "predicate", "instructions": "Sick?"}, model=name))
    assert noul["answers"]["q"] == {"type": "noul", "noul": pytest.approx(yes, abs=1e-6)}
    assert predicate["answers"][0]["probability"] == pytest.approx(yes, abs=1e-6)
    assert client.get(f"/v1/models/{name}").json()["id"] == name


def test_the_rationale_and_more_on_request(client: TestClient, models: list[ServedModel]) -> None:
    decision = decided(models[0], TEXT)[0]
    own, other = rationales(models[0], [TEXT] * 2, [decision.label, AMBULANCE])
    assert own and other
    include = ["rationale", f"rationale:{AMBULANCE}", "prediction_set", "deferral"]
    for path, body in (
        ("/v1/systemone", systemone(include=include)),
        ("/v1/decisions", decisions({**choices(), "name": "disposition"}, include=include)),
    ):
        reply = post(client, path, body)
        answers = reply["answers"]
        answer = answers["disposition"] if isinstance(answers, dict) else answers[0]
        assert answer["rationale"] == reply["rationales"]["disposition"] == own
        assert answer["rationales"] == {AMBULANCE: other}
        assert answer["prediction_set"] == list(decision.prediction_set) and answer["deferred"] == decision.deferred
        assert reply["usage"]["output_tokens"] == sum(
            models[0].tokens(list({decision.label: own, AMBULANCE: other}.values()))
        )


def test_the_rationale_by_header(client: TestClient) -> None:
    reply = post(client, "/v1/systemone", systemone(), headers={"X-Decision-Include": "rationale, deferral"})
    assert {"rationale", "deferred"} <= set(reply["answers"]["disposition"])


def test_a_subset_explains_its_own_choice(client: TestClient, models: list[ServedModel]) -> None:
    least = min(own := dict(decided(models[0], TEXT)[0].probabilities), key=own.__getitem__)
    question = {"type": "choice", "criteria": {least: None}}
    reply = post(client, "/v1/systemone", systemone(questions={"q": question}, include=["rationale"]))
    answer = reply["answers"]["q"]
    assert answer["renormalised"] is True and answer["probabilities"] == {least: 1}
    assert answer["rationale"] == rationales(models[0], [TEXT], [least])[0]


def test_models_in_both_forms(client: TestClient, models: list[ServedModel]) -> None:
    reply = client.get("/v1/models").json()
    assert reply["object"] == "list"
    names = [model.name for model in models]
    assert [entry["id"] for entry in reply["data"]] == names == [entry["name"] for entry in reply["models"]]
    first = reply["models"][0]
    assert first["release_date"] == models[0].created[:10] and first["labels"] == list(TRIAGE.values)
    assert [entry["explains"] for entry in reply["models"]] == [True, True, False]


# ---- Rationales


def test_a_rationale_is_streamed(client: TestClient, models: list[ServedModel]) -> None:
    response = client.post("/v1/explain", json={"model": "triage", "text": TEXT})
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *pieces, last = events(response.text)
    decision = decided(models[0], TEXT)[0]
    rationale = rationales(models[0], [TEXT], [decision.label])[0]
    assert first[0] == "decision" and first[1]["label"] == decision.label
    assert "".join(data["delta"] for kind, data in pieces if kind == "rationale") == rationale != ""
    assert last[0] == "done" and last[1]["rationale"] == rationale
    assert last[1]["usage"]["output_tokens"] == models[0].tokens([rationale])[0]


def test_a_rationale_for_another_label_whole_or_streamed(client: TestClient, models: list[ServedModel]) -> None:
    rationale = rationales(models[0], [TEXT], [AMBULANCE])[0]
    body = {"model": "triage", "text": TEXT, "label": AMBULANCE}
    whole = post(client, "/v1/explain", {**body, "stream": False})
    assert whole["rationale"] == rationale and whole["label"] == AMBULANCE and "probabilities" not in whole
    assert whole["usage"]["input_tokens"] == models[0].tokens([TEXT])[0]
    streamed = events(client.post("/v1/explain", json=body).text)
    assert {kind for kind, _ in streamed} == {"rationale", "done"}


def test_what_cannot_be_explained(client: TestClient) -> None:
    body = {"model": "triage", "text": TEXT, "label": CANARY}
    assert repr(DOCTOR) in post(client, "/v1/explain", body, 422)["detail"][0]["msg"]
    assert "no rationales" in post(client, "/v1/explain", {"model": "plain", "text": TEXT}, 422)["detail"][0]["msg"]
    refused = post(client, "/v1/systemone", systemone("plain", include=["rationale"]), 422)
    assert refused["detail"][0]["loc"] == ["body", "include", 0]


# ---- Errors


def test_an_unknown_model_in_each_interface_s_form(client: TestClient) -> None:
    assert "'triage'" in post(client, "/v1/systemone", systemone("gpt"), 404)["detail"]
    error = post(client, "/v1/decisions", decisions(choices(), model="gpt"), 404)["error"]
    assert error["code"] == "model_not_found" and error["param"] == "model"
    assert client.get("/v1/models/gpt").status_code == 404


def test_other_options_are_refused_with_the_labels(client: TestClient) -> None:
    question = {"type": "choice", "criteria": {HOME: None, CANARY: None}}
    problem = post(client, "/v1/systemone", systemone(questions={"q": question}), 422)["detail"][0]
    assert problem["loc"] == ["body", "questions", "q", "choice", "criteria"] and problem["type"] == "value_error"
    assert all(label in problem["msg"] for label in TRIAGE.values)
    other = {"type": "choice", "choices": [{"value": HOME}, {"value": CANARY}]}
    error = post(client, "/v1/decisions", decisions(other), 422)["error"]
    assert all(label in error["message"] for label in TRIAGE.values)
    assert error["param"] == "questions.0.choice.choices"


def test_question_types_a_model_cannot_answer(client: TestClient) -> None:
    for model, question in (
        ("triage", {"type": "noul"}),
        ("hospital/screening", {"type": "score", "criteria": ["no", "yes"]}),
    ):
        problem = post(client, "/v1/systemone", systemone(model, questions={"q": question}), 422)["detail"][0]
        assert "cannot answer" in problem["msg"]


@pytest.mark.parametrize("state", ["", " \n", [], {}, {"note": None}])
def test_a_state_without_text(client: TestClient, state: Any) -> None:
    assert post(client, "/v1/systemone", systemone(state=state), 422)["detail"][0]["loc"] == ["body", "state"]


def test_limits(client: TestClient) -> None:
    assert "longer than" in post(client, "/v1/systemone", systemone(state="a" * 300_000), 413)["detail"]
    assert "larger than" in post(client, "/v1/systemone", systemone(state="a" * 2**20), 413)["detail"]
    many = {str(index): CHOICE for index in range(65)}
    assert post(client, "/v1/systemone", systemone(questions=many), 422)["detail"][0]["type"] == "too_long"
    assert post(client, "/v1/systemone", systemone(questions={}), 422)["detail"][0]["type"] == "too_short"
    deep: Any = "a"
    for _ in range(40):
        deep = [deep]
    assert post(client, "/v1/systemone", systemone(state=deep), 422)["detail"][0]["type"] == "too_deep"
    wide = systemone(state=[["a"]] * 200)
    assert client.post("/v1/systemone", json=wide).status_code == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 422),
        (b"", {}, 422),
        (b"[]", {}, 422),
        (b"\xff\xfe{}", {}, 422),
        (b'{"model": "\\ud800"}', {}, 422),
        (b"[" * 100_000, {}, 422),
        (b"1" * 5000, {}, 422),
        (b'{"model": NaN}', {}, 422),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-encoding": "gzip"}, 415),
        (b"{}", {"content-encoding": "zstd"}, 422),
        (zstd.compress(b"[" + b"0," * 2**20 + b"0]"), {"content-encoding": "zstd"}, 413),
        (zstd.compress(b"{}")[:-1], {"content-encoding": "zstd"}, 422),
    ],
)
@pytest.mark.parametrize("path", ["/v1/systemone", "/v1/decisions", "/v1/explain", "/cds-services/triage"])
def test_bodies_that_are_not_json(
    client: TestClient, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    response = client.post(path, content=body, headers={"content-type": "application/json", **headers})
    assert response.status_code == status
    assert ("error" if path == "/v1/decisions" else "detail") in response.json()


def test_compressed_bodies(client: TestClient) -> None:
    body = zstd.compress(json.dumps(systemone()).encode())
    headers = {"content-type": "application/json", "content-encoding": "zstd"}
    assert client.post("/v1/systemone", content=body, headers=headers).status_code == 200


def test_half_an_emoji_harms_nobody(client: TestClient) -> None:
    # Programs that cut a string after so many UTF-16 units send half a surrogate pair, which JSON can express.
    def sent(text: str) -> Any:
        body = json.dumps(systemone(state=text, questions={"q\ud83d": CHOICE})).encode()
        assert b"\\ud83d" in body
        return client.post("/v1/systemone", content=body, headers={"content-type": "application/json"})

    cut, marked = sent(TEXT + " \ud83d"), sent(TEXT + " ?")
    assert cut.status_code == 200 and list(cut.json()["answers"]) == ["q?"]
    assert cut.json()["answers"] == marked.json()["answers"]


def test_no_page_and_no_method(client: TestClient) -> None:
    assert client.get("/nowhere").status_code == 404
    response = client.get("/v1/systemone")
    assert response.status_code == 405 and response.headers["allow"] == "POST"


def test_an_unforeseen_error_is_told_without_its_message(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(create_app([Failing("triage", bundle)], ServeSettings()), base_url="http://localhost") as client:
        response = client.post("/v1/systemone", json=systemone(include=["rationale"]))
    assert response.status_code == 500 and "unforeseen error" in response.json()["detail"]
    assert "RuntimeError at" in caplog.text and CANARY not in caplog.text + response.text


# ---- No text but in replies


def test_text_is_nowhere_but_in_replies(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    note = f"Mr {CANARY}, chest pain"
    question = {"type": CANARY, "criteria": {CANARY: 5, f"{note} as a key": 5}, CANARY: note}
    bodies: list[Any] = [
        systemone(note),
        systemone(state={f"the key {note}": note}, questions={}),
        systemone(state=5),
        systemone(questions={note: {**question, "type": "choice"}}),
        systemone(questions={"q": question}),
        systemone(questions={"q": {"type": "noul", "instructions": note, "criteria": {note: note}}}),
        systemone(questions=[note]),
        systemone(include=[note]),
        systemone(include=note),
        systemone(include=[f"rationale:{note}"]),
        systemone(assets={note: note}),
        systemone(**{f"a {note}": note}),
        {"model": note, "text": note, "label": note},
        {"model": "triage", "text": note, "label": note},
        {"model": "triage", "text": [note], "stream": note},
        decisions({**question, "type": "score", "levels": [{"label": note}]}),
        decisions(question),
        decisions(choices(), input=[{"role": note, "content": note}]),
        decisions({"type": "choice", "choices": [{"value": note}, {"value": {note: note}}]}),
        {"hook": note, "hookInstance": note, "context": {"text": [note]}},
        note,
    ]
    refused = 0
    for path in ("/v1/systemone", "/v1/decisions", "/v1/explain", "/cds-services/triage"):
        for body in bodies:
            response = client.post(path, json=body)
            assert response.status_code in (404, 422) and CANARY not in response.text, (path, body, response.text)
            refused += 1
        response = client.post(path, content=json.dumps(systemone(state=note)).encode()[:-1])
        assert response.status_code in (415, 422) and CANARY not in response.text
    assert refused == 4 * len(bodies)
    for body in (systemone(state=note), systemone(state=note, include=["rationale"])):
        assert client.post("/v1/systemone", json=body).status_code == 200
    assert client.post("/v1/explain", json={"model": "triage", "text": note}).status_code == 200
    logged = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))
    assert CANARY not in logged
    assert CANARY not in client.get("/metrics").text


# ---- Metrics


def test_metrics(client: TestClient) -> None:
    post(client, "/v1/systemone", systemone(include=["rationale"]))
    text = client.get("/metrics").text
    for name in ("r2d_requests_total", "r2d_request_seconds_bucket", "r2d_batch_calls_bucket", "r2d_queue_depth"):
        assert re.search(rf"^{name}\b", text, re.MULTILINE)
    assert 'route="/v1/systemone",status="200"' in text and 'kind="explain",model="triage"' in text


# ---- The document


def test_the_document_has_examples_that_work(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, name in (
        ("/v1/systemone", "SystemOneRequest"),
        ("/v1/decisions", "DecisionsRequest"),
        ("/v1/explain", "ExplainRequest"),
    ):
        assert client.post(path, json=schemas[name]["examples"][0]).status_code == 200
        responses = document["paths"][path]["post"]["responses"]
        assert {"200", "401", "404", "408", "413", "415", "422", "503", "504"} <= set(responses)


def test_schemathesis_finds_nothing(app: FastAPI) -> None:
    document = app.openapi()  # which the application keeps, and shows
    schemas = document["components"]["schemas"]
    for name in ("SystemOneRequest", "DecisionsRequest", "ExplainRequest"):
        schemas[name]["properties"]["model"]["enum"] = ["triage"]  # so that most requests reach a model
    schemas["ChoiceQuestion"]["properties"]["criteria"]["propertyNames"] = {"enum": list(TRIAGE.values)}
    schemas["ExplainRequest"]["properties"]["label"] = {"enum": [None, *TRIAGE.values]}
    statuses: set[int] = set()
    quiet = settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    for result in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        operation = result.ok()
        modes = GenerationMode if operation.method == "POST" else [GenerationMode.POSITIVE]
        for mode in modes:

            @quiet
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                response = case.call()
                statuses.add(response.status_code)
                # Which questions a model can answer, no schema says: such a request is refused with 422.
                case.validate_response(response, excluded_checks=[positive_data_acceptance])

            check()
    app.openapi_schema = None
    assert {200, 404, 422} <= statuses

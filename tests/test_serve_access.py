"""Who may call the server, from where, and what is recorded of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import (
    CHOICE,
    TEXT,
    TRIAGE,
    choices,
    decided,
    decisions,
    post,
    systemone,
    triage_bundle,
)
from starlette.testclient import TestClient

from reason2decide.errors import ConfigError
from reason2decide.serve.app import create_app
from reason2decide.serve.audit import AuditLog
from reason2decide.serve.auth import Authenticator, new_token
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

HOME = TRIAGE.values[0]


@pytest.fixture(scope="module")
def models() -> list[ServedModel]:
    """The one model that is served."""
    return [ServedModel("triage", triage_bundle())]


@pytest.fixture(scope="module")
def client(models: list[ServedModel]) -> Iterator[TestClient]:
    """A server that pages of one origin may call."""
    settings = ServeSettings(cors=("https://ehr.example.org",), public_url="http://testserver")
    with TestClient(create_app(models, settings), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def guarded(
    models: list[ServedModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TestClient, str, Path]]:
    folder = tmp_path_factory.mktemp("guarded")
    token, line = new_token("ward-3")
    (folder / "tokens").write_text(line + "\n", "utf-8")
    settings = ServeSettings(tokens=folder / "tokens", audit=folder / "audit.db")
    audit = AuditLog(folder / "audit.db", 30)
    app = create_app(models, settings, authenticator=Authenticator(settings, audit), audit=audit)
    with TestClient(app, base_url="http://localhost") as client:
        yield client, token, folder / "audit.db"


def test_tokens(guarded: tuple[TestClient, str, Path]) -> None:
    client, token, _ = guarded
    known, unknown = {"Authorization": f"Bearer {token}"}, {"Authorization": "Bearer x"}
    for path, body in (("/v1/systemone", systemone()), ("/v1/explain", {"model": "triage", "text": TEXT})):
        assert client.post(path, json=body, headers=known).status_code == 200
    for headers in ({}, unknown):
        refused = client.post("/v1/decisions", json={"anything": 1}, headers=headers)
        assert refused.status_code == 401 and refused.json()["error"]["message"] == "unauthorized"
        assert refused.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/models", "/v1/models/triage", "/metrics"):
            assert client.get(path, headers=headers).status_code == 401
        assert client.get("/health/ready", headers=headers).status_code == 200
    assert client.get("/metrics", headers=known).status_code == 200
    document = client.get("/openapi.json").json()
    assert document["paths"]["/v1/systemone"]["post"]["security"] == [{"HTTPBearer": []}]


def test_every_request_is_recorded(models: list[ServedModel], tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.db", 30)
    expected = audit.input_hash(TEXT)
    with TestClient(create_app(models, ServeSettings(), audit=audit), base_url="http://localhost") as client:
        post(client, "/v1/systemone", systemone(questions={"a": CHOICE, "b": CHOICE}))
        post(client, "/v1/decisions", decisions(choices()))
        client.post("/v1/explain", json={"model": "triage", "text": TEXT, "label": HOME})
        post(client, "/v1/systemone", systemone(questions={}), 422)
    rows = sqlite3.connect(tmp_path / "audit.db").execute(
        "SELECT caller, endpoint, model, model_hash, input_hash, label, confidence, status FROM requests"
    )
    decision = decided(models[0], TEXT)[0]
    common = ("triage", models[0].hash, expected)
    near = pytest.approx(decision.confidence, abs=1e-6)
    assert rows.fetchall() == [
        ("anonymous", "/v1/systemone", *common, decision.label, near, 200),
        ("anonymous", "/v1/decisions", *common, decision.label, near, 200),
        ("anonymous", "/v1/explain", *common, HOME, None, 200),
        ("anonymous", "/v1/systemone", None, None, None, None, None, 422),
    ]


def test_pages_of_allowed_origins_may_call(client: TestClient) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = client.options("/v1/systemone", headers={"Origin": "https://ehr.example.org", **asked})
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://ehr.example.org"
    refused = client.options("/v1/systemone", headers={"Origin": "https://other.example.org", **asked})
    assert "access-control-allow-origin" not in refused.headers
    broken = client.post("/v1/systemone", content=b"{", headers={"Origin": "https://ehr.example.org"})
    assert broken.headers["access-control-allow-origin"] == "https://ehr.example.org"  # so that it can be read


def test_two_models_of_one_name(models: list[ServedModel]) -> None:
    (model,) = models
    with pytest.raises(ConfigError, match="different names"):
        create_app([model, model], ServeSettings())


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="max_queue"):
        ServeSettings(max_queue=0)
    with pytest.raises(ConfigError, match="retention_days is 999999; expected at most 36500, a hundred years"):
        ServeSettings(retention_days=999_999)
    with pytest.raises(ConfigError, match="port"):
        ServeSettings(port=70_000)
    with pytest.raises(ConfigError, match="expected a full URL"):
        ServeSettings(source_url="h.example")


@pytest.mark.parametrize(
    ("host", "safe"), [("127.0.0.1", True), ("::1", True), ("127.1.2.3", True), ("0.0.0.0", False)]
)
def test_other_machines_need_authentication(host: str, safe: bool, tmp_path: Path) -> None:
    if safe:
        ServeSettings(host=host).require_safe_address()
    else:
        with pytest.raises(ConfigError, match="no authentication"):
            ServeSettings(host=host).require_safe_address()
    ServeSettings(host=host, tokens=tmp_path / "tokens").require_safe_address()

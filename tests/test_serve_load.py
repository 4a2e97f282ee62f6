"""A server under load: its bounds, its deadlines, what it measures before the first call, and draining."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import (
    TEXT,
    choices,
    decisions,
    systemone,
    triage_bundle,
)
from starlette.testclient import TestClient

from reason2decide.errors import DataError
from reason2decide.model.decision import Decision
from reason2decide.serve.app import create_app
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings


class Gated(ServedModel):
    """A model whose decisions wait while the gate is closed."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def decide(self, texts: Sequence[str]) -> list[Decision | DataError]:
        self.begun.set()
        assert self.gate.wait(60)
        return super().decide(texts)


@pytest.fixture(scope="module")
def bundle() -> Path:
    return triage_bundle()


def test_over_the_bound_503_and_too_late_504(bundle: Path) -> None:
    model = Gated("triage", bundle)
    app = create_app([model], ServeSettings(max_queue=1, deadline_ms=3000))
    with TestClient(app, base_url="http://localhost") as client, ThreadPoolExecutor(1) as pool:
        model.begun.clear()
        model.gate.clear()
        try:
            late = pool.submit(client.post, "/v1/decisions", json=decisions(choices()))
            assert model.begun.wait(60)
            for path, body, key in (
                ("/v1/systemone", systemone(), "detail"),
                ("/v1/decisions", decisions(choices()), "error"),
                ("/v1/explain", {"model": "triage", "text": TEXT}, "detail"),
            ):
                refused = client.post(path, json=body)
                assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1 and key in refused.json()
            assert client.get("/health/ready").status_code == 200
            assert late.result().status_code == 504 and late.result().json()["error"]["code"] == "deadline_exceeded"
        finally:
            model.gate.set()
        assert client.post("/v1/systemone", json=systemone()).status_code == 200
        lines = client.get("/metrics").text.splitlines()
    assert 'r2d_requests_total{route="/v1/systemone",status="503"} 1.0' in lines
    assert 'r2d_requests_total{route="/v1/decisions",status="504"} 1.0' in lines
    assert "r2d_queue_depth 0.0" in lines


def test_a_server_knows_from_the_start_what_calls_cost_at_most(bundle: Path) -> None:
    model = ServedModel("triage", bundle)
    longest, room = model.tokens([model.longest_text])[0], model.predictor.encoder.room(predict=True)
    assert room - model.tokens(["warm-up "])[0] < longest <= room
    with TestClient(create_app([model], ServeSettings()), base_url="http://localhost") as client:
        lines = client.get("/metrics").text.splitlines()
    for kind in ("decide", "explain", "stream"):
        assert f'r2d_batch_calls_count{{kind="{kind}",model="triage"}} 1.0' in lines


def test_draining(bundle: Path) -> None:
    app = create_app([ServedModel("triage", bundle)], ServeSettings())
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/health/ready").status_code == 200
        app.state.door.draining = True
        refused = client.post("/v1/systemone", json=systemone())
        assert refused.status_code == 503 and refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == client.get("/metrics").status_code == 200

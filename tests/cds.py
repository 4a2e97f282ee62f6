"""The services of CDS Hooks on a small model, and what their tests ask them."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient
from toy import run, write_toy

from reason2decide.serve import cards, cds_hooks
from reason2decide.serve.audit import AuditLog
from reason2decide.serve.auth import Authenticator
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

NOTE = "31 yo with chest pain since 2 days"
URL = "/cds-services/toy-triage"
PUBLIC = "https://cds.example.org"
HOOK_INSTANCE = "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea"
CARD = "4e0a3a1e-3283-4575-ab82-028d55fe2719"
_kept = tempfile.TemporaryDirectory()


@functools.cache
def toy_model() -> ServedModel:
    """A model that has learnt the toy task: decisions are sure, and rationales sentences."""
    dataset, out = write_toy(Path(_kept.name) / "toy"), Path(_kept.name) / "run"
    return ServedModel("Toy triage", run(dataset, out, method="r2d-no-stage1", steps=40, learning_rate=5e-3))


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


def feedback(**changes: Any) -> dict[str, Any]:
    own = {"card": CARD, "outcome": "overridden", "outcomeTimestamp": "2026-12-11T10:05:31.52Z"}
    return {key: value for key, value in {**own, **changes}.items() if value is not None}


def reason(code: str, system: str = cards.REASONS_SYSTEM, **more: Any) -> dict[str, Any]:
    return {"reason": {"code": code, "system": system, **more}}

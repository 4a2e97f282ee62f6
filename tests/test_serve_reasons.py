"""What reasons decide about an answer, and what the record has of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from serving import CHOICE, TEXT, TRIAGE, post, systemone, train_bundle, triage_bundle
from starlette.testclient import TestClient

from reason2decide.model.calibration import OperatingPoint
from reason2decide.model.decision import Decision
from reason2decide.model.reasons import Reason, ReasonSettings
from reason2decide.serve.app import create_app
from reason2decide.serve.audit import AuditLog
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

HOME = TRIAGE.values[0]


@pytest.fixture(scope="module")
def bundle() -> Path:
    return triage_bundle()


class Unsupported(ServedModel):
    """Whose reasons never support their label."""

    def explain(self, texts: Sequence[str], labels: Sequence[str]) -> list[Reason]:
        return [Reason(reason.text, 0.0, supports=False) for reason in super().explain(texts, labels)]


@pytest.mark.parametrize("include", [["deferral"], ["rationale"], ["rationale", "deferral"]])
def test_what_its_reason_does_not_support_is_left_to_a_person(include: list[str], bundle: Path, tmp_path: Path) -> None:
    """Whatever else is asked for, of all labels and of some."""
    few = {"type": "choice", "criteria": dict.fromkeys(TRIAGE.values[:2])}
    body = systemone(include=include, questions={"all": CHOICE, "few": few})
    checks: tuple[tuple[Literal["defer", "flag"], bool], ...] = (("defer", True), ("flag", False))
    for check, deferred in checks:
        model = Unsupported("triage", bundle, reasons=ReasonSettings(check_reasons=check))
        model.predictor.operating_point = OperatingPoint(0, 0)  # sure enough of everything
        with TestClient(create_app([model], ServeSettings()), base_url="http://localhost") as client:
            reply = post(client, "/v1/systemone", body)
        for answer in reply["answers"].values():
            assert answer.get("deferred", False) is deferred and ("rationale" in answer) is ("rationale" in include)


def test_reasons_that_ignore_the_label_are_no_case_for_another(tmp_path: Path) -> None:
    model = ServedModel("triage", train_bundle(tmp_path / "dss", method="dss", steps=1))
    with TestClient(create_app([model], ServeSettings()), base_url="http://localhost") as client:
        told = post(client, "/v1/explain", {"model": "triage", "text": TEXT, "label": HOME}, 422)["detail"][0]
        assert told["loc"] == ["body", "label"] and "do not depend on a label" in told["msg"]
        told = post(client, "/v1/systemone", systemone(include=[f"rationale:{HOME}"]), 422)["detail"][0]
        assert "do not depend on a label" in told["msg"]
        post(client, "/v1/systemone", systemone(include=["rationale"]))
        assert client.get("/v1/models").json()["models"][0]["explains_any_label"] is False


def test_the_record_has_what_the_caller_was_answered(bundle: Path, tmp_path: Path) -> None:
    """Of some of the labels the likeliest, with the probability that was sent."""
    model = ServedModel("triage", bundle)
    (decision,) = model.decide([TEXT])
    assert isinstance(decision, Decision)
    others = [label for label in TRIAGE.values if label != decision.label]
    question = {"type": "choice", "criteria": dict.fromkeys(others)}
    app = create_app([model], ServeSettings(), audit=AuditLog(tmp_path / "a.db", 30))
    with TestClient(app, base_url="http://localhost") as client:
        answer = post(client, "/v1/systemone", systemone(questions={"q": question}))["answers"]["q"]
    rows = sqlite3.connect(tmp_path / "a.db").execute("SELECT label, confidence FROM requests").fetchall()
    assert rows == [(answer["choice"], pytest.approx(answer["probabilities"][answer["choice"]]))]

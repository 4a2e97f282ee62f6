"""The published clients of both interfaces, as they are, against `r2d serve` in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import typesafe_sdk
from serving import SCREENING, TEXT, TRIAGE, Server, decided, rationales, running, train_bundle, triage_bundle
from typesafe_sdk import Choice, Noul, RetryPolicy, Score, TypeSafeClient

from reason2decide.llm.client.calls import DecisionCall, ModelAnswer, Question
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.endpoint import Dialect, Endpoint
from reason2decide.llm.client.log import CallLog
from reason2decide.llm.settings import Limits
from reason2decide.serve.served_model import ServedModel

HOME, DOCTOR, AMBULANCE = TRIAGE.values
CHOICE = Choice(instructions="Where to?", criteria=dict.fromkeys(TRIAGE.values))
CHOICES = {
    "type": "choice",
    "name": "where",
    "instructions": "Where to?",
    "choices": [{"value": label, "description": "x"} for label in TRIAGE.values],
}


@pytest.fixture(scope="module")
def bundle() -> Path:
    return triage_bundle()


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("screening")
    screening = train_bundle(folder, SCREENING, steps={"stage1": 1, "stage2": 1})
    with running(f"triage={bundle}", f"screening={screening}") as server:
        yield server


@pytest.fixture(scope="module")
def model(bundle: Path) -> ServedModel:
    return ServedModel("triage", bundle)


@pytest.fixture
def typesafe(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[TypeSafeClient]:
    monkeypatch.setenv("TYPESAFE_BASE_URL", server.url)
    with TypeSafeClient(api_key="none", model="triage", retry=RetryPolicy(max_retries=0)) as client:
        yield client


@pytest.fixture
def openai_client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_typesafe_choice_score_and_noul(typesafe: TypeSafeClient, model: ServedModel) -> None:
    decision = decided(model, TEXT)[0]
    score = Score(instructions="How urgent?", criteria=list(TRIAGE.values))
    found = typesafe.system_one(TEXT, {"where": CHOICE, "urgency": score})
    assert found.model == "triage" and found.request_id
    assert found.choices["where"].choice == decision.label
    assert found.choices["where"].probabilities == pytest.approx(dict(decision.probabilities), abs=1e-4)
    assert found.scores["urgency"].legend == dict(enumerate(TRIAGE.values))
    assert sum(found.scores["urgency"].probabilities.values()) == pytest.approx(1)
    assert found.usage.input_tokens == model.tokens([TEXT])[0]
    yes = typesafe.system_one({"note": TEXT}, {"sick": Noul(instructions="Sick?")}, model="screening")
    assert 0 < yes.nouls["sick"].noul < 1


def test_typesafe_rationale(typesafe: TypeSafeClient, model: ServedModel) -> None:
    found = typesafe.system_one(TEXT, {"where": CHOICE}, extra_body={"include": ["rationale"]})
    rationale = rationales(model, [TEXT], [found.choices["where"].choice])[0]
    assert found.raw_http_response.json()["rationales"] == {"where": rationale}


def test_typesafe_long_compressed_state(server: Server) -> None:
    with TypeSafeClient(api_key="none", model="triage", base_url=server.url, compression="zstd") as client:
        assert client.system_one(f"{TEXT}. " * 200, {"where": CHOICE}).choices["where"].choice in TRIAGE.values


def test_typesafe_models(typesafe: TypeSafeClient, model: ServedModel) -> None:
    found = typesafe.models.list().models
    assert [entry.name for entry in found] == ["triage", "screening"]
    assert found[0].release_date == model.created[:10]


def test_typesafe_errors(typesafe: TypeSafeClient) -> None:
    with pytest.raises(typesafe_sdk.TypeSafeNotFoundError, match="'triage'"):
        typesafe.system_one(TEXT, {"where": CHOICE}, model="jev-latest")
    with pytest.raises(typesafe_sdk.TypeSafeUnprocessableEntityError, match=DOCTOR):
        typesafe.system_one(TEXT, {"where": Choice(criteria={"up": None, "down": None})})
    with pytest.raises(typesafe_sdk.TypeSafeUnprocessableEntityError, match="cannot answer"):
        typesafe.system_one(TEXT, {"sick": Noul(instructions="Sick?")})


def test_openai_choice_score_and_predicate(openai_client: openai.OpenAI, model: ServedModel) -> None:
    decision = decided(model, TEXT)[0]
    score = {"type": "score", "instructions": "How urgent?", "levels": [{"label": label} for label in TRIAGE.values]}
    found = openai_client.decisions.create(model="triage", input=TEXT, questions=[CHOICES, score])  # type: ignore[list-item]
    choice, scored = found.answers
    assert choice.type == "choice" and choice.name == "where" and choice.choice == decision.label
    own = {str(entry.value): entry.probability for entry in choice.probabilities}
    assert own == pytest.approx(dict(decision.probabilities), abs=1e-4)
    assert scored.type == "score" and [entry.label for entry in scored.probabilities] == list(TRIAGE.values)
    assert found.usage.total_tokens == model.tokens([TEXT])[0]
    asked = [{"type": "predicate", "instructions": "Sick?"}]
    messages = [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
    yes = openai_client.decisions.create(model="screening", input=messages, questions=asked).answers[0]  # type: ignore[arg-type]
    assert yes.type == "predicate" and 0 < yes.probability < 1


def test_openai_rationale(openai_client: openai.OpenAI, model: ServedModel) -> None:
    include = {"include": ["rationale", f"rationale:{AMBULANCE}"]}
    found = openai_client.decisions.create(model="triage", input=TEXT, questions=[CHOICES], extra_body=include)  # type: ignore[list-item]
    answer = found.answers[0]
    assert answer.type == "choice"
    own, other = rationales(model, [TEXT] * 2, [str(answer.choice), AMBULANCE])
    assert answer.rationale == own and answer.rationales == {AMBULANCE: other}  # type: ignore[attr-defined]
    assert found.rationales == {"where": own}  # type: ignore[attr-defined]


def test_openai_models(openai_client: openai.OpenAI) -> None:
    assert [entry.id for entry in openai_client.models.list()] == ["triage", "screening"]
    assert openai_client.models.retrieve("triage").owned_by == "reason2decide"


def test_openai_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.decisions.create(model="gpt-6-luna", input=TEXT, questions=[CHOICES])  # type: ignore[list-item]
    assert missing.value.code == "model_not_found" and missing.value.request_id
    with pytest.raises(openai.UnprocessableEntityError, match="cannot answer"):
        openai_client.decisions.create(
            model="triage", input=TEXT, questions=[{"type": "predicate", "instructions": "Sick?"}]
        )


@pytest.mark.parametrize("dialect", ["systemone", "decisions"])
def test_our_own_client(server: Server, model: ServedModel, dialect: Dialect, tmp_path: Path) -> None:
    client = Client(
        Endpoint(f"{server.url}/v1", "triage", dialect=dialect), CallLog(tmp_path / "calls.sqlite"), Limits()
    )
    options: dict[str, str | None] = dict.fromkeys(TRIAGE.values, "described")
    questions = {
        "where": Question("choice", "Where to?", options),
        "urgency": Question("score", "How urgent?", options),
    }
    ((_, answer),) = client.run([DecisionCall("1", TEXT, questions)])
    assert isinstance(answer, ModelAnswer) and answer.probabilities is not None
    for name in questions:
        assert answer.probabilities[name] == pytest.approx(dict(decided(model, TEXT)[0].probabilities), abs=1e-4)

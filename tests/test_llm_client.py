"""The client against a real server that misbehaves: bounded time, right counts, nothing lost, nothing twice."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from typing import Literal

import pytest
from llm_asking import QUICK, answers, ask, client_for, several
from llm_server import filled, plain_answer, probabilities
from pydantic import BaseModel

from reason2decide.errors import UserError
from reason2decide.llm.client.budget import Budget
from reason2decide.llm.client.calls import Call, DecisionCall, ModelAnswer, Question, call_key
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.concurrency import START
from reason2decide.llm.client.endpoint import Endpoint, EndpointError
from reason2decide.llm.client.structured import strict_schema
from reason2decide.llm.settings import Limits


class Triage(BaseModel):
    label: Literal["home", "clinic", "hospital"]
    rationale: str
    level: int


# --- calls ------------------------------------------------------------------------------------------------------------


def test_answers_are_those_to_the_questions(server, log):
    client = client_for(server, log)
    calls = several(40)
    found = answers(client, calls)
    for call in calls:
        answer = found[call.id]
        assert answer.text == plain_answer(call.messages) and answer.finish_reason == "stop" and not answer.cached
        assert answer.model == "rules-2026" and answer.usage.input_tokens == len(call.id) // 4
        assert answer.key == call_key(client.endpoint, call)
    assert server.counts()["total"] == 40
    again = answers(client, calls)
    assert all(answer.cached for answer in again.values())
    assert {i: a.text for i, a in again.items()} == {i: a.text for i, a in found.items()}
    assert server.counts()["total"] == 40
    assert (client.budget.spent.answered, client.budget.spent.cached) == (40, 40)


def test_as_many_at_once_as_the_limit_says(server, log):
    server.faults(always={"kind": "slow", "seconds": 0.1})
    answers(client_for(server, log), several(12))
    assert server.counts()["most_in_flight"] == QUICK.concurrency


def test_calls_are_read_no_further_than_needed(server, log):
    read = 0

    def source():
        nonlocal read
        for call in several(200):
            read += 1
            yield call

    for yielded, _ in enumerate(client_for(server, log).run(source()), 1):
        assert read <= yielded + 2 * QUICK.concurrency
    assert yielded == 200


def test_the_same_call_twice_is_sent_once(server, log):
    twin = [Call(name, ask("the same").messages) for name in "abc"]
    found = answers(client_for(server, log), twin)
    assert server.counts()["total"] == 1
    assert sorted(answer.cached for answer in found.values()) == [False, True, True]


def test_settings_and_schema_are_part_of_the_key():
    endpoint = Endpoint("http://localhost/v1", "m")
    calls = [ask("x"), ask("y"), ask("x", seed=1), ask("x", seed=2), ask("x", Triage)]
    assert len({call_key(endpoint, call) for call in calls}) == len(calls)
    assert call_key(endpoint, ask("x", a=1, b=2)) == call_key(endpoint, ask("x", b=2, a=1))
    assert call_key(endpoint, ask("x")) != call_key(Endpoint("http://localhost/v1", "n"), ask("x"))
    with pytest.raises(UserError, match="'stream'"):
        ask("x", stream=True)


def test_log_probabilities_where_asked_for(server, log):
    call = ask("x", logprobs=True, top_logprobs=1)
    for _ in range(2):  # from the server, then from the log
        answer = answers(client_for(server, log), [call])["x"]
        assert [token.logprob for token in answer.logprobs] == [0.0, -0.125]
        assert answer.logprobs[0].top == (("heard", 0.0),)
    assert answers(client_for(server, log), [ask("y")])["y"].logprobs is None


def test_structured_answers_are_validated_objects(server, log):
    calls = [ask("fever, see the clinic", Triage), ask("chest pain: hospital", Triage)]
    for _ in range(2):
        found = answers(client_for(server, log), calls)
        assert [found[call.id].parsed.label for call in calls] == ["clinic", "hospital"]
    expected = filled(strict_schema(Triage), calls[0].id)
    assert found[calls[0].id].parsed == Triage.model_validate(expected)
    assert server.counts()["total"] == 2


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 408},
        {"kind": "status", "status": 409},
        {"kind": "status", "status": 429},
        {"kind": "status", "status": 429, "headers": {"Retry-After": "0.2"}},
        {"kind": "status", "status": 429, "headers": {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}},
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 503, "headers": {"Retry-After": "0"}},
        {"kind": "slow", "seconds": 1.0},
        {"kind": "cut"},
        {"kind": "garbage"},
    ],
    ids=lambda fault: "-".join(map(str, [*fault.values()][:3])),
)
def test_what_fails_once_is_tried_again(server, log, fault):
    server.faults(first=fault)
    client = client_for(server, log)
    calls = several()
    found = answers(client, calls)
    assert all(found[call.id].text == plain_answer(call.messages) for call in calls)
    assert set(server.counts()["calls"].values()) == {2}
    assert client.budget.spent.requests == 12 and not client.budget.spent.failures and not list(log.failures())


@pytest.mark.parametrize(
    ("fault", "kind", "attempts"),
    [
        # Also asked without each of the parts that a request can do without, and without both.
        ({"kind": "status", "status": 400, "code": "context_length_exceeded"}, "http_400", 4),
        ({"kind": "status", "status": 307, "headers": {"Location": "http://127.0.0.1:9/v1"}}, "http_307", 1),
        ({"kind": "status", "status": 429, "headers": {"Retry-After": "3600"}}, "http_429", 1),
        ({"kind": "slow", "seconds": 1.0}, "timeout", 3),
        ({"kind": "cut"}, "connection", 3),
        ({"kind": "garbage"}, "invalid_response", 3),
        ({"kind": "drip"}, "deadline", 1),
        ({"kind": "refusal"}, "refused", 1),
    ],
)
def test_what_always_fails_ends_as_a_recorded_failure(server, log, fault, kind, attempts):
    server.faults(always=fault)
    client = client_for(server, log)
    found = answers(client, several(3))
    assert {(f.kind, f.attempts) for f in found.values()} == {(kind, attempts)}
    assert server.counts()["total"] == 3 * attempts == client.budget.spent.requests
    assert client.budget.spent.failures == {kind: 3}
    assert [row["kind"] for row in log.failures()] == [kind] * 3
    # A failure is no answer: the next run asks again.
    server.faults()
    assert all(isinstance(answer, ModelAnswer) and not answer.cached for answer in answers(client, several(3)).values())


def test_a_reply_without_end_is_cut(server, log, monkeypatch):
    monkeypatch.setattr("reason2decide.llm.client.transport.MAX_REPLY_BYTES", 1 << 20)
    server.faults(always={"kind": "flood"})
    assert answers(client_for(server, log), several(1)).popitem()[1].kind == "too_large"


@pytest.mark.parametrize("fault", [{"kind": "twice"}, {"kind": "reorder"}])
def test_repeated_and_reordered_answers_never_reach_another_call(server, log, fault):
    server.faults(always=fault)
    calls = several(30)
    found = answers(client_for(server, log), calls)
    assert all(found[call.id].text == plain_answer(call.messages) for call in calls)
    assert max(server.counts()["calls"].values()) <= QUICK.attempts


def test_waiting_as_asked_does_not_use_up_attempts_but_ends(server, log):
    server.faults(queue=[{"kind": "status", "status": 429, "headers": {"Retry-After": "0.1"}}] * 6)
    assert isinstance(answers(client_for(server, log), several(1)).popitem()[1], ModelAnswer)
    assert server.counts()["total"] == 7
    server.faults(always={"kind": "status", "status": 429, "headers": {"Retry-After": "0.5"}})
    failure = answers(client_for(server, log), [ask("z")])["z"]
    assert failure.kind in ("http_429", "deadline") and failure.attempts > 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hopeless_answer_stops_the_run(server, log, status):
    server.faults(always={"kind": "status", "status": status})
    with pytest.raises(EndpointError, match=f"HTTP {status} from"):
        answers(client_for(server, log), several(100))
    assert server.counts()["total"] <= START * (4 if status == 404 else 1)


def test_an_address_without_v1_gets_a_hint(server, log):
    base = f"{server.base_url}/openai"
    server.faults(always={"kind": "status", "status": 404})
    with pytest.raises(EndpointError, match=f"most servers answer under /v1: try {base}/v1"):
        answers(Client(Endpoint(base, "m"), log, QUICK), several(10))


def test_a_wrong_model_name_stops_the_run(server, log):
    client = Client(Endpoint(server.base_url, "gpt-9"), log, QUICK)
    with pytest.raises(EndpointError, match=r"does not know this model or address.*'gpt-9'"):
        answers(client, several(100))
    assert server.counts()["total"] <= START * 4


def test_a_server_that_is_not_there_stops_the_run(log):
    client = Client(Endpoint("http://127.0.0.1:9/v1", "rules"), log, QUICK)
    with pytest.raises(EndpointError, match="the first 10 calls failed in the same way: the connection failed"):
        answers(client, several(100))
    assert client.budget.spent.requests <= (10 + QUICK.concurrency) * QUICK.attempts


def test_a_proxy_in_the_environment_does_not_get_what_stays_here(server, log, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert isinstance(answers(client_for(server, log), several(1)).popitem()[1], ModelAnswer)


def test_a_refused_response_format_is_spelt_out_instead_and_remembered(server, log):
    server.faults(always={"kind": "refuse", "fields": ["response_format"]})
    limits = Limits(concurrency=1, backoff=0.01)
    found = answers(client_for(server, log, limits), [ask(f"clinic {i}", Triage) for i in range(5)])
    assert {answer.parsed.label for answer in found.values()} == {"clinic"}
    assert server.counts()["total"] == 6  # one refusal, five in words
    # A request that is wrong in itself is refused in every form.
    server.faults(always={"kind": "status", "status": 400})
    assert answers(client_for(server, log, limits), [ask("home", Triage)])["home"].kind == "http_400"


def test_a_bad_object_is_asked_for_again_once(server, log):
    server.faults(always={"kind": "bad_first"})
    client = client_for(server, log)
    found = answers(client, [ask("clinic", Triage)])
    assert found["clinic"].parsed.label == "clinic" and server.counts()["total"] == 2
    assert found["clinic"].usage == client.budget.spent.tokens  # both answers were paid for
    server.faults(always={"kind": "bad"})
    failure = answers(client, [ask("home", Triage)])["home"]
    assert failure.kind == "invalid_answer" and failure.text.startswith("Certainly!") and failure.attempts == 2
    assert [row["text"] for row in log.failures()] == [failure.text]


def test_an_answer_cut_at_its_limit_is_not_asked_for_again(server, log):
    server.faults(always={"kind": "length"})
    assert answers(client_for(server, log), [ask("home", Triage)])["home"].kind == "cut_off"
    assert answers(client_for(server, log), [ask("plain")])["plain"].finish_reason == "length"
    assert server.counts()["total"] == 2


def test_what_the_model_wrote_is_kept_when_the_budget_ends_before_the_repair(server, log):
    server.faults(always={"kind": "bad_first"})
    client = client_for(server, log, budget=Budget(max_calls=1))
    failure = answers(client, [ask("home", Triage)])["home"]
    assert failure.kind == "invalid_answer" and failure.text.startswith("Certainly!")


# --- decision models --------------------------------------------------------------------------------------------------

QUESTIONS = {
    "where": Question("choice", "Where to?", {"home": "self-care", "clinic": None, "hospital": None}),
    "how urgent": Question("score", "How urgent?", {"low": None, "middle": "soon", "high": None}),
    "fever": Question("yes_no", "Is there fever?"),
}


@pytest.mark.parametrize("dialect", ["systemone", "decisions"])
def test_decisions_have_a_probability_for_each_option(server, log, dialect):
    call = DecisionCall("a", "fever since Monday, clinic is closed", QUESTIONS)
    client = client_for(server, log, dialect=dialect)
    for cached in (False, True):
        answer = answers(client, [call])["a"]
        assert answer.cached == cached
        for name, question in QUESTIONS.items():
            assert list(answer.probabilities[name]) == (list(question.options) or ["yes", "no"])
            assert sum(answer.probabilities[name].values()) == pytest.approx(1)
        assert answer.probabilities["where"] == pytest.approx(probabilities(["home", "clinic", "hospital"], call.state))
    assert server.counts()["total"] == 1


def test_another_order_of_options_is_another_call(server, log):
    options = {"home": None, "clinic": None}
    orders = [options, dict(reversed(options.items()))]
    calls = [DecisionCall(str(i), "x", {"q": Question("choice", "?", order)}) for i, order in enumerate(orders)]
    found = answers(client_for(server, log, dialect="systemone"), calls)
    assert server.counts()["total"] == 2
    assert [list(found[i].probabilities["q"]) for i in "01"] == [["home", "clinic"], ["clinic", "home"]]


@pytest.mark.parametrize("fault", ["reorder", "twice"])
def test_decisions_are_matched_by_name(server, log, fault):
    server.faults(always={"kind": fault})
    call = DecisionCall("a", "fever", QUESTIONS)
    found = answers(client_for(server, log, dialect="decisions"), [call])["a"].probabilities
    assert found["where"] == pytest.approx(probabilities(["home", "clinic", "hospital"], "fever"))
    assert found["how urgent"] == pytest.approx(probabilities(["low", "middle", "high"], "fever"))


def test_a_question_that_is_declined_has_no_probabilities(server, log):
    server.faults(always={"kind": "refusal"})
    answer = answers(client_for(server, log, dialect="decisions"), [DecisionCall("a", "x", QUESTIONS)])["a"]
    assert answer.probabilities == dict.fromkeys(QUESTIONS)


def test_a_dialect_carries_its_own_calls_only(server, log):
    with pytest.raises(EndpointError, match="cannot carry this"):
        answers(client_for(server, log, dialect="systemone"), [ask("x")])
    with pytest.raises(EndpointError, match="cannot carry this"):
        answers(client_for(server, log), [DecisionCall("a", "x", QUESTIONS)])


# --- what must not be seen --------------------------------------------------------------------------------------------

KEY, NOTE = "sk-canary-31f0", "canarynote chest pain"


def test_no_key_and_no_note_in_logs_errors_and_reprs(server, log, monkeypatch, capfd):
    monkeypatch.setenv("TEST_KEY", KEY)
    records = io.StringIO()
    handler = logging.StreamHandler(records)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    root.addHandler(handler)
    said = []
    try:
        for fault in [
            None,
            *({"kind": "status", "status": status, "code": KEY} for status in (307, 400, 401, 422, 429, 500)),
            *({"kind": kind} for kind in ("cut", "garbage", "bad", "bad_first", "refusal", "length")),
            {"kind": "refuse", "fields": ["response_format"]},
            {"kind": "slow", "seconds": 1.0},
        ]:
            server.faults(always=fault)
            for dialect in ("chat", "systemone", "decisions"):
                client = client_for(server, log, api_key_variable="TEST_KEY", dialect=dialect)
                questions = {"q": Question("choice", NOTE, {"a": None, "b": None})}
                name = f"{fault and fault['kind']} {fault and fault.get('status')} {dialect}"
                calls: list[Call | DecisionCall] = [DecisionCall(name, f"{NOTE} {name}", questions)]
                if dialect == "chat":
                    messages = ask(f"{NOTE} {name}").messages
                    calls = [Call(name, messages), Call(name, messages, Triage)]
                try:
                    said += [repr(item) for pair in client.run(calls) for item in pair]
                except UserError as error:
                    said.append(str(error))
                said += [repr(client.endpoint), repr(client.budget.spent)]
    finally:
        root.removeHandler(handler)
    out, err = capfd.readouterr()
    details = "".join(row["detail"] for row in log.failures())
    assert NOTE in details, "the server did repeat the text, or this test shows nothing"
    assert "[key]" in details and KEY not in details
    for seen in (records.getvalue(), out, err, *said):
        assert KEY not in seen and "canarynote" not in seen
    assert len(said) > 100


def test_a_missing_library_is_named(tmp_path):
    code = (
        "import sys, pathlib; sys.modules['aiohttp'] = None\n"
        "from reason2decide.llm.client.client import Client\n"
        "from reason2decide.llm.client.endpoint import Endpoint\n"
        "from reason2decide.llm.client.log import CallLog\n"
        "log = CallLog(pathlib.Path(sys.argv[1]))\n"
        "list(Client(Endpoint('http://localhost/v1', 'm'), log).run([]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "l.sqlite")], capture_output=True, text=True)
    assert 'pip install "reason2decide[llm]"' in done.stderr

"""What servers in use do: refuse parts of the protocol, load, stream, loop, put errors and answers in odd places."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_server import LlmServer, chunks, plain_answer
from narrowing import present
from pydantic import BaseModel

from reason2decide.llm.client import concurrency
from reason2decide.llm.client.asking import without_words_of
from reason2decide.llm.client.calls import Call, DecisionCall, Failure, ModelAnswer, Question
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.dialects import read_reply
from reason2decide.llm.client.endpoint import Endpoint, EndpointError
from reason2decide.llm.client.log import CallLog
from reason2decide.llm.client.loops import LEAST_CHARACTERS, REPEATS, WINDOW, ends_in_a_loop
from reason2decide.llm.client.optional_parts import PARTS, leaving_out, reductions
from reason2decide.llm.client.streaming import StreamedCompletion
from reason2decide.llm.client.structured import form_in_words
from reason2decide.llm.prompt_files import Prompt
from reason2decide.llm.settings import Limits

CASES = Path(__file__).parents[2] / "shared" / "cases"
QUICK = Limits(concurrency=4, read_timeout=0.6, patience=5.0, attempts=2, backoff=0.01)
ENDPOINT = Endpoint("http://localhost/v1", "rules")
PROMPT = Prompt("p", "1", "You decide.", "Text:\n{text}")


class Triage(BaseModel):
    label: Literal["home", "clinic", "hospital"]
    rationale: str


def case(name: str) -> Any:
    path = CASES / name
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the project")
    return json.loads(path.read_text("utf-8"))


def ask(text: str, **settings: Any) -> Call:
    return Call(text, PROMPT.messages({"text": text}), Triage, {"temperature": 0, "max_tokens": 200, **settings})


def run(server: LlmServer, log: CallLog, calls: list[Call], limits: Limits = QUICK) -> list[ModelAnswer | Failure]:
    client = Client(Endpoint(server.base_url, "rules"), log, limits)
    found = {call.id: outcome for call, outcome in client.run(calls)}
    return [found[call.id] for call in calls]


def labels(outcomes: list[ModelAnswer | Failure]) -> list[str]:
    return [outcome.parsed.label if isinstance(outcome, ModelAnswer) else outcome.kind for outcome in outcomes]  # type: ignore[union-attr]


# --- parts that servers refuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 422, 500, 501])
@pytest.mark.parametrize("part", ["response_format", "logprobs", "stream_options", "stream"])
def test_a_refused_part_is_left_out_and_said_once(server, log, capsys, part, status):
    server.faults(always={"kind": "refuse", "fields": [part], "status": status})
    asked = [ask(f"clinic {i}", logprobs=True, top_logprobs=2) for i in range(6)]
    assert labels(run(server, log, asked)) == ["clinic"] * 6
    said = capsys.readouterr().err
    assert said.count("the server refuses") == 1 and f"the server refuses {part} (HTTP {status}" in said
    # All that was sent in vain: what was on its way, once more after a fault that may pass, and the parts before.
    assert server.counts()["total"] <= 6 + 2 * concurrency.START + len(PARTS)


def test_a_part_is_found_out_also_where_the_model_then_fails(server, log):
    """What a model writes wrongly says nothing of the request: it is neither paid for again nor asked with the part."""
    server.faults(always={"kind": "refuse", "fields": ["response_format"], "loops": True})
    assert labels(run(server, log, [ask("x"), ask("y")], Limits(concurrency=1, backoff=0.01))) == ["looped", "looped"]
    assert server.counts()["total"] == 3  # one refusal


def test_a_length_that_a_server_cannot_enforce_is_left_out_alone():
    body = {"messages": [], "response_format": {"schema": {"rationale": {"type": "string", "maxLength": 9}}}}
    assert leaving_out(body, ["maxLength"])["response_format"] == {"schema": {"rationale": {"type": "string"}}}
    assert list(reductions(body)) == [("maxLength",), ("response_format",), ("maxLength", "response_format")]
    assert list(reductions({"messages": [], "model": "m"})) == []


def test_the_form_is_always_in_the_words_of_the_prompt(server, log):
    """`transformers serve` takes a response format and ignores it."""
    server.faults(always={"kind": "refuse", "fields": ["response_format"]})
    assert labels(run(server, log, [ask("hospital")])) == ["hospital"]
    assert '"enum": ["home", "clinic", "hospital"]' in form_in_words(Triage)


def test_f12_a_server_that_fails_on_a_schema(server, log):
    told = case("F12_reply_schema_500.json")
    server.faults(always={"kind": "refuse", "fields": ["response_format"], "status": told["status"]})
    assert labels(run(server, log, [ask("home"), ask("clinic")])) == ["home", "clinic"]


# --- where answers and errors stand -----------------------------------------------------------------------------------


def reply(**changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": '{"label": "home", "rationale": "mild"}'}
    choice = {"index": 0, "message": {**message, **changes.pop("message", {})}, "finish_reason": "stop"}
    return {"object": "chat.completion", "model": "m", "choices": [{**choice, **changes}]}


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "text", "text": '{"label": "home", '}, {"type": "text", "text": '"rationale": "mild"}'}]},
        {"content": None, "reasoning_content": '{"label": "home", "rationale": "mild"}'},
        {"content": "", "reasoning": 'It is mild. {"label": "home", "rationale": "mild"}'},
        {"content": '<think>{"label": "hospital"}</think>{"label": "home", "rationale": "mild"}'},
    ],
)
def test_answers_in_odd_places(server, log, message):
    server.faults(always={"kind": "reply", "status": 200, "body": reply(message=message)})
    assert labels(run(server, log, [ask("x")])) == ["home"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "slot unavailable", "code": 500}}, "server_error"),
        ({"object": "error", "message": "slot unavailable"}, "server_error"),
        ({"choices": []}, "invalid_response"),
        (reply(message={"content": 7}), "invalid_response"),
        (reply(message={"content": None, "reasoning_content": "The label is home, since"}), "invalid_answer"),
    ],
)
def test_replies_without_an_answer_are_named(server, log, body, kind):
    server.faults(always={"kind": "reply", "status": 200, "body": body})
    [failure] = run(server, log, [ask("x")])
    assert isinstance(failure, Failure) and failure.kind == kind
    assert ("slot unavailable" in failure.reason) == (kind == "server_error")


def test_null_log_probabilities():
    tops = [{"token": " 4", "logprob": -0.1}, {"token": "x", "logprob": None}]
    given = reply(logprobs={"content": [{"token": " 4", "logprob": -0.1, "top_logprobs": tops}]})
    [token] = present(read_reply(ENDPOINT, ask("x"), given).logprobs)
    assert token.top == ((" 4", -0.1),)
    unknown = reply(logprobs={"content": [{"token": "a", "logprob": None, "top_logprobs": []}]})
    assert read_reply(ENDPOINT, ask("x"), unknown).logprobs is None


def test_f10_null_log_probabilities():
    read = read_reply(ENDPOINT, ask("x"), case("F10_reply_logprob_null.json"))
    [token] = present(read.logprobs)
    assert token.token == " 4" and token.top == ((" 4", -0.1),)


def test_f11_and_f04_answers_among_thoughts():
    assert json.loads(read_reply(ENDPOINT, ask("x"), case("F11_reply_reasoning_content.json")).text)["rationale"]
    cut = read_reply(ENDPOINT, ask("x"), case("F04_reply_thinking_cut.json"))
    assert cut.cut_off and cut.text.startswith("<think>")


# --- streams ----------------------------------------------------------------------------------------------------------

TOKENS = [{"token": "a", "logprob": -0.5, "top_logprobs": []}]
ANSWER = {**reply(logprobs={"content": TOKENS}), "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1), st.booleans())
def test_a_stream_says_what_a_whole_reply_says(text, carriage):
    whole = {**ANSWER, "choices": [{**ANSWER["choices"][0], "message": {"role": "assistant", "content": text}}]}
    streamed = StreamedCompletion()
    for event in chunks(whole):
        streamed.feed(f"data: {json.dumps(event)}" + "\r" * carriage)
        streamed.feed("")
        streamed.feed(": ping")
    streamed.feed("data: [DONE]")
    assert streamed.finished and read_reply(ENDPOINT, ask("x"), streamed.body()) == read_reply(
        ENDPOINT, ask("x"), whole
    )


@pytest.mark.parametrize("line", ["data: {", "data: 7", 'data: {"choices": [3]}', 'data: {"choices": 3}'])
def test_what_is_no_stream_is_refused_without_quoting_it(line):
    with pytest.raises(ValueError, match="not that of a chat completion"):
        StreamedCompletion().feed(line)


def test_an_error_in_a_stream_is_named():
    streamed = StreamedCompletion()
    streamed.feed('data: {"error": {"message": "out of memory"}}')
    assert streamed.finished and streamed.body()["error"]["message"] == "out of memory"


def test_a_timeout_is_the_silence_between_tokens(server, log):
    """An answer that takes three times as long is read to its end; a longer pause ends it."""
    server.faults(always={"kind": "pauses", "seconds": 0.3})
    started = time.monotonic()
    assert labels(run(server, log, [ask("clinic")])) == ["clinic"]
    assert time.monotonic() - started > 3 * QUICK.read_timeout
    server.faults(always={"kind": "pauses", "seconds": 1.0})
    assert labels(run(server, log, [ask("home")])) == ["timeout"]


def test_servers_that_do_not_stream(server, log):
    server.faults(always={"kind": "whole"})
    messages = [{"role": "user", "content": "a"}]
    [answer] = run(server, log, [Call("a", messages)])
    assert isinstance(answer, ModelAnswer) and answer.text == plain_answer(messages)


# --- waiting and giving up --------------------------------------------------------------------------------------------


def test_a_server_that_is_not_ready_is_waited_for(server, log, capsys):
    body = {"error": {"message": "warming up"}}
    server.faults(queue=[{"kind": "reply", "status": 503, "body": body}] * 9)
    assert labels(run(server, log, [ask("clinic"), ask("home")])) == ["clinic", "home"]
    assert capsys.readouterr().err.count("busy or loading (HTTP 503: warming up); waiting for up to 5 s") == 1


def test_f13_a_server_that_loads_its_model_is_waited_for(server, log, capsys):
    body = case("F13_reply_loading.json")["body"]
    server.faults(queue=[{"kind": "reply", "status": 503, "body": body}] * 9)
    assert labels(run(server, log, [ask("clinic"), ask("home")])) == ["clinic", "home"]
    said = capsys.readouterr().err
    assert said.count("the server is busy or loading (HTTP 503: Loading model); waiting for up to 5 s") == 1


def test_patience_ends(server, log):
    server.faults(always={"kind": "status", "status": 429})
    limits = Limits(concurrency=1, attempts=2, backoff=0.05, patience=0.4)
    started = time.monotonic()
    assert labels(run(server, log, [ask("clinic")], limits)) == ["http_429"]
    assert 0.4 < time.monotonic() - started < 5 and server.counts()["total"] > 4


def test_calls_that_all_fail_alike_end_the_run(server, log):
    server.faults(always={"kind": "reply", "status": 400, "body": {"error": {"message": "the window has 512 tokens"}}})
    with pytest.raises(EndpointError, match=r"the first 10 calls failed in the same way.*: the window has 512 tokens"):
        run(server, log, [ask(f"note {i}") for i in range(60)])
    assert server.counts()["total"] < 40


def test_f05_calls_that_all_fail_alike_end_the_run_with_the_servers_reason(server, log):
    told = case("F05_reply_http400.json")
    server.faults(always={"kind": "reply", **told})
    with pytest.raises(EndpointError, match="the first 10 calls failed in the same way: HTTP 400") as stopped:
        run(server, log, [ask(f"note {i}") for i in range(60)])
    assert "the server says: max_tokens is larger than the context" in str(stopped.value)
    assert server.counts()["total"] < 40


def test_what_a_server_says_is_shown_without_the_records_words():
    call = ask("Canary note: chest pain since Monday")
    reason = "invalid request: 'Canary note: chest pain since Monday' is longer than 4096 tokens"
    assert without_words_of(call, reason) == "invalid request: '... since ...' is longer than 4096 tokens"
    assert without_words_of(call, "the decide. model") == "the decide. model"  # of the prompt, not of the record
    assert len(without_words_of(call, "word " * 500)) <= 210
    # Quoted requests are escaped, once or twice: an escape may not hide the word that it touches.
    quoted = ask('45 yo M\nMüller has chest pain\n"Smith" reports fever')
    for told in (repr(quoted.messages), json.dumps(quoted.messages), json.dumps(json.dumps(quoted.messages))):
        shown = without_words_of(quoted, f"bad request: {told}")
        assert "ller" not in shown and "Smith" not in shown, shown
    asked = DecisionCall("r", "state", {"q": Question("yes_no", "canary reference")})
    assert without_words_of(asked, "bad: canary reference") == "bad: ..."


# --- loops, cut answers, and what is paid for again -------------------------------------------------------------------


def test_a_model_that_repeats_itself_is_stopped_and_not_asked_again(server, log):
    server.faults(always={"kind": "loop"})
    [failure] = run(server, log, [ask("x")])
    assert isinstance(failure, Failure) and failure.kind == "looped" and "--set temperature=0.8" in failure.message
    assert len(present(failure.text)) < 5000  # of 9,600 characters, read in chunks
    sent = server.counts()["total"]
    [again] = run(server, log, [ask("x", max_tokens=999)])
    assert isinstance(again, Failure) and again.cached and server.counts()["total"] == sent
    server.faults()
    found = run(server, log, [ask("x", temperature=0.8), ask("x", repeat_penalty=1.1)])
    assert all(isinstance(answer, ModelAnswer) for answer in found)


def test_cut_answers_are_asked_for_again_only_if_they_may_be_longer(server, log):
    server.faults(always={"kind": "length"})
    assert labels(run(server, log, [ask("x"), ask("y", temperature=1)])) == ["cut_off", "cut_off"]
    server.faults()
    assert labels(run(server, log, [ask("x"), ask("x", max_tokens=100)])) == ["cut_off", "cut_off"]
    assert labels(run(server, log, [ask("y", temperature=1)])) != ["cut_off"]  # it may draw another answer
    sent = server.counts()["total"]
    assert labels(run(server, log, [ask("x", max_tokens=400)])) != ["cut_off"] and server.counts()["total"] == sent + 1
    assert labels(run(server, log, [ask("x")])) != ["cut_off"] and server.counts()["total"] == sent + 1


def test_a_text_that_was_cut_gives_way_to_a_longer_one(server, log):
    plain = [Call("a", [{"role": "user", "content": "a"}], None, {"max_tokens": n}) for n in (5, 5, 50, 5)]
    server.faults(queue=[{"kind": "length"}, {"kind": "none"}])
    found = [run(server, log, [call])[0] for call in plain]
    assert [isinstance(own, ModelAnswer) and own.finish_reason for own in found] == ["length", "length", "stop", "stop"]
    assert server.counts()["total"] == 2


def brute_force(text: str) -> bool:
    """The definition: one passage, written often enough and long enough, at the end."""
    end = text[-WINDOW:]
    for length in range(1, len(end) // REPEATS + 1):
        repeats = 1
        while end[: len(end) - repeats * length].endswith(end[len(end) - length :]):
            repeats += 1
        least = max(REPEATS * length, LEAST_CHARACTERS)
        partial = 0  # of one more repetition
        while (n := len(end) - repeats * length - partial - 1) >= 0 and end[n] == end[n + length]:
            partial += 1
        if repeats * length + partial >= least:
            return True
    return False


@settings(max_examples=200, deadline=None)
@given(
    st.text("ab c", max_size=60),
    st.text("ab c.", min_size=1, max_size=40),
    st.integers(1, 40),
    st.text("x", max_size=2),
)
def test_loops_are_found_as_the_definition_says(before, passage, times, after):
    text = before + passage * times + after
    assert ends_in_a_loop(text) == brute_force(text)


def test_notes_are_no_loops():
    assert not ends_in_a_loop("The patient has a fever. " * 3)
    assert ends_in_a_loop("The patient has a fever. " * 4)
    assert not ends_in_a_loop("-" * 80) and ends_in_a_loop("\n" * 120)


# --- concurrency ------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(concurrency, "time", found)
    return found


def answers(gate: concurrency.Concurrency, clock: Clock, seconds: float, count: int) -> None:
    for _ in range(count):
        started, clock.now = clock.now, clock.now + seconds
        gate.answered(started, 1)


def test_calls_at_once_rise_while_an_answer_takes_as_long(clock):
    gate = concurrency.Concurrency(16)
    for expected in (2, 4, 8, 16, 16):
        assert gate.limit == expected
        answers(gate, clock, 1.0, max(expected, concurrency.LEAST_ANSWERS))


def test_calls_at_once_go_back_where_more_do_not_pay(clock, capsys):
    """A server with one worker: twice as many calls take twice as long each."""
    gate = concurrency.Concurrency(16)
    answers(gate, clock, 1.0, 6)
    assert gate.limit == 4
    answers(gate, clock, 2.0, 6)
    assert gate.limit == 2
    answers(gate, clock, 1.0, 100)
    assert gate.limit == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "calls at once: 2 -> 4 (answers come as fast as before)"
    assert said[1] == "calls at once: 4 -> 2 (with 4, an answer takes 2.0 times as long)"


def test_calls_at_once_fall_when_the_server_is_silent(clock):
    gate = concurrency.Concurrency(16)
    answers(gate, clock, 1.0, 12)
    assert gate.limit == 8
    started = clock.now
    clock.now += 60
    for _ in range(8):  # all that ran together were silent together: that counts once
        gate.troubled(started, "silent")
    assert gate.limit == 4
    answers(gate, clock, 1.0, 8)
    assert gate.limit == 4  # not at once
    answers(gate, clock, 1.0, 100)
    assert gate.limit > 4


def test_no_more_calls_run_than_may(server, log):
    async def most(limit: int, calls: int) -> int:
        gate, running, found = concurrency.Concurrency(limit), 0, 0

        async def one() -> None:
            nonlocal running, found
            async with gate:
                running += 1
                found = max(found, running)
                await asyncio.sleep(0)
                running -= 1

        await asyncio.gather(*(one() for _ in range(calls)))
        return found

    assert asyncio.run(most(16, 50)) == concurrency.START and asyncio.run(most(1, 5)) == 1


# --- fences -----------------------------------------------------------------------------------------------------------


def test_an_answer_that_repeats_the_code_of_a_fence_is_asked_for_again(server, log):
    call = ask("x")
    code = call.messages[1]["content"].split("<<<DATA ")[1].split("\n")[0]
    quoting = reply(message={"content": json.dumps({"label": "home", "rationale": f"DATA {code}"})})
    server.faults(queue=[{"kind": "reply", "status": 200, "body": quoting}])
    assert labels(run(server, log, [call])) != ["home"] or server.counts()["total"] == 2
    assert server.counts()["total"] == 2
    server.faults(always={"kind": "reply", "status": 200, "body": quoting})
    [failure] = run(server, log, [ask("x", seed=2)])
    assert isinstance(failure, Failure) and "the code of a fence" in failure.message

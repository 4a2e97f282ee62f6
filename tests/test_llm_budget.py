"""Where a model is served, what a run may cost and how fast it may be."""

from __future__ import annotations

import email.utils
import time

import pytest
from llm_asking import answers, ask, client_for, several
from narrowing import present

from reason2decide.errors import UserError
from reason2decide.llm.client.budget import Budget, BudgetError, BudgetReached, Prices, bound_tokens, likely_tokens
from reason2decide.llm.client.calls import Call, Usage
from reason2decide.llm.client.endpoint import Endpoint, EndpointError, RemoteEndpointError
from reason2decide.llm.client.limits import retry_after
from reason2decide.llm.settings import Limits

# --- the endpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "[::1]", "localhost:11434"])
def test_this_machine_needs_no_permission(host):
    assert Endpoint(f"http://{host}/v1/", "m").is_loopback


@pytest.mark.parametrize(
    "host", ["api.openai.com", "localhost.evil.org", "10.0.0.1", "[::2]", "127.0.0.1.nip.io", "128.0.0.1"]
)
def test_text_leaves_this_machine_only_with_permission(host):
    with pytest.raises(RemoteEndpointError, match="patient text must not leave the building"):
        Endpoint(f"http://{host}/v1", "m")
    assert not Endpoint(f"http://{host}/v1", "m", allow_remote=True).is_loopback


@pytest.mark.parametrize("url", ["http://user:sk-secret@localhost/v1", "http://localhost/v1?key=sk-secret"])
def test_a_key_in_the_url_is_refused_and_not_repeated(url):
    with pytest.raises(EndpointError, match="environment variable") as caught:
        Endpoint(url, "m")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "hint"), [("http://0.0.0.0:8000", "127.0.0.1:8000/v1"), ("http://[::]/x", "127.0.0.1/x")]
)
def test_where_a_server_listens_is_no_address_to_call(url, hint):
    with pytest.raises(EndpointError, match=f"not an address to call.*http://{hint}"):
        Endpoint(url, "m")


def test_requests_of_unknown_usage_cost_something_without_a_limit_too():
    call = ask("cough " * 100, max_tokens=1000)
    budget = Budget(Prices(2.0, 10.0))
    bound = budget.bound(call)
    assert bound > 1000 * 10 / 1e6
    assert budget.reserve(bound) is True
    budget.settle(bound, None)
    assert budget.spent.cost == bound


def test_addresses_and_dialects_that_cannot_be_used(monkeypatch):
    for broken in ("http://[::1/v1", "http://localhost:99999/v1"):
        with pytest.raises(EndpointError, match="not an http address"):
            Endpoint(broken, "m")
    with pytest.raises(EndpointError, match="not an http address"):
        Endpoint("localhost:11434", "m")
    with pytest.raises(EndpointError, match="expected one of chat, systemone, decisions"):
        Endpoint("http://localhost/v1", "m", dialect="responses")  # type: ignore[arg-type]
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(EndpointError, match="TEST_KEY"):
        Endpoint("http://localhost/v1", "m", api_key_variable="TEST_KEY").api_key()


# --- budget and limits ------------------------------------------------------------------------------------------------


def test_tokens_and_cost_by_hand():
    messages = [{"role": "system", "content": "x" * 40}, {"role": "user", "content": "é" * 40}]
    call = Call("a", messages, settings={"max_tokens": 7})
    assert likely_tokens(call) == Usage(80 // 4 + 2 * 16, 7)
    assert bound_tokens(call) == Usage(40 + 80 + 2 * 16, 7)
    assert bound_tokens(ask("no limit")) is None
    assert Prices(2.0, 10.0).cost(Usage(1_000_000, 500_000)) == 7.0


def test_an_estimate_knows_what_is_in_the_log(server, log):
    client = client_for(server, log, budget=Budget(Prices(1.0, 2.0)))
    calls = [ask("x" * 400, max_tokens=50), ask("y" * 400, max_tokens=50), ask("y" * 400, max_tokens=50)]
    before = client.estimate(calls)
    # Two distinct calls of 100 + 16 tokens in and 50 out.
    assert (before.calls, before.cached, before.tokens) == (2, 1, Usage(232, 100))
    assert before.cost == pytest.approx((232 * 1 + 100 * 2) / 1e6)
    answers(client, calls[:1])
    assert (client.estimate(calls).calls, client.estimate(calls).cached) == (1, 2)


def test_highest_cost_needs_prices_and_a_limit_for_answers(server, log):
    with pytest.raises(BudgetError, match="needs prices"):
        Budget(max_cost=1.0)
    client = client_for(server, log, budget=Budget(Prices(1, 1), max_cost=1.0))
    with pytest.raises(BudgetError, match="max_tokens"):
        answers(client, [ask("unlimited")])
    assert server.counts()["total"] == 0


def test_calls_end_before_max_calls_is_passed(server, log):
    client = client_for(server, log, budget=Budget(max_calls=5))
    got = []
    with pytest.raises(BudgetReached, match=r"with 7 calls left \(5 of 5 requests\)"):
        got.extend(client.run(several(12)))
    assert len(got) == 5 == server.counts()["total"]
    # Going on: what was answered is free, also when it comes after the end of the budget.
    again = client_for(server, log, budget=Budget(max_calls=1))
    got = []
    with pytest.raises(BudgetReached, match="with 6 calls left"):
        got.extend(again.run([*several(12)[::-1]]))
    assert sum(answer.cached for _, answer in got) == 5 and len(got) == 6
    assert again.budget.spent.cached == 5 and server.counts()["total"] == 6


def test_max_cost_is_never_passed_and_used_to_its_end(server, log):
    calls = [ask(f"note {i:04d} " + "x" * 391, max_tokens=100) for i in range(50)]
    # The server counts 100 tokens in and 4 out for each; the bound of one is 400 + 16 in and 100 out.
    budget = Budget(Prices(1_000_000.0, 1_000_000.0), max_cost=1_500.0)
    client = client_for(server, log, budget=budget)
    got = []
    with pytest.raises(BudgetReached, match=r"calls left \(cost .* of 1500\)"):
        got.extend(client.run(calls))
    # Each costs 104. After n of them the next is sent if 104 n + 516 is at most 1500: up to n = 9, so ten are sent.
    assert len(got) == 10 == server.counts()["total"]
    assert budget.spent.cost == pytest.approx(1040) and budget.spent.tokens == Usage(1000, 40)


def test_requests_are_spread_over_the_minute(server, log):
    client = client_for(server, log, Limits(concurrency=8, requests_per_minute=600))
    started = time.monotonic()
    assert len(answers(client, several(6))) == 6
    assert time.monotonic() - started >= 0.5  # five steps of 60/600 s
    client = client_for(server, log, Limits(concurrency=8, tokens_per_minute=60_000))
    started = time.monotonic()
    answers(client, [ask("x" * 336 + str(i), max_tokens=100) for i in range(4)])
    assert time.monotonic() - started >= 0.6  # three steps of 84 + 16 + 100 tokens at 1000 a second


def test_limits_must_be_positive():
    with pytest.raises(UserError, match="concurrency is 0"):
        Limits(concurrency=0)


def test_retry_after_in_seconds_and_as_a_date():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "-3"}) == 0.0
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 98 < present(retry_after({"retry-after": later})) <= 100
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0

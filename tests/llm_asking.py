"""Calls, and clients that ask them and give up soon, for the tests of the client."""

from __future__ import annotations

import time

from reason2decide.llm.client.calls import Call
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.settings import Limits

QUICK = Limits(concurrency=4, read_timeout=0.6, deadline=4.0, patience=0.05, attempts=3, backoff=0.01)
BOUND = 25.0  # seconds that no fault may exceed, far above what they take


def ask(content, schema=None, **settings):
    return Call(content, [{"role": "user", "content": content}], schema, settings)


def several(count=6):
    return [ask(f"note {i}: fever, see the clinic") for i in range(count)]


def answers(client, calls):
    """Outcomes by id, in no more than the bound; every call has exactly one."""
    started = time.monotonic()
    pairs = [(call.id, outcome) for call, outcome in client.run(calls)]
    assert time.monotonic() - started < BOUND
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def client_for(server, log, limits=QUICK, budget=None, **endpoint):
    return Client(Endpoint(server.base_url, "rules", **endpoint), log, limits, budget)

"""What a child process does in the tests of the language model client: a run that may be killed at any point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reason2decide.llm.client.calls import Call, ModelAnswer
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.log import CallLog
from reason2decide.llm.settings import Limits

CONCURRENCY = 4


def calls(count: int) -> Iterator[Call]:
    for i in range(count):
        yield Call(str(i), [{"role": "user", "content": f"note number {i}"}], settings={"max_tokens": 20})


def answer_all(base_url: str, path: Path, count: int, concurrency: int = CONCURRENCY) -> None:
    """Answer `count` calls; the exit code is 0 if each was answered once."""
    with CallLog(path) as log:
        client = Client(Endpoint(base_url, "rules"), log, Limits(concurrency=concurrency))
        answered = [call.id for call, outcome in client.run(calls(count)) if isinstance(outcome, ModelAnswer)]
    raise SystemExit(sorted(answered, key=int) != [str(i) for i in range(count)])

"""What the language model client adds to the time that a server takes: 1,000 calls, 64 at once, answers after 50 ms.

python benchmarks/llm_client.py

Prints the time of whole runs against the ideal one (1000 / 64 x 50 ms), the processor time of client and server, peak
memory before and after 10,000 more calls, and what a call costs through each layer of OpenAI's library, our log apart.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from llm_server import LlmServer, running

from reason2decide.llm.client.calls import Call, ModelAnswer
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.log import CallLog
from reason2decide.llm.settings import Limits

CALLS, CONCURRENCY, DELAY, RUNS = 1000, 64, 0.05, 7
IDEAL = CALLS / CONCURRENCY * DELAY
NOTE = "word " * 200


def calls(run: int, count: int) -> Iterator[Call]:
    for i in range(count):
        yield Call(str(i), [{"role": "user", "content": f"run {run}, note {i}: {NOTE}"}], settings={"max_tokens": 50})


def processor_seconds(process: int) -> float:
    """User and system time of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spread(values: list[float], unit: str) -> str:
    return f"median {statistics.median(values):.3f}{unit}, {min(values):.3f} to {max(values):.3f}"


def whole_runs(server: LlmServer, log: CallLog) -> None:
    wall, ours, theirs = [], [], []
    for run in range(RUNS + 1):
        client = Client(Endpoint(server.base_url, "rules"), log, Limits(concurrency=CONCURRENCY))
        started, before, server_before = time.perf_counter(), time.process_time(), processor_seconds(server.process.pid)
        answered = sum(isinstance(outcome, ModelAnswer) for _, outcome in client.run(calls(run, CALLS)))
        wall.append(time.perf_counter() - started)
        ours.append((time.process_time() - before) / CALLS * 1000)
        theirs.append((processor_seconds(server.process.pid) - server_before) / CALLS * 1000)
        assert answered == CALLS
    # The first run imports the client library.
    print(
        f"{CALLS} calls, {CONCURRENCY} at once, answers after {DELAY * 1000:.0f} ms; ideal {IDEAL:.3f} s; {RUNS} runs"
    )
    print(f"time           {spread(wall[1:], ' s')}: {statistics.median(wall[1:]) / IDEAL:.2f} x ideal")
    print(f"client         {spread(ours[1:], ' ms')} of processor time a call")
    print(f"server         {spread(theirs[1:], ' ms')} of processor time a call")
    started = time.perf_counter()
    client = Client(Endpoint(server.base_url, "rules"), log, Limits(concurrency=CONCURRENCY))
    assert all(outcome.cached for _, outcome in client.run(calls(0, CALLS)) if isinstance(outcome, ModelAnswer))
    print(f"again, logged  {time.perf_counter() - started:.3f} s")


def memory(server: LlmServer, log: CallLog) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client = Client(Endpoint(server.base_url, "rules"), log, Limits(concurrency=CONCURRENCY))
    for _call, _outcome in client.run(calls(RUNS + 1, 10 * CALLS)):
        pass
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"memory         peak {before / 1024:.1f} MiB before {10 * CALLS} more calls, {after / 1024:.1f} MiB after")


Send = Callable[[bytes], Awaitable[Any]]


def layers(base_url: str) -> Iterator[tuple[str, httpx2.AsyncClient, Send]]:
    """Ways to send a call through OpenAI's library, from its typed interface down to its HTTP client."""
    for name, make in (("httpx2", openai.DefaultAsyncHttpxClient), ("aiohttp", openai.DefaultAioHttpClient)):
        http = make(limits=httpx2.Limits(max_connections=CONCURRENCY), trust_env=False)
        client = openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, http_client=http)

        async def typed(body: bytes, client: openai.AsyncOpenAI = client) -> Any:
            return await client.chat.completions.create(**json.loads(body))

        async def raw(body: bytes, client: openai.AsyncOpenAI = client) -> Any:
            return json.loads((await client.post("/chat/completions", cast_to=httpx2.Response, content=body)).content)

        async def bare(body: bytes, http: httpx2.AsyncClient = http) -> Any:
            return json.loads((await http.post(f"{base_url}/chat/completions", content=body)).content)

        yield f"typed objects, {name}", http, typed
        yield f"raw reply, {name}", http, raw
        yield f"HTTP client, {name}", http, bare


async def layer_costs(base_url: str) -> None:
    free = asyncio.Semaphore(CONCURRENCY)
    bodies = [json.dumps({"model": "rules", "messages": call.messages}).encode() for call in calls(-1, CALLS)]

    async def one(send: Send, body: bytes) -> None:
        async with free:
            await send(body)

    for name, http, send in layers(base_url):
        costs = []
        for _ in range(RUNS):
            before = time.process_time()
            await asyncio.gather(*(one(send, body) for body in bodies))
            costs.append((time.process_time() - before) / CALLS * 1000)
        print(f"{name:24} {spread(costs[1:], ' ms')} of processor time a call")
        if name.startswith("HTTP"):
            await http.aclose()  # the last of its three layers


def main() -> None:
    with running(DELAY) as server, tempfile.TemporaryDirectory() as folder, CallLog(Path(folder) / "calls") as log:
        whole_runs(server, log)
        memory(server, log)
        asyncio.run(layer_costs(server.base_url))


if __name__ == "__main__":
    main()

"""What the language model client adds to the time that a server takes: 1,000 calls, 64 at once, answers after 50 ms.

python benchmarks/llm_client.py [--rationalize 1000 10000 100000]

Prints the time of whole runs against the ideal one (1000 / 64 x 50 ms), the processor time of client and server, peak
memory before and after 10,000 more calls, and what a call costs through OpenAI's library and through aiohttp alone.
With --rationalize instead: time and peak memory of `r2d rationalize` on datasets of these sizes, asked at first and
written again from the log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import openai

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from llm_server import LlmServer, running
from peak import Peak

from reason2decide.data.dataset_folder import write_dataset
from reason2decide.data.sources.synthetic_calls import synthesize_calls
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


def rationalize(server: LlmServer, size: int) -> None:
    """Print the time and the peak memory of `r2d rationalize` for `size` records, twice: with calls, and without."""
    with tempfile.TemporaryDirectory() as name:
        calls = synthesize_calls(Path(name) / "calls", train=1000, validation=10, test=10)
        records = list(calls.split("train"))
        own = (
            replace(records[i % 1000], id=f"r{i}", text=f"Call {i}. {records[i % 1000].text}", group=None)
            for i in range(size)
        )
        write_dataset(Path(name) / "data", calls.info, {"train": own})
        for run in ("asked", "from the log"):
            command = [sys.executable, "-m", "reason2decide", "rationalize", f"{name}/data", "--source", "teacher"]
            command += ["--base-url", server.base_url, "--model", "rules", "--out", f"{name}/out", "--force"]
            started = time.perf_counter()
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            with Peak(process.pid) as peak:
                assert process.wait() == 0
            seconds = time.perf_counter() - started
            print(
                f"{size} records, {run}: {seconds:.0f} s, {size / seconds:.0f} a second, peak {peak.megabytes} MB",
                flush=True,
            )


async def layer_costs(base_url: str) -> None:
    """Processor time of a call, not streamed, without log, budget or retries: through a library and without one."""
    free = asyncio.Semaphore(CONCURRENCY)
    bodies = [{"model": "rules", "messages": list(call.messages)} for call in calls(-1, CALLS)]
    connector = aiohttp.TCPConnector(limit=CONCURRENCY, force_close=True)
    async with (
        openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as library,
        aiohttp.ClientSession(connector=connector) as session,
    ):

        async def typed(body: dict[str, Any]) -> None:
            async with free:
                await library.chat.completions.create(**body)

        async def plain(body: dict[str, Any]) -> None:
            async with free, session.post(f"{base_url}/chat/completions", data=json.dumps(body)) as response:
                json.loads(await response.read())

        for name, send in (("OpenAI's library", typed), ("aiohttp", plain)):
            costs = []
            for _ in range(RUNS):
                before = time.process_time()
                await asyncio.gather(*map(send, bodies))
                costs.append((time.process_time() - before) / CALLS * 1000)
            print(f"{name:24} {spread(costs[1:], ' ms')} of processor time a call")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rationalize", type=int, nargs="+", metavar="SIZE")
    sizes = parser.parse_args().rationalize
    if sizes:
        with running() as server:
            for size in sizes:
                rationalize(server, size)
        return
    with running(DELAY) as server, tempfile.TemporaryDirectory() as folder, CallLog(Path(folder) / "calls") as log:
        whole_runs(server, log)
        memory(server, log)
        asyncio.run(layer_costs(server.base_url))


if __name__ == "__main__":
    main()

"""What the server costs, and what it does under ten times the load it can bear.

python benchmarks/serving.py [--model MODEL | --shape small --weights float32] [--seconds 60] [--rounds 3]

Three parts, all over loopback with the server in a process of its own:
- throughput of decisions, and of decisions with their rationales, each in turn with the engine's own loop over the same
  texts in this process's child;
- an open stream of requests at ten times that rate: statuses, latency of what was accepted, memory of the server;
- SIGTERM in the midst of such a stream: what had been accepted and was not answered.

Without --model it makes one of T5's shape with random weights, which writes rationales of the full 64 tokens, and
exports it; its texts have about 250 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from serving import Server, http, running
from toy import record, run, write_toy

TEXTS, OVERLOAD = 256, 10
CONNECTIONS = 16  # requests under way, and texts in a batch of the engine's own loop
KINDS = ("decisions", "decisions with rationales")
FIRST_SECONDS, ROUND_SECONDS = 8.0, 15.0  # of each round the first are not counted: the server learns what calls cost
Result = TypeVar("Result")
SHAPES = {  # Raffel et al. 2020
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
}


def texts() -> list[str]:
    draw = random.Random(0)
    return [". ".join(record(draw.randrange(10_000)).text for _ in range(draw.randint(22, 34))) for _ in range(TEXTS)]


def make_model(folder: Path, shape: str, weights: str) -> Path:
    """A model of T5's shape, trained for one step and exported."""
    from transformers import T5Config, T5ForConditionalGeneration

    from reason2decide.export.bundle import export_bundle
    from reason2decide.training.tiny import train_tokenizer

    tokenizer = train_tokenizer(texts())
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    config = T5Config(vocab_size=32_128, decoder_start_token_id=tokenizer.pad_token_id, **ids, **SHAPES[shape])
    T5ForConditionalGeneration(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lengths = {"input": 512, "rationale": 64, "label": 32}
    bundle = run(write_toy(folder / "data"), folder / "run", base=str(folder / "base"), steps=1, lengths=lengths)
    export_bundle(bundle, folder / "model", weights)
    return folder / "model"


def apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a process of its own, so that no thread and no memory of it stays."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def engine_rate(model_path: Path, what: str) -> float:
    """Texts per second of the engine's own loop, in batches."""
    from reason2decide.serve.served_model import ServedModel

    model, given = ServedModel("model", model_path), texts()

    def work(batch: list[str]) -> None:
        decisions = model.decide(batch)
        if what != "decisions":
            model.explain(batch, [decision.label for decision in decisions])

    work(given[:CONNECTIONS])
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < ROUND_SECONDS:
        work([given[(done + i) % TEXTS] for i in range(CONNECTIONS)])
        done += CONNECTIONS
    return done / elapsed


@dataclass
class Seen:
    """What became of requests: statuses, when each accepted one was sent and how long it took."""

    statuses: Counter[str] = field(default_factory=Counter)
    signalled: float = float("inf")  # when the server was told to end
    accepted: list[tuple[float, float]] = field(default_factory=list)


class Connection:
    """One connection, kept open; a request at a time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.retry_after = 0.0  # seconds, as the last answer says

    async def ask(self, request: bytes, seen: Seen) -> bool:
        """Ask; false when the server closes the connection or refuses it."""
        sent = time.perf_counter()
        try:
            if self._reader is None or self._writer is None or self._reader.at_eof():
                self._reader, self._writer = await asyncio.open_connection(self._server.host, self._server.port)
        except OSError:
            seen.statuses["not connected"] += 1
            return False
        try:
            self._writer.write(request)
            head = await self._reader.readuntil(b"\r\n\r\n")
            await self._reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
        except (asyncio.IncompleteReadError, ConnectionError):
            # What came after the signal was not let in: it may meet a connection that is being closed.
            seen.statuses["lost" if sent < seen.signalled else "closed on, sent after the signal"] += 1
            return False
        status = head[9:12].decode()
        self.retry_after = float((re.findall(rb"retry-after: (\d+)", head) or [0])[0])
        seen.statuses[status] += 1
        if status == "200":
            seen.accepted.append((sent, time.perf_counter() - sent))
        if b"connection: close" in head:
            self.close()
            return False
        return True

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def requests(what: str) -> list[bytes]:
    choice = {"type": "choice", "criteria": {"home care": None, "see a doctor": None, "call an ambulance": None}}
    include = [] if what == "decisions" else ["rationale"]
    bodies = [{"model": "model", "state": text, "questions": {"q": choice}, "include": include} for text in texts()]
    return [http("/v1/systemone", json.dumps(body).encode()).replace(b"Connection: close\r\n", b"") for body in bodies]


async def closed_loop(server: Server, what: str, seconds: float) -> Seen:
    """As many requests as are answered, over a fixed number of connections."""
    seen, given, end = Seen(), requests(what), time.perf_counter() + seconds

    async def one(number: int) -> None:
        connection, index = Connection(server), number
        while time.perf_counter() < end and await connection.ask(given[index % TEXTS], seen):
            index += CONNECTIONS
            await asyncio.sleep(connection.retry_after)
        connection.close()

    await asyncio.gather(*map(one, range(CONNECTIONS)))
    return seen


async def open_stream(server: Server, rate: float, seconds: float, *, kill_after: float | None = None) -> Seen:
    """Requests at a fixed rate, whatever becomes of them; `kill_after` so long, the server gets SIGTERM."""
    seen, given, idle, asking = Seen(), requests("decisions"), [], set()
    started = time.perf_counter()

    async def one(request: bytes) -> None:
        connection = idle.pop() if idle else Connection(server)
        if await connection.ask(request, seen):
            idle.append(connection)

    sent = 0
    while (elapsed := time.perf_counter() - started) < seconds:
        if kill_after is not None and elapsed > kill_after:
            seen.signalled = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            kill_after = None
        while sent < elapsed * rate and "not connected" not in seen.statuses:
            task = asyncio.create_task(one(given[sent % TEXTS]))
            asking.add(task)
            task.add_done_callback(asking.discard)
            sent += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*asking)
    for connection in idle:
        connection.close()
    return seen


def seconds_of(seen: Seen) -> float:
    """From the first request to the last answer."""
    return max(sent + took for sent, took in seen.accepted) - min(sent for sent, _ in seen.accepted)


def memory(process: int) -> float:
    """MiB that a process holds in memory (Linux)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def quantiles(seen: Seen, begin: float, end: float) -> str:
    times = sorted(seconds for sent, seconds in seen.accepted if begin <= sent < end)
    if len(times) < 2:
        return "too few"
    return f"median {statistics.median(times):.2f} s, p99 {times[int(0.99 * (len(times) - 1))]:.2f} s ({len(times)})"


async def overload(server: Server, rate: float, seconds: float) -> None:
    held = [memory(server.process.pid)]
    started, processor = time.perf_counter(), time.process_time()

    async def sample() -> None:
        while True:
            await asyncio.sleep(0.5)
            held.append(memory(server.process.pid))

    sampling = asyncio.create_task(sample())
    seen = await open_stream(server, OVERLOAD * rate, seconds)
    sampling.cancel()
    half = started + seconds / 2
    print(f"\n{OVERLOAD} x the rate ({OVERLOAD * rate:.0f}/s) for {seconds:.0f} s: {dict(seen.statuses)}")
    print(f"  answered {seen.statuses['200'] / seconds:.1f}/s, {seen.statuses['200'] / seconds / rate:.0%} of the rate")
    print(f"  accepted, first half:  {quantiles(seen, 0, half)}")
    print(f"  accepted, second half: {quantiles(seen, half, float('inf'))}")
    quarters = [max(part) for part in np.array_split(held[1:], 4)]
    most = ", ".join(f"{part:.0f}" for part in quarters)
    print(f"  MiB of the server: {held[0]:.0f} before; at most, by quarters: {most}")
    client = (time.process_time() - processor) / seconds
    print(f"  the client took {client:.0%} of a core")


def throughput(model: Path, what: str, rounds: int) -> float:
    """Requests per second that the server answers, beside the engine's own loop."""
    engine, served = [], []
    for _ in range(rounds):
        engine.append(apart(engine_rate, model, what))
        with running(f"model={model}", threads=os.cpu_count()) as server:
            asyncio.run(closed_loop(server, what, FIRST_SECONDS))
            seen = asyncio.run(closed_loop(server, what, ROUND_SECONDS))
        assert set(seen.statuses) <= {"200", "503"}, seen.statuses
        served.append(len(seen.accepted) / seconds_of(seen))
        print(
            f"{what}: engine {engine[-1]:.1f}/s, server {served[-1]:.1f}/s: {served[-1] / engine[-1]:.1%}", flush=True
        )
    ratios = [own / alone for own, alone in zip(served, engine, strict=True)]
    print(f"{what}: server / engine: median {statistics.median(ratios):.1%}, {min(ratios):.1%} to {max(ratios):.1%}")
    return statistics.median(served)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or apart(make_model, Path(folder), options.shape, options.weights)
        rate, _ = [throughput(model, what, options.rounds) for what in KINDS]
        with running(f"model={model}", threads=os.cpu_count()) as server:
            asyncio.run(overload(server, rate, options.seconds))
            seen = asyncio.run(open_stream(server, OVERLOAD * rate, 12.0, kill_after=4.0))
            print(f"\nSIGTERM after 4 s of the same: {dict(seen.statuses)}; exit code {server.process.wait(60)}")


if __name__ == "__main__":
    main()

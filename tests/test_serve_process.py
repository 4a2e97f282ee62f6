"""`r2d serve` as a process: what is malformed, huge, slow or too much; its address; its end."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import TEXT, Server, http, read_all, running, systemone, triage_bundle

from reason2decide.cli.serve import named_models
from reason2decide.errors import ConfigError
from reason2decide.serve.running import AddressError, OncePerSecond, bind
from reason2decide.serve.settings import ServeSettings

ASKED = json.dumps(systemone()).encode()
EXPLAINED = json.dumps(systemone(include=["rationale"])).encode()


@pytest.fixture(scope="module")
def bundle() -> Path:
    return triage_bundle()


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with running(f"triage={bundle}") as server:
        yield server
        assert server.ask(http("/v1/systemone", ASKED)).startswith(b"HTTP/1.1 200")  # whatever the tests did to it
    assert "Traceback" not in server.output


def status(reply: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", reply)
    assert found, reply[:200]
    return int(found[1])


REQUESTS = {
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 60, {400}),
    "no http": (b"hello\r\n\r\n", {400}),
    "version": (b"GET / HTTP/9.9\r\n\r\n", {400}),
    "length": (b"POST /v1/systemone HTTP/1.1\r\nContent-Length: x\r\n\r\n", {400}),
    "two lengths": (
        b"POST /v1/systemone HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        {400},
    ),
    "chunk": (b"POST /v1/systemone HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", {400}),
    "bytes in path": (b"GET /\xff\xfe HTTP/1.1\r\nConnection: close\r\n\r\n", {400, 404}),
    "nul in path": (b"GET /%ff%00 HTTP/1.1\r\nConnection: close\r\n\r\n", {404}),
    "announced": (
        b"POST /v1/systemone HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n{",
        {413},
    ),
    "huge": (http("/v1/systemone", b'{"a": "' + b"x" * 2**21 + b'"}'), {413}),
    "deep lists": (http("/v1/systemone", b"[" * 2**19), {422}),
    "deep objects": (http("/v1/systemone", b'{"a":' * 2**17), {422}),
    "open string": (http("/v1/systemone", b'"' + b'\\"' * 2**18), {422}),
    "utf-16": (http("/v1/systemone", json.dumps(systemone()).encode("utf-16")), {422}),
    "latin-1": (http("/v1/systemone", '{"model": "café"}'.encode("latin-1")), {422}),
    "text/plain": (http("/v1/systemone", ASKED, "Content-Type: text/plain"), {415}),
    "charset": (http("/v1/systemone", ASKED, "Content-Type: application/json; charset=utf-8"), {200}),
    "method": (http("/v1/explain", b"", method="DELETE"), {405}),
    "upgrade": (http("/v1/systemone", ASKED, "Upgrade: websocket", "Connection: Upgrade"), {422}),
    "expect": (http("/v1/systemone", ASKED, "Expect: 100-continue"), {100}),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_malformed_and_huge_requests(server: Server, kind: str) -> None:
    data, expected = REQUESTS[kind]
    assert status(server.ask(data)) in expected


def test_an_endless_head_is_cut(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for _ in range(10_000):
                connection.sendall(b"X-A: " + b"a" * 10_000 + b"\r\n")
        assert status(read_all(connection) or b"HTTP/1.1 431 ") == 431


def test_slow_requests_are_ended_and_hold_up_nobody(server: Server) -> None:
    begin = http("/v1/systemone", ASKED)

    def slowly(first: bytes, drip: bytes) -> bytes:
        with server.connect() as connection:
            connection.sendall(first)
            for _ in range(30):  # seconds
                try:
                    connection.sendall(drip)
                    connection.settimeout(1)
                    received = connection.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    return b"closed"
                return received or b"closed"
        raise AssertionError("the server still waits")

    with ThreadPoolExecutor(4) as pool:
        silent = pool.submit(slowly, b"", b"")
        head = pool.submit(slowly, b"POST /v1/systemone HTTP/1.1\r\n", b"X-A: b\r\n")
        body = pool.submit(slowly, begin[:-20], b" ")
        blank = pool.submit(slowly, b"", b"\r\n")
        while not all(future.done() for future in (silent, head, body, blank)):
            assert status(server.ask(begin)) == 200
            time.sleep(0.5)
    assert silent.result() == head.result() == blank.result() == b"closed"
    assert status(body.result()) == 408


def test_more_connections_than_allowed(server: Server) -> None:
    connections = [server.connect() for _ in range(520)]
    try:
        assert status(read_all(connections[-1])) == 503
        connections[0].sendall(http("/v1/systemone", ASKED))
        assert status(read_all(connections[0])) == 200
    finally:
        for connection in connections:
            connection.close()


def test_a_client_that_goes_away_costs_nothing(server: Server) -> None:
    for _ in range(50):
        with server.connect() as connection:
            connection.sendall(http("/v1/systemone", EXPLAINED))
    with server.connect() as connection:
        connection.sendall(http("/v1/explain", json.dumps({"model": "triage", "text": TEXT}).encode()))
        connection.recv(10)
    deadline = time.monotonic() + 30
    while b"r2d_queue_depth 0.0" not in server.ask(http("/metrics", b"", method="GET")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    keep = http("/v1/systemone", ASKED).replace(b"Connection: close\r\n", b"")
    reply = server.ask(keep + keep + http("/v1/systemone", ASKED))
    assert [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3})", reply)] == [200, 200, 200]


# ---- Address


def test_what_is_set_reaches_the_model(bundle: Path) -> None:
    """No error is allowed, so everything is deferred; sets may miss half; long notes are refused."""
    asked = systemone(include=["deferral", "prediction_set"])
    sets = {}
    for options in (("--error-rate", "0"), ("--error-rate", "0.99", "--miscoverage", "0.9", "--long-texts", "refuse")):
        with running(f"triage={bundle}", *options) as server:
            request = urllib.request.Request(
                f"{server.url}/v1/systemone", json.dumps(asked).encode(), {"content-type": "application/json"}
            )
            (answer,) = json.load(urllib.request.urlopen(request))["answers"].values()
            assert answer["deferred"] is (options == ("--error-rate", "0"))
            sets[options] = len(answer["prediction_set"])
            long = json.dumps(systemone(state="no fever. " * 400)).encode()
            assert status(server.ask(http("/v1/systemone", long))) == (413 if "refuse" in options else 200)
    small, large = sorted(sets.values())
    assert small < large


def test_a_port_in_use(server: Server, bundle: Path) -> None:
    with pytest.raises(AddressError, match="in use"):
        bind(ServeSettings(port=server.port))
    command = [sys.executable, "-m", "reason2decide", "serve", str(bundle), "--port", str(server.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "is in use by another program" in ended.stderr and "Traceback" not in ended.stderr


def test_an_address_of_another_machine() -> None:
    with pytest.raises(AddressError, match="cannot listen"):
        bind(ServeSettings(host="192.0.2.1", port=0))  # an address of documentation, RFC 5737


def test_other_machines_need_authentication(bundle: Path) -> None:
    command = [sys.executable, "-m", "reason2decide", "serve", str(bundle), "--host", "0.0.0.0", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "no authentication is configured" in ended.stderr


def test_names_of_models(tmp_path: Path) -> None:
    bundle = tmp_path / "run" / "bundle"
    assert named_models([str(bundle), f"b={bundle}"], []) == [("run", bundle), ("b", bundle)]
    assert named_models([str(bundle), str(tmp_path)], ["a"]) == [("a", bundle), (tmp_path.name, tmp_path)]
    (tmp_path / "x=y").mkdir()
    assert named_models([str(tmp_path / "x=y")], []) == [("x=y", tmp_path / "x=y")]
    for models, names in ([str(bundle)] * 2, []), ([f"a={bundle}"] * 2, []), ([str(bundle)], ["a", "b"]), (["=x"], []):
        with pytest.raises(ConfigError):
            named_models(models, names)


# ---- The end


async def ask_until_the_end(server: Server, body: bytes, seen: Counter[str]) -> None:
    """Ask over one connection until an answer says that it is the last."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    request = http("/v1/systemone", body).replace(b"Connection: close\r\n", b"")
    try:
        while True:
            writer.write(request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.findall(rb"content-length: (\d+)", head)[0])
                await reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                seen["lost"] += 1
                return
            seen[str(status(head))] += 1
            if b"connection: close" in head:
                return
    finally:
        writer.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_no_request(bundle: Path, number: signal.Signals) -> None:
    seen: Counter[str] = Counter()

    async def load(server: Server) -> None:
        asking = [ask_until_the_end(server, ASKED if i % 4 else EXPLAINED, seen) for i in range(24)]
        tasks = [asyncio.create_task(own) for own in asking]
        while seen["200"] < 50:
            await asyncio.sleep(0.01)
        server.process.send_signal(number)
        await asyncio.gather(*tasks)

    with running(f"triage={bundle}") as server:
        asyncio.run(asyncio.wait_for(load(server), 60))
        assert server.process.wait(60) == 0
    assert seen["lost"] == 0 and set(seen) <= {"200", "503", "lost"}
    assert "Traceback" not in server.output
    with pytest.raises(OSError), socket.create_connection((server.host, server.port), timeout=5):
        pass


def test_without_its_record_no_decision_leaves(bundle: Path, tmp_path: Path) -> None:
    """A real server whose record is deleted: refused, not ready, and an exit code that says what was lost."""
    record = tmp_path / "audit.sqlite"
    with running(f"triage={bundle}", "--audit", record) as server:
        assert status(server.ask(http("/v1/systemone", ASKED))) == 200
        record.unlink()
        refused = server.ask(http("/v1/systemone", ASKED))
        assert status(refused) == 503 and b"home care" not in refused and b"no decision is sent without it" in refused
        assert status(server.ask(http("/health/ready", b"", method="GET"))) == 503
        assert status(server.ask(http("/health/live", b"", method="GET"))) == 200
        server.stop()
    assert "deleted or replaced" in server.output


def test_one_line_a_second_of_what_asyncio_says() -> None:
    told = OncePerSecond()
    records = [
        logging.makeLogRecord({"created": second, "exc_info": True}) for second in (0.0, 0.1, 0.9, 1.0, 1.5, 2.1)
    ]
    assert [record.created for record in records if told.filter(record)] == [0.0, 1.0, 2.1]
    assert records[0].exc_info is None


def test_serving_needs_no_torch() -> None:
    code = "import sys, reason2decide.serve.running; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"

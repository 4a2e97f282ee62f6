"""The server under attack: what costs it much is refused early, strangers cost it least, others are served."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from backports.zstd import CompressionParameter, ZstdCompressor, compress
from fastapi.testclient import TestClient
from serving import Server, http, read_all, running, systemone, triage_bundle

from reason2decide.serve.app import create_app
from reason2decide.serve.auth import new_token
from reason2decide.serve.running import MOST_PIPELINED, _protocol
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

TOKEN, LINE = new_token("tester")
AUTHORIZED = f"Authorization: Bearer {TOKEN}"
ASKED = json.dumps(systemone()).encode()
EVIL_STATE = {"k" * 100_000: {str(number): number for number in range(60_000)}}  # rendered: 6 GB
MOST_GROWTH = 150  # MiB
CHUNKS, CHUNK = 300, b"x" * 100_000  # a reply larger than the buffers between two processes


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server that asks for a token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(LINE + "\n")
    with running(f"triage={triage_bundle()}", "--tokens", tokens) as server:
        yield server


def status(reply: bytes) -> int:
    return int(reply.split(b" ")[1])


def peak_mib(server: Server) -> int:
    """The most memory that the process has held so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


@contextlib.contextmanager
def unharmed(server: Server) -> Iterator[None]:
    """What happens inside costs little memory, and afterwards the server answers."""
    before = peak_mib(server)
    yield
    assert peak_mib(server) - before < MOST_GROWTH
    assert status(server.ask(http("/v1/systemone", ASKED, AUTHORIZED))) == 200


# --- work before and after authentication -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"[" * 500_000, "Content-Type: application/json"),
        (b"not zstd", "Content-Encoding: zstd"),
        (b"{", "Content-Type: text/plain"),
        (compress(json.dumps(EVIL_STATE).encode()), "Content-Encoding: zstd"),
    ],
)
def test_a_stranger_is_refused_before_the_body_is_looked_at(body: bytes, header: str, guarded: Server) -> None:
    with unharmed(guarded):
        assert status(guarded.ask(http("/v1/systemone", body, header))) == 401
        assert status(guarded.ask(http("/cds-services/triage", body, header))) == 401
    assert status(guarded.ask(http("/v1/systemone", body, header, AUTHORIZED))) in (413, 415, 422)


def test_a_small_body_that_would_become_a_large_text(guarded: Server) -> None:
    body = compress(json.dumps(systemone(state=EVIL_STATE)).encode())
    assert len(body) < 200_000
    with unharmed(guarded):
        started = time.monotonic()
        reply = guarded.ask(http("/v1/systemone", body, "Content-Encoding: zstd", AUTHORIZED))
        assert status(reply) == 413 and time.monotonic() - started < 5


FILLED: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "input": ("/v1/decisions", {"model": "triage", "questions": [{"type": "predicate"}]}, ["input"]),
    "content": (
        "/v1/decisions",
        {"model": "triage", "questions": [], "input": [{"role": "user"}]},
        ["input", 0, "content"],
    ),
    "instructions": (
        "/v1/decisions",
        {"model": "triage", "input": "x", "questions": [{"type": "predicate"}]},
        ["questions", 0, "instructions"],
    ),
    "criteria": (
        "/v1/systemone",
        {"model": "triage", "state": "x", "questions": {"a": {"type": "choice"}}},
        ["questions", "a", "criteria"],
    ),
    "state": ("/v1/systemone", systemone(), ["state"]),
    "entries": (
        "/cds-services/triage",
        {"hook": "patient-view", "prefetch": {"documents": {}}},
        ["prefetch", "documents"],
    ),
    "unknown": ("/v1/explain", {"model": "triage", "text": "x"}, ["z"]),
}


@pytest.mark.parametrize("count", [19_000, 400_000])  # just under the bound on values, and as many as a body holds
@pytest.mark.parametrize("place", FILLED)
def test_a_few_compressed_bytes_cost_little(place: str, count: int, guarded: Server) -> None:
    """A list of zeros is 150 bytes compressed; each zero was parsed three times and became an error message."""
    path, body, where = FILLED[place]
    filled = json.loads(json.dumps(body))
    holder: Any = filled
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = dict.fromkeys(map(str, range(count // 4)), 0) if place == "criteria" else [0] * count
    sent = compress(json.dumps(filled, separators=(",", ":")).encode())
    with unharmed(guarded):
        started = time.monotonic()
        reply = guarded.ask(http(path, sent, "Content-Encoding: zstd", AUTHORIZED))
        assert status(reply) in (413, 422) and len(reply) < 10_000
        assert time.monotonic() - started < 5  # it took 10 s, and 670 MiB


def test_a_window_of_gigabytes_is_not_allocated(guarded: Server) -> None:
    compressor = ZstdCompressor(options={CompressionParameter.window_log: 30})
    body = compressor.compress(b" " * 1000) + compressor.flush()
    with unharmed(guarded):
        reply = guarded.ask(http("/v1/systemone", body, "Content-Encoding: zstd", AUTHORIZED))
        assert status(reply) == 422 and b"a window over 8 MiB" in reply


def test_an_error_reply_is_short_whatever_was_sent(guarded: Server) -> None:
    body = json.dumps({"model": "triage", "input": [{"type": 1, "content": [{"type": 2}] * 9}] * 700, "questions": []})
    for path in ("/v1/systemone", "/v1/decisions", "/cds-services/triage"):
        reply = guarded.ask(http(path, body.encode(), AUTHORIZED))
        assert status(reply) == 422 and len(reply) < 10_000


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endless", [b"X-A: " + b"a" * 5000 + b"\r\n", b"1;" + b"x" * 5000 + b"\r\na\r\n"])
def test_endless_trailers_and_chunk_extensions_are_cut(endless: bytes, guarded: Server) -> None:
    head = (
        f"POST /v1/systemone HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    with unharmed(guarded), guarded.connect() as connection:
        connection.sendall(head + b"1\r\n{\r\n" + (b"0\r\n" if endless.startswith(b"X") else b""))
        with pytest.raises(OSError):
            for _ in range(20_000):  # 100 MB
                connection.sendall(endless)


def test_requests_without_reading_their_answers_are_cut(guarded: Server) -> None:
    flood = http("/v1/models", b"", AUTHORIZED, method="GET").replace(b"Connection: close\r\n", b"")
    with unharmed(guarded), guarded.connect() as connection, pytest.raises(OSError):
        for _ in range(20_000):
            connection.sendall(flood * 10)
    few = flood * (MOST_PIPELINED // 2) + http("/v1/models", b"", AUTHORIZED, method="GET")
    assert guarded.ask(few).count(b"HTTP/1.1 200") == MOST_PIPELINED // 2 + 1


@contextlib.contextmanager
def bounded(settings: ServeSettings) -> Iterator[tuple[str, int]]:
    """A server of a small application behind the same bounds on connections, in this process."""

    async def large(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(CHUNKS):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(large, http=_protocol(settings), lifespan="off", log_config=None, port=0, ws="none")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)


def test_a_client_that_does_not_read_is_disconnected() -> None:
    # A busy machine may keep even a client that reads waiting for a second.
    with bounded(ServeSettings(write_seconds=4)) as address, socket.create_connection(address, timeout=20) as lazy:
        lazy.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(8)
        assert len(read_all(lazy)) < CHUNKS * len(CHUNK)
        with socket.create_connection(address, timeout=20) as eager:
            eager.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert len(read_all(eager)) > CHUNKS * len(CHUNK)


def test_one_address_cannot_take_all_connections() -> None:
    with bounded(ServeSettings(max_connections_of_address=3)) as address, contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(4)]
        assert status(read_all(held[3])) == 503
        held[0].close()
        time.sleep(0.5)
        again = stack.enter_context(socket.create_connection(address, timeout=20))
        again.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert again.recv(12) == b"HTTP/1.1 200"


# --- browsers and proxies ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = ServeSettings(cors=("https://sandbox.cds-hooks.org",), public_url="https://cds.example.org/r2d")
    app = create_app([ServedModel("triage", triage_bundle())], settings)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("evil.example.org", False),
        ("evil.example.org:8080", False),
        ("localhost.evil.org", False),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("LOCALHOST", True),
        ("cds.example.org", True),
    ],
)
def test_a_name_that_was_made_to_mean_this_machine_is_refused(host: str, known: bool, client: TestClient) -> None:
    """DNS rebinding: a web page reaches the loopback address under its own name."""
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/systemone"), ("GET", "/metrics")):
        reply = client.request(method, path, json=systemone() if method == "POST" else None, headers={"Host": host})
        assert reply.status_code == (200 if known else 421)
    assert client.get("/health/ready", headers={"Host": host}).status_code == 200


def test_discovery_is_never_redirected(client: TestClient) -> None:
    for path in ("/cds-services", "/cds-services/"):
        reply = client.get(path, follow_redirects=False)
        assert reply.status_code == 200 and reply.json()["services"][0]["id"] == "triage"
    assert client.get("/v1/systemone/", follow_redirects=False).status_code == 404


def test_a_body_with_a_byte_order_mark(client: TestClient, shared_cases: Path) -> None:
    """F19."""
    body = (shared_cases / "F19_cds_body_bom.json").read_bytes()
    assert body.startswith(b"\xef\xbb\xbf")
    reply = client.post("/cds-services/triage", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 200 and reply.json()["cards"]


def test_a_preflight_to_a_private_network(client: TestClient, shared_cases: Path) -> None:
    """F20: a page on the public web asks a browser to call a server in the hospital."""
    lines = (shared_cases / "F20_preflight.txt").read_text().strip().splitlines()[1:]
    headers = dict(line.split(": ", 1) for line in lines)
    reply = client.options("/cds-services/triage", headers=headers)
    assert reply.status_code == 200 and reply.headers["access-control-allow-private-network"] == "true"
    other = client.options("/cds-services/triage", headers={**headers, "Origin": "https://evil.example.org"})
    assert other.status_code == 400

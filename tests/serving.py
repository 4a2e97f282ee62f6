"""Small trained models for the server's tests, and a real server process of them."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from toy import LABELS, record, run

from reason2decide.data.dataset_folder import DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record
from reason2decide.model.decision import Decision
from reason2decide.serve.served_model import ServedModel

TRIAGE = LabelSet(LABELS.values, ordinal=True, urgent="last")
SCREENING = LabelSet(("no", "yes"))
TEXT = "40 yo with chest pain since 2 days"
_kept = tempfile.TemporaryDirectory()
CHOICE = {"type": "choice", "criteria": dict.fromkeys(LABELS.values)}


def train_bundle(folder: Path, labels: LabelSet = TRIAGE, **changes: Any) -> Path:
    """A bundle that writes rationales after seconds of training, and cannot be sure: some gold labels are wrong."""
    splits = {"train": range(48), "validation": range(48, 60), "test": range(60, 72)}

    def noisy(index: int) -> Record:
        wrong = index % 5 == 0
        return replace(record(index), label=labels.values[(index + wrong) % 3 % len(labels.values)])

    records = {name: [noisy(index) for index in indices] for name, indices in splits.items()}
    dataset = write_dataset(folder / "data", DatasetInfo("toy", "triage", labels, ("llm",)), records)
    settings = {"steps": {"stage1": 40, "stage2": 10}, "learning_rate": 5e-3}
    return run(dataset, folder / "run", **settings | changes)


@functools.cache
def triage_bundle() -> Path:
    """The one that most tests share, to read only."""
    return train_bundle(Path(_kept.name))


def rationales(model: ServedModel, texts: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The texts of the model's reasons."""
    return [reason.text for reason in model.explain(texts, labels)]


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def post(client: TestClient, path: str, body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
    response = client.post(path, json=body, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


def decisions(*questions: dict[str, Any], model: str = "triage", **more: Any) -> dict[str, Any]:
    return {"model": model, "input": TEXT, "questions": list(questions), **more}


def choices() -> dict[str, Any]:
    return {"type": "choice", "choices": [{"value": label} for label in TRIAGE.values]}


class Server:
    """`r2d serve` in a process of its own."""

    def __init__(self, *arguments: object, host: str = "127.0.0.1", threads: int | None = 1) -> None:
        self.port = free_port(host)
        self.host = host
        command = [sys.executable, "-m", "reason2decide", "serve", *map(str, arguments), "--port", str(self.port)]
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, stdout=self._printed, stderr=subprocess.STDOUT, env=env)
        while True:
            with (
                contextlib.suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(f"{self.url}/health/ready", timeout=5),
            ):
                return
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.output}")
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def output(self) -> str:
        """What it printed so far."""
        self._printed.seek(0)
        return self._printed.read().decode()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=20)

    def ask(self, data: bytes) -> bytes:
        """What comes back for these bytes until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def running(*arguments: object, threads: int | None = 1) -> Iterator[Server]:
    server = Server(*arguments, threads=threads)
    try:
        yield server
    finally:
        server.stop()


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def http(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    """A request after which the server closes the connection."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
    if not any(header.lower().startswith("content-type") for header in headers):
        lines.append("Content-Type: application/json")
    return ("\r\n".join([*lines, *headers]) + "\r\n\r\n").encode() + body


def systemone(model: str = "triage", state: Any = TEXT, **more: Any) -> dict[str, Any]:
    return {"model": model, "state": state, "questions": {"disposition": CHOICE}, **more}


def decided(model: ServedModel, *texts: str) -> list[Decision]:
    """The model's decisions on texts that it can read."""
    found = model.decide(texts)
    decisions = [decision for decision in found if isinstance(decision, Decision)]
    assert len(decisions) == len(texts)
    return decisions

"""Time and memory of the most expensive requests that the server accepts.

    python benchmarks/worst_request.py MODEL [--long-texts windows]

Starts `r2d serve` and sends, one after another: a text of the largest size, a state of many values under long keys, 64
questions with a rationale for every label, CDS Hooks calls with large documents (RTF, HTML). Prints a Markdown table:
status, seconds, and by how much the most memory that the process has held grew.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KIB = 1024


def requests(labels: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, path and body of each request; bodies stay under the server's bound of 1 MiB."""
    choice = {"type": "choice", "criteria": dict.fromkeys(labels)}
    plain = {"model": "m", "questions": {"a": choice}}
    yield "a text of 256 KiB", "/v1/systemone", {**plain, "state": "chest pain, " * (256 * KIB // 12)}
    state = {"k" * 20: {str(number): "pale" for number in range(8000)}}
    yield "a state of 8,000 values", "/v1/systemone", {**plain, "state": state}
    everything = ["rationale", "prediction_set", "deferral", *(f"rationale:{label}" for label in labels)]
    many = {"model": "m", "questions": {str(number): choice for number in range(64)}, "include": everything}
    yield "64 questions, a rationale for every label", "/v1/systemone", {**many, "state": "chest pain, " * 20_000}
    for name, kind, text in (
        ("RTF", "text/rtf", r"{\rtf1 chest \b pain\b0 \par " + r"\'e9 a" * 60_000 + "}"),
        ("HTML", "text/html", "<p>chest <b>pain</b> &amp; " * 7000),
    ):
        attachment = {"contentType": kind, "data": base64.b64encode(text.encode()).decode()}
        document = {"resourceType": "DocumentReference", "content": [{"attachment": attachment}]}
        context = {"userId": "Practitioner/1", "patientId": "2"}
        call = {"hook": "patient-view", "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea", "context": context}
        yield f"a CDS Hooks call with {name}", "/cds-services/m", {**call, "prefetch": {"documents": document}}


def peak_mib(process: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / KIB


def answer(url: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--long-texts", default="windows")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "reason2decide", "serve", f"m={args.model}", "--port", str(port)]
    server = subprocess.Popen([*command, "--long-texts", args.long_texts], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if answer(f"{url}/health/ready")[0] == 200:
                    break
            except urllib.error.URLError:
                time.sleep(0.2)
        labels = json.loads(answer(f"{url}/v1/models")[1])["models"][0]["labels"]
        print("| request | status | seconds | memory, MiB more |\n|---|---|---|---|")
        for name, path, body in requests(labels):
            before, started = peak_mib(server.pid), time.monotonic()
            status, _ = answer(url + path, body)
            seconds = time.monotonic() - started
            print(f"| {name} | {status} | {seconds:.2f} | {peak_mib(server.pid) - before:.0f} |", flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

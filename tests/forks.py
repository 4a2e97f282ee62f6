"""`r2d` in forked processes: each is a real process with its own end, without the seconds that imports take.

`Forks` starts one server, which imports everything once, computes nothing, and forks a process for each call.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What commands import when they run; named, since an import that nobody seems to use is removed by tools.
PRELOADED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "onnxruntime",
    "pandas",
    "pyarrow.parquet",
    "reason2decide.cli",
    "reason2decide.evaluation.measure",
    "reason2decide.export.bundle",
    "reason2decide.report.evaluation_page",
    "reason2decide.training.run",
    "reason2decide.workflows.compare",
    "reason2decide.workflows.evaluate",
    "sacrebleu",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "torch.optim",
    "transformers.models.t5.modeling_t5",
    "transformers.models.t5.tokenization_t5",
)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its code (negative where a signal killed it), its two outputs, its seconds."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


class Forks:
    """Runs `r2d` commands one after another; close it in the end."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(
        self,
        *arguments: object,
        send: int | None = None,
        after: float = 0.0,
        when: Path | str = "",
        limits: Sequence[tuple[int, int]] = (),
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
    ) -> Ended:
        """Run a command to its end; `send` it a signal `after` so many seconds, and not before `when` exists.

        `when` may be a pattern. `limits` are (resource, value) for `resource.setrlimit`.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        call = {
            "argv": [str(argument) for argument in arguments],
            "send": send,
            "after": after,
            "when": str(when),
            "limits": limits,
            "env": dict(env or {}),
            "stdin": stdin or "",
        }
        self._server.stdin.write(json.dumps(call) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)


class Group:
    """Two `Forks` whose processes train together, told of each other as a launcher tells them."""

    def __init__(self) -> None:
        self.members = (Forks(), Forks())

    def run(self, *arguments: object, **settings: Any) -> list[Ended]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])

        def member(rank: int) -> Ended:
            env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            return self.members[rank].run(*arguments, env=env, **settings)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(member, range(2)))

    def close(self) -> None:
        for member in self.members:
            member.close()


def _child(call: dict[str, Any], stdin: int, stdout: int, stderr: int) -> None:
    import resource

    from reason2decide.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a shell leaves it, however the tests were started
    for kind, value in call["limits"]:
        resource.setrlimit(kind, (value, value))
    os.environ.update(call["env"])
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
    sys.argv = ["r2d", *call["argv"]]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    for line in sys.stdin:
        call = json.loads(line)
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            stdin.write(call["stdin"].encode())
            stdin.seek(0)
            started = time.monotonic()
            pid = os.fork()
            if not pid:
                _child(call, stdin.fileno(), stdout.fileno(), stderr.fileno())
            sent = call["send"] is None
            while True:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    break
                late = time.monotonic() - started >= call["after"]
                if not sent and late and (not call["when"] or _there(call["when"])):
                    os.kill(pid, call["send"])
                    sent = True
                time.sleep(0.002)
            seconds = time.monotonic() - started
            outputs = []
            for stream in (stdout, stderr):
                stream.seek(0)
                outputs.append(stream.read().decode())
            end = Ended(os.waitstatus_to_exitcode(status), outputs[0], outputs[1], seconds)
        print(json.dumps(end.__dict__), flush=True)


def _there(pattern: str) -> bool:
    path = Path(pattern)
    return next(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))), None) is not None


if __name__ == "__main__":
    _serve()

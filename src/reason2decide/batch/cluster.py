"""Workers on a Ray cluster: tasks that get rows and give outcomes back, so that only this process touches storage.

Ray runs a task again whose worker or node died. Parts that are there are the checkpoint: no other is needed, and a run
may begin here and end on one machine, or the other way round.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from reason2decide.batch.crew import TRIES, DecidedChunk, LostChunk, answer, sendable
from reason2decide.batch.decider import BatchWork, Decider, Outcome
from reason2decide.batch.input import Chunk
from reason2decide.data.predictions import Undecided
from reason2decide.data.records import Record
from reason2decide.errors import BundleError, Reason2DecideError, UserError, require
from reason2decide.files import new_folder
from reason2decide.model.manifest import MANIFEST, described_bundle
from reason2decide.version import __version__

CONNECT_SECONDS = 5.0  # ours
Answer = Sequence[Outcome] | Reason2DecideError | str


@dataclass
class RayCluster:
    """A crew of Ray tasks.

    Args:
        address: of the cluster, or `auto`; None: a cluster of this machine alone, which ends with the run.
        count: tasks at a time; 0: as many as the cluster has cores, or GPUs where the model can use them.
        uses_gpus: whether the model's engine can.
    """

    work: BatchWork
    address: str | None = None
    count: int = 0
    uses_gpus: bool = False
    _on_gpu: bool = False
    _ray: Any = None
    _model: Any = None
    _sha256: str = field(default="", init=False)

    def __enter__(self) -> RayCluster:
        # Ray reports its use to its makers by default; notes are decided here.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = require("ray", "ray")
        try:
            self._require_listener()
            self._ray.init(self.address, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError) as error:
            where = self.address or "this machine"
            raise UserError(
                f"no Ray cluster at {where} ({str(error).splitlines()[0]}); start one with `ray start`"
            ) from None
        manifest = described_bundle(self.work.bundle)
        self._sha256 = manifest.sha256
        # Wrapped in a list, a reference is fetched only where it is asked for.
        content = {name: (self.work.bundle / name).read_bytes() for name in (MANIFEST, *manifest.files)}
        self._model = [self._ray.put(content)]
        self._on_gpu = self.uses_gpus and self._ray.cluster_resources().get("GPU", 0) > 0
        resources = {"num_gpus": 1} if self._on_gpu else {"num_cpus": self.work.threads}
        self._task = self._ray.remote(max_retries=TRIES - 1, **resources)(_on_node)
        return self

    def _require_listener(self) -> None:
        """Raise `OSError` if nobody listens at the address: Ray would try for minutes."""
        host, _, port = (self.address or "").removeprefix("ray://").rpartition(":")
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()

    def __exit__(self, *error: object) -> None:
        if self._ray is not None and self._ray.is_initialized():
            self._ray.shutdown()

    def decide(self, chunks: Iterator[Chunk], on_progress: Callable[[int], None]) -> Iterator[DecidedChunk | LostChunk]:
        """As `Crew`."""
        running: dict[Any, Chunk] = {}
        while True:
            while len(running) < self._room() and (chunk := next(chunks, None)) is not None:
                task = self._task.remote(self._model, self._sha256, __version__, self.work, chunk.rows)
                running[task] = chunk
            if not running:
                return
            for task in self._ray.wait(list(running))[0]:
                chunk = running.pop(task)
                found = self._found(task)
                if isinstance(found, Reason2DecideError):
                    raise found
                on_progress(len(chunk.rows))
                yield LostChunk(chunk.number, found) if isinstance(found, str) else DecidedChunk(chunk.number, found)

    def _found(self, task: Any) -> Answer:
        from ray import exceptions

        try:
            answered: Answer = self._ray.get(task)
            return answered
        except exceptions.RayTaskError as error:
            if any(sign in str(error) for sign in _NOT_INSTALLED):
                return UserError(
                    f"a node of the cluster cannot run reason2decide {__version__} ({_last_line(error)}); install that "
                    "version on every node"
                )
            return UserError(f"a node of the cluster failed: {_last_line(error)}")
        except exceptions.RayError as error:
            return f"its worker ended {TRIES} times ({type(error).__name__})"

    def _room(self) -> int:
        """Tasks in flight: twice as many as the cluster computes at a time, so that none of its cores waits."""
        resources = self._ray.cluster_resources()
        slots = resources.get("GPU", 0) if self._on_gpu else resources.get("CPU", 0) // self.work.threads
        return self.count or 2 * max(1, int(slots))


# What a task's error says where a node lacks the package: of Ray, of Python.
_NOT_INSTALLED = ("failed to import", "No module named", "ImportError")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200]


def _on_node(
    model: list[Any], sha256: str, version: str, work: BatchWork, rows: Sequence[Record | Undecided]
) -> Answer:
    """A task: the outcomes of rows; the model is fetched once a node and loaded once a process."""
    if version != __version__:
        return UserError(
            f"a node of the cluster has reason2decide {__version__}, this machine {version}; install the same on both"
        )
    try:
        decider = _decider(replace(work, bundle=_model_on_node(model, sha256)))
    except Reason2DecideError as error:
        return sendable(error)
    return answer(decider, rows, lambda count: None)


_decider = lru_cache(maxsize=1)(Decider.of)


def _model_on_node(model: list[Any], sha256: str) -> Path:
    """The model's folder on this node, which is named by its content."""
    home = Path(tempfile.gettempdir()) / f"reason2decide-models-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    folder = home / sha256
    if not folder.is_dir():
        (reference,) = model
        content = require("ray", "ray").get(reference)
        try:
            with new_folder(folder, MANIFEST, force=True) as partial:
                for name, data in content.items():
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    (partial / name).write_bytes(data)
        except OSError:
            if not folder.is_dir():  # otherwise another process was quicker
                raise
    if described_bundle(folder).sha256 != sha256:
        raise BundleError(f"{folder} is not the model that its name says; remove it")
    return folder

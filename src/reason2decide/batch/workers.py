"""Worker processes on this machine: each has the model and its share of the threads; one that dies is replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from reason2decide.batch.crew import TRIES, DecidedChunk, LostChunk, answer, sendable
from reason2decide.batch.decider import BatchWork, Decider
from reason2decide.batch.input import Chunk
from reason2decide.console import warn
from reason2decide.errors import Reason2DecideError
from reason2decide.parallel import cores, end_with_parent

PROCESS = 500_000_000  # ours: bytes of a worker process without its model
COPIES = 3  # ours: times that a model's file size is held in memory, with what the engine makes of it


def workers_for(model_bytes: int, cores: int, memory: int) -> int:
    """Processes that decide fastest together: one per core, as far as four fifths of the memory hold their models."""
    return max(1, min(cores, 4 * memory // (5 * (PROCESS + COPIES * model_bytes))))


def available_memory() -> int:
    """Bytes of memory that are free on this machine, or that its control group allows."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return free


def size_of(bundle: Path) -> int:
    """Bytes of a bundle's files."""
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


@dataclass
class _Worker:
    """A process with a model, and what it has to do."""

    process: Any
    pipe: Connection
    chunk: Chunk | None = None
    ready: bool = False
    progress: int = 0


@dataclass
class Workers:
    """A crew of processes on this machine.

    Args:
        count: number of processes; 0: one per GPU, else as `workers_for`.
        gpus: number of GPUs that the model can use.
    """

    work: BatchWork
    count: int = 0
    gpus: int = 0
    _crew: list[_Worker] = field(default_factory=list)
    _failed_starts: int = 0

    def __enter__(self) -> Workers:
        machine = cores()
        self.count = self.count or self.gpus or workers_for(size_of(self.work.bundle), machine, available_memory())
        self.work = replace(self.work, threads=max(1, machine // self.count))
        self._crew = [self._started(index) for index in range(self.count)]
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._crew:
            worker.pipe.close()
            if any(error):
                worker.process.kill()
        for worker in self._crew:
            worker.process.join()

    def decide(self, chunks: Iterator[Chunk], on_progress: Callable[[int], None]) -> Iterator[DecidedChunk | LostChunk]:
        """As `Crew`: a chunk whose worker died is given to another, at most three times in all."""
        again: deque[Chunk] = deque()
        tries: dict[int, int] = {}
        read_to_end = False
        while True:
            for worker in self._crew:
                if not worker.ready or worker.chunk is not None or (read_to_end and not again):
                    continue
                worker.chunk = again.popleft() if again else next(chunks, None)
                if worker.chunk is None:
                    read_to_end = True
                    continue
                with contextlib.suppress(OSError):  # it has just died: seen below
                    worker.pipe.send(worker.chunk.rows)
            if read_to_end and not again and not any(worker.chunk for worker in self._crew):
                return
            for index in self._with_news():
                worker = self._crew[index]
                try:
                    news = worker.pipe.recv()
                except (EOFError, OSError):
                    how = self._replaced(index)
                    on_progress(-worker.progress)
                    if worker.chunk is None:
                        self._count_start(how)
                        continue
                    number = worker.chunk.number
                    tries[number] = tries.get(number, 0) + 1
                    if tries[number] < TRIES:
                        warn(f"part {number}: {how}; another one decides it again")
                        again.append(worker.chunk)
                    else:
                        yield LostChunk(number, how)
                    continue
                if isinstance(news, Reason2DecideError):
                    raise news
                if news is None:
                    worker.ready, self._failed_starts = True, 0
                elif isinstance(news, int):
                    worker.progress += news
                    on_progress(news)
                else:
                    assert worker.chunk is not None
                    on_progress(len(worker.chunk.rows) - worker.progress)
                    number, worker.chunk, worker.progress = worker.chunk.number, None, 0
                    yield LostChunk(number, news) if isinstance(news, str) else DecidedChunk(number, news)

    def _replaced(self, index: int) -> str:
        """Start a worker in the place of one that died; how that one ended."""
        process = self._crew[index].process
        process.join()
        self._crew[index] = self._started(index)
        return f"its worker ended with {_ending(process.exitcode)}"

    def _count_start(self, how: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= TRIES:
            raise Reason2DecideError(f"{TRIES} workers in a row died while they loaded the model: {how}")

    def _with_news(self) -> list[int]:
        pipes = [worker.pipe for worker in self._crew]
        found = wait(pipes)
        return [index for index, pipe in enumerate(pipes) if pipe in found]

    def _started(self, index: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        gpu = index % self.gpus if self.gpus else None
        process = context.Process(target=_serve, args=(theirs, self.work, gpu), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"signal {signal.Signals(-code).name}{hint}"
    return f"exit code {code}"


def _serve(pipe: Connection, work: BatchWork, gpu: int | None) -> None:
    """A worker: load the model, then answer rows by outcomes, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(work.threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpu(gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            decider = Decider.of(work)
        except Reason2DecideError as error:
            pipe.send(sendable(error))
            return
        pipe.send(None)
        while True:
            pipe.send(answer(decider, pipe.recv(), pipe.send))


def visible_gpu(index: int, visible: str | None) -> str:
    """The name of the GPU at an index among those that the user left visible."""
    return visible.split(",")[index].strip() if visible else str(index)

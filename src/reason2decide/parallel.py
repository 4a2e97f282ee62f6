"""Compute the parts of a large input in several processes, with the results in the order of the parts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

from reason2decide.errors import Reason2DecideError

T = TypeVar("T")
R = TypeVar("R")

FEW = 20_000  # ours: records that one process has read before others have started
AHEAD = 3  # ours: parts for each process that wait or are computed, which bounds the memory they take


def cores() -> int:
    """Cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Processes:
    workers: int = 1


_settings = _Processes()


def use_cores(workers: int = 0) -> None:
    """Let `ordered` use this many processes from now on; 0: one per core.

    The command line does. For a library one process is the default: others import the script that started them anew,
    which then must have its own code under `if __name__ == "__main__"`.
    """
    _settings.workers = workers


def processes_for(records: int) -> int | None:
    """The number of processes for `ordered` to read this many records with: one for a few."""
    return 1 if records < FEW else None


def ordered(work: Callable[[T], R], parts: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """`work` of each part, in their order, whatever the number of processes.

    A single part, and with one worker all of them, are computed in this process.

    Args:
        work: sent once to each process; like parts and results it must be picklable.
        workers: number of processes; 0: one per core; None: as `use_cores` said, else one.

    Raises:
        Reason2DecideError: a process was killed; otherwise whatever `work` raises.
    """
    parts, workers = iter(parts), (_settings.workers if workers is None else workers) or cores()
    first = list(islice(parts, 2))
    if workers == 1 or len(first) < 2:
        yield from map(work, chain(first, parts))
        return
    from concurrent.futures import Future, ProcessPoolExecutor  # here, since most commands need none
    from concurrent.futures.process import BrokenProcessPool

    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[R]] = deque()
    with ProcessPoolExecutor(workers, context, _begin, (work,)) as pool:
        try:
            for part in chain(first, parts):
                waiting.append(pool.submit(_do, part))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException as error:  # nobody waits for what is being computed
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            if isinstance(error, BrokenProcessPool):
                raise Reason2DecideError(
                    "a worker process was killed, perhaps because memory ran out: free some, or use fewer workers"
                ) from None
            raise


_work: Callable[[Any], Any]


def _begin(work: Callable[[Any], Any]) -> None:
    """Prepare a process: an interrupt is for the one that started it, and it ends with that one."""
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes fill the cores; threads of theirs would only wait
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however it did."""
    parent = multiprocessing.parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _do(part: Any) -> Any:
    return _work(part)

"""Parts computed by several processes: in order, all of them, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reason2decide.errors import DataError, Reason2DecideError
from reason2decide.parallel import ordered


@dataclass(frozen=True)
class Square:
    """Squares numbers, slowly where they are even; fails, or dies, at one of them."""

    fails: int = -1
    dies: int = -1

    def __call__(self, number: int) -> tuple[int, int]:
        if number == self.fails:
            raise DataError(f"{number} is bad")
        if number == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01 * (number % 2 == 0))
        return number**2, os.getpid()


def children() -> int:
    """Processes of this one that live."""
    return len(multiprocessing.active_children())


def test_results_come_in_the_order_of_the_parts_from_several_processes() -> None:
    before = children()
    found = list(ordered(Square(), range(40), 2))
    assert [square for square, _ in found] == [number**2 for number in range(40)]
    assert len({process for _, process in found}) == 2 and os.getpid() not in {process for _, process in found}
    assert children() == before


@given(st.lists(st.integers(0, 50), max_size=20))
def test_one_worker_is_this_process(numbers: list[int]) -> None:
    assert list(ordered(pow2, numbers, 1)) == [number * number for number in numbers]


def pow2(number: int) -> int:
    """The square of a number."""
    return number * number


def test_a_single_part_needs_no_other_process() -> None:
    assert list(ordered(Square(), [3], 2)) == [(9, os.getpid())]
    assert list(ordered(Square(), [], 2)) == []


def test_parts_are_read_no_further_ahead_than_needed() -> None:
    """So that an input of any size is never in memory."""
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10_000):
            read.append(number)
            yield number

    results = ordered(Square(), numbers(), 2)
    for _ in range(5):
        next(results)
    assert len(read) < 20
    results.close()  # type: ignore[attr-defined]


def test_an_error_of_a_part_ends_all() -> None:
    before = children()
    found = ordered(Square(fails=7), range(1000), 2)
    with pytest.raises(DataError, match="7 is bad"):
        list(found)
    assert children() == before


def test_a_killed_process_is_told() -> None:
    with pytest.raises(Reason2DecideError, match=r"a worker process was killed.*fewer workers"):
        list(ordered(Square(dies=7), range(1000), 2))


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import itertools, os\n"
        "from reason2decide.parallel import ordered\n"
        "def pid(_):\n    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    for process in ordered(pid, itertools.count(), 2):\n        print(process, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        workers = {int(running.stdout.readline()) for _ in range(200)}
        running.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{process}").exists() for process in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{process}").exists() for process in workers)

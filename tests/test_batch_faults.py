"""Runs that are killed, interrupted or out of disk: after resuming, every row once, and the bytes of a quiet run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from batches import bytes_of, exported, predictions, rows, write_folder
from forks import Forks

from reason2decide.batch.run import decide_batch
from reason2decide.batch.settings import BatchSettings
from reason2decide.console import ProgressBar
from reason2decide.errors import Reason2DecideError

KILLS = 20
SIZE = ("--rows-per-part", "5")


@pytest.fixture(scope="module")
def quiet_run(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> tuple[Path, Path]:
    """A folder of cases, and its parts by an undisturbed run."""
    home = tmp_path_factory.mktemp("faults")
    cases = write_folder(home / "cases", 600)
    done = forks.run("predict", exported(), cases, "--out", home / "out", *SIZE)
    assert done.returncode == 0, done.stderr
    return cases, home / "out"


@contextlib.contextmanager
def started(cases: Path, out: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`r2d predict` in a process group of its own."""
    command = [sys.executable, "-m", "reason2decide", "predict", exported(), cases, "--out", out, "--resume"]
    process = subprocess.Popen(
        [*map(str, command), *SIZE, *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # however the tests were started
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a run has started to decide."""
    found = []
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Wait until a condition holds, or the process has ended."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_driver_killed_at_twenty_points(quiet_run: tuple[Path, Path], tmp_path: Path) -> None:
    cases, out = quiet_run
    chosen = random.Random(19)
    steps = []
    for _ in range(KILLS):
        with started(cases, tmp_path / "out") as process:
            before = len(list((tmp_path / "out").glob("part-*")))
            # Half of them once a part was written, the others at any time from the start on.
            if chosen.random() < 0.5:
                wait_for(lambda: len(list((tmp_path / "out").glob("part-*"))) > before, process)  # noqa: B023
            else:
                time.sleep(chosen.uniform(0, 2))
            time.sleep(chosen.uniform(0, 0.05))
            children = workers_of(process) if process.poll() is None else []
            process.kill()
        steps.append(len(list((tmp_path / "out").glob("part-*"))))
        for child in children:
            wait_for(lambda: not Path(f"/proc/{child}").exists(), process)  # noqa: B023
    assert 0 < steps[KILLS // 2] < 120, "the kills were not spread over the run"
    with started(cases, tmp_path / "out") as process:
        assert process.wait(120) == 0
    assert bytes_of(tmp_path / "out") == bytes_of(out)
    assert [own.id for own in predictions(tmp_path / "out")] == [row["id"] for row in rows(0, 600)]
    assert not list((tmp_path / "out").glob(".*.partial"))


def test_workers_that_are_killed_are_replaced(quiet_run: tuple[Path, Path], tmp_path: Path) -> None:
    cases, out = quiet_run
    killed = 0
    with started(cases, tmp_path / "out", "--workers", "2") as process:
        for parts in (1, 8, 16):
            wait_for(lambda: len(list((tmp_path / "out").glob("part-*"))) >= parts, process)  # noqa: B023
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(workers_of(process)[parts % 2], signal.SIGKILL)
                killed += 1
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert killed == 3
    assert "signal SIGKILL (out of memory?)" in stderr
    assert bytes_of(tmp_path / "out") == bytes_of(out)


def test_a_part_that_ends_each_of_its_workers_is_told_and_the_rest_is_done(
    quiet_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, out = quiet_run
    settings = BatchSettings(rows_per_part=300, workers=1, resume=True)
    killed: list[int | None] = []
    advance = ProgressBar.advance

    def killing(bar: ProgressBar, count: int = 1, note: str = "") -> None:
        """Kill the worker three times once it has told of the first rows of the first part."""
        advance(bar, count, note)
        if bar.description == "deciding" and 0 < count < 300 and len(killed) < 3:
            for worker in multiprocessing.active_children():
                if worker.pid not in killed:  # what a dead one has told before is still read
                    worker.kill()
                    killed.append(worker.pid)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "advance", killing)
        with pytest.raises(Reason2DecideError, match=r"1 of 2 parts could not be computed, the first is 0: .*SIGKILL"):
            decide_batch(exported(), str(cases), str(tmp_path / "out"), settings)
    assert len(killed) == 3
    assert [path.name for path in (tmp_path / "out").glob("part-*")] == ["part-000001.parquet"]
    assert decide_batch(exported(), str(cases), str(tmp_path / "out"), settings).decided == 600
    assert predictions(tmp_path / "out") == predictions(out)


def test_ctrl_c_leaves_whole_parts_and_says_how_to_go_on(quiet_run: tuple[Path, Path], tmp_path: Path) -> None:
    cases, out = quiet_run
    with started(cases, tmp_path / "out") as process:
        wait_for(lambda: list((tmp_path / "out").glob("part-*")), process)
        workers = workers_of(process)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume goes on" in stderr
    assert "Traceback" not in stderr
    assert workers and not any(Path(f"/proc/{worker}").exists() for worker in workers)
    written = bytes_of(tmp_path / "out")
    assert written.items() <= bytes_of(out).items()


def test_a_full_disk_is_said_and_nothing_is_half_written(quiet_run: tuple[Path, Path], tmp_path: Path) -> None:
    cases, out = quiet_run
    with started(cases, tmp_path / "out", "--workers", "1") as process:
        wait_for(lambda: workers_of(process), process)  # the limit is of the process that writes, not of this one
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2000, 2000))  # less than a part has
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    assert "the disk is full" in stderr
    assert "Traceback" not in stderr
    assert not list((tmp_path / "out").glob("*part-*"))
    with started(cases, tmp_path / "out") as process:
        assert process.wait(120) == 0
    assert bytes_of(tmp_path / "out") == bytes_of(out)

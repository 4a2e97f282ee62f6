"""A small model runs on one thread, a large one on all cores, and what the user sets counts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from reason2decide.model.threads import SMALL, threads_for

PROGRAM = """
import sys
from reason2decide.model.threads import let_threads_sleep, limit_threads
let_threads_sleep()
import os, torch
limit_threads(int(sys.argv[1]))
print(torch.get_num_threads(), os.environ["OMP_WAIT_POLICY"])
"""
CORES = len(os.sched_getaffinity(0))


def test_threads_follow_the_size() -> None:
    assert (threads_for(1), threads_for(SMALL - 1), threads_for(SMALL)) == (1, 1, CORES)


@pytest.mark.parametrize(
    ("parameters", "given", "expected"),
    [
        (SMALL - 1, {}, "1 PASSIVE"),
        (SMALL, {}, f"{CORES} PASSIVE"),
        (1, {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}, "2 ACTIVE"),
    ],
)
def test_what_the_user_sets_counts(parameters: int, given: dict[str, str], expected: str) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")} | given
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(parameters)], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr

"""How long `r2d --help` takes, as a whole process: median and range of several runs.

python benchmarks/startup.py
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time

RUNS = 15


def main() -> None:
    program = shutil.which("r2d")
    assert program is not None, "r2d is not on the PATH: activate the environment it is installed in"
    seconds = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run([program, "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    counted = seconds[1:]  # the first run warms the disk cache
    print(
        f"r2d --help: median {statistics.median(counted):.3f} s, {min(counted):.3f} to {max(counted):.3f}, {RUNS} runs"
    )


if __name__ == "__main__":
    main()

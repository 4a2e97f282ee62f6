"""Two checkouts of this package in turns: start-up, and prediction with the same model, as whole processes.

    git worktree add ../before REVISION
    python benchmarks/revisions.py ../before . --model run/bundle --model model/ --cases cases.jsonl

Both run in this environment, each from its own `src/`. Figures are medians and ranges of wall seconds; the ratio
is that of the second checkout to the first, run by run, so that it holds while the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = {"r2d --help": 15, "import": 15, "predict": 5}


def seconds(checkout: Path, arguments: list[str]) -> float:
    """Wall seconds of one process of this Python over a checkout."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve() / "src")}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def in_words(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--model", action="append", default=[], help="bundle or export to predict with")
    parser.add_argument("--cases", type=Path)
    given = parser.parse_args()
    commands = {
        ("r2d --help", "r2d --help"): ["-m", "reason2decide", "--help"],
        ("import", "import reason2decide"): ["-c", "import reason2decide"],
    }
    for model in given.model:
        commands["predict", f"r2d predict {model}"] = ["-m", "reason2decide", "-q", "predict", model, str(given.cases)]
    for (kind, name), arguments in commands.items():
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS[kind] + 1):
            for found, checkout in zip(times, (given.before, given.after), strict=True):
                found.append(seconds(checkout, arguments))
        before, after = (found[1:] for found in times)  # the first round fills the disk cache
        ratios = [new / old for old, new in zip(before, after, strict=True)]
        print(f"{name}: before {in_words(before)} s, after {in_words(after)} s, ratio {in_words(ratios)}")


if __name__ == "__main__":
    main()

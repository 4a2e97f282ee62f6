"""Training speed by threads and waiting, alone and beside a busy process.

    python benchmarks/threads.py DATASET [--base tiny] [--steps 40] [--rounds 3]

Trains `r2d` for a few steps in a process of its own, each setting in turn, and prints the median of tokens a
second with the range over the rounds. "Beside" means that as many processes as there are cores less one compute all
the time, as other users of a shared machine would.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = {
    "as started by default": {},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads, spinning": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"},
    "2 threads, sleeping": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
PROGRAM = """
import sys, json
from pathlib import Path
from reason2decide.cli import main
sys.argv = ["r2d", "--quiet", "train", sys.argv[1], "--out", sys.argv[2]]
main()
"""


def spin() -> None:
    while True:
        pass


def tokens_per_second(config: Path, environment: dict[str, str]) -> float:
    """From the second half of the steps, as the log has their times."""
    with tempfile.TemporaryDirectory() as folder:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
        run = Path(folder) / "run"
        subprocess.run([sys.executable, "-c", PROGRAM, str(config), str(run)], env={**plain, **environment}, check=True)
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        speeds = [row["tokens_per_second"] for row in rows if row["event"] == "train"]
        return statistics.median(speeds[len(speeds) // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(
            f'method = "r2d-no-stage1"\nbase = "{args.base}"\ndataset = "{args.dataset.absolute()}"\n'
            f'rationale_source = "llm"\nsteps = {args.steps}\nbatch_size = 16\ndropout = 0.0\n'
            "evaluate_every = 100000\nlengths = {input = 256, rationale = 96}\n"
        )
        print("| setting | alone, tokens/s | beside a busy process, tokens/s |\n|---|---|---|")
        found: dict[tuple[str, bool], list[float]] = {}
        for _ in range(args.rounds):
            for busy in (False, True):
                others = [multiprocessing.Process(target=spin, daemon=True) for _ in range((os.cpu_count() or 2) - 1)]
                for other in others * busy:
                    other.start()
                for name, environment in SETTINGS.items():
                    found.setdefault((name, busy), []).append(tokens_per_second(config, environment))
                for other in others * busy:
                    other.kill()
        for name in SETTINGS:
            cells = []
            for busy in (False, True):
                values = found[name, busy]
                cells.append(f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})")
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

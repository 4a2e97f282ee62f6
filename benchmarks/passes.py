"""Training speed and memory by how much of a batch is computed at a time.

    python benchmarks/passes.py DATASET [--source human] [--sizes 2048 8192 32768 1000000] [--steps 3]

Trains a `tiny` base with the README's five keys, so 64 records of up to 1,024 tokens a step, in a process of its own
for each size, and prints a Markdown table: tokens in a pass, seconds a step (median), the most memory held.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import resource, sys
from reason2decide.training import memory
memory.CPU_PASS_TOKENS = int(sys.argv[1])
memory.GPU_SHARE = memory.CPU_SHARE = 1.0
from reason2decide.cli import main
sys.argv = ["r2d", "--quiet", "train", sys.argv[2], "--out", sys.argv[3]]
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--source", default="human")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 8192, 32_768, 1_000_000])
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    print("| tokens in a pass | seconds a step | memory, GiB |\n|---|---|---|")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            config, run = Path(folder) / "train.toml", Path(folder) / "run"
            config.write_text(
                f'method = "r2d-no-stage1"\nbase = "tiny"\ndataset = "{args.dataset.absolute()}"\n'
                f'rationale_source = "{args.source}"\nsteps = {args.steps}\n'
            )
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(size), str(config), str(run)], stdout=subprocess.PIPE, check=True
            )
            rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            steps = [row["seconds"] for row in rows if row["event"] == "train"]
            print(f"| {size:,} | {statistics.median(steps):.1f} | {int(done.stdout) / 2**20:.2f} |", flush=True)


if __name__ == "__main__":
    main()

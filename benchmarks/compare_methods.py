"""Methods on one dataset with equal steps of equal batch, over several seeds: a table with intervals.

    python benchmarks/compare_methods.py CONFIG.toml --methods r2d sft dss --steps 900 --seeds 0 1 2 --out DIR

CONFIG.toml is a training configuration; method, steps and seed are set here. A method of two stages gives 4/9 of the
steps to its first, as the demo does. Each cell is an ordinary run folder with its results; a cell that is there
already is not run again. The interval is the bootstrap over test records, the mean of the seeds' bounds; the spread
over seeds stands apart, since it is another kind of doubt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from reason2decide.method.methods import METHODS
from reason2decide.training.config_file import load_config
from reason2decide.training.run import train
from reason2decide.workflows.evaluate import evaluate_bundle

METRICS = ("macro_f1", "accuracy", "bleu", "chrf")


def steps_of(method: str, total: int) -> list[str]:
    stages = [stage.name for stage in METHODS[method].stages]
    if len(stages) == 1:
        return [f"steps={total}"]
    first = total * 4 // 9
    return [f"steps.{stages[0]}={first}", f"steps.{stages[1]}={total - first}"]


def run_cell(config: Path, method: str, total: int, seed: int, out: Path) -> dict[str, float]:
    """Train and evaluate one method with one seed; return its metrics and minutes."""
    done = out / "results" / "results.json"
    if not done.is_file():
        started = time.monotonic()
        loaded = load_config(config, [f"method={method}", f"seed={seed}", *steps_of(method, total)])
        bundle = train(loaded, out / "run", force=True)
        evaluate_bundle(bundle, loaded.dataset, out / "results", force=True)
        (out / "minutes.txt").write_text(f"{(time.monotonic() - started) / 60:.2f}")
    metrics = json.loads(done.read_text())["metrics"]
    return {name: metrics[name]["value"] for name in METRICS} | {"minutes": float((out / "minutes.txt").read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--methods", nargs="+", default=["r2d", "sft", "dss"])
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cells = {
        method: [
            run_cell(options.config, method, options.steps, seed, options.out / f"{method}-{seed}")
            for seed in options.seeds
        ]
        for method in options.methods
    }
    print(f"| method | {' | '.join(METRICS)} | minutes |")
    print("|---" * (len(METRICS) + 2) + "|")
    for method, runs in cells.items():
        columns = []
        for name in METRICS:
            values = [run[name] for run in runs]
            if any(value is None for value in values):
                columns.append("none")
                continue
            low, high = interval(options.out, method, options.seeds, name)
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            digits = 1 if name in ("bleu", "chrf") else 3
            mean = statistics.mean(values)
            columns.append(f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] ± {spread:.{digits}f}")
        minutes = statistics.mean(run["minutes"] for run in runs)
        print(f"| {method} | {' | '.join(columns)} | {minutes:.1f} |")
    print(
        "\nmean over seeds [95 % interval: mean of the seeds' bootstrap bounds over test records] ± spread over seeds"
    )


def interval(out: Path, method: str, seeds: list[int], name: str) -> tuple[float, float]:
    """The mean over seeds of each run's bootstrap bounds: the doubt that comes of the test records alone."""
    files = [out / f"{method}-{seed}" / "results" / "results.json" for seed in seeds]
    bounds = [json.loads(file.read_text())["metrics"][name] for file in files]
    return float(np.mean([one["low"] for one in bounds])), float(np.mean([one["high"] for one in bounds]))


if __name__ == "__main__":
    main()

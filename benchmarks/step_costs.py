"""Seconds per step of each method's stages, in turns within one process: what equal compute means.

    r2d data synthesize --out runs/calls --train 12000
    python benchmarks/step_costs.py runs/calls --bundle RUN/bundle [--rounds 7]
    python benchmarks/step_costs.py runs/esnli --experiment experiments/esnli.toml --encoder runs/esnli-base
        [--precision float32 bfloat16]

A small base with the demo's settings and the weights of a trained bundle (without: from scratch, with mostly wrong
labels), where the schedules have reached their ends. Medians and ranges of rounds; the ratio is to r2d's Stage 2 in the
same round, in the first precision if there are several. With an experiment, its methods and its settings of training.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
import tomllib
from pathlib import Path

from safetensors.torch import load_file

from reason2decide.console import set_quiet
from reason2decide.method.methods import METHODS
from reason2decide.model.hub import silence_transformers
from reason2decide.signals import StopSignals
from reason2decide.training.base import load_weights
from reason2decide.training.config_file import parse_config
from reason2decide.training.preparation import prepared
from reason2decide.training.processes import Processes
from reason2decide.training.run_log import RunLog
from reason2decide.training.trainer import RunContext, StageTrainer
from reason2decide.workflows.demo import SETTINGS

NOT_MEASURED = ("r2d-no-stage1", "r2d-no-sampling")  # the stages of r2d
REFERENCE = "r2d stage2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="of a stage in one round")
    parser.add_argument("--bundle", type=Path, help="trained by a method whose base has the same shape")
    parser.add_argument("--experiment", type=Path, help="whose methods and settings are taken")
    parser.add_argument("--encoder", help="its base")
    parser.add_argument("--precision", nargs="+", help="instead of the experiment's")
    args = parser.parse_args()
    methods, wanted = [name for name in METHODS if name not in NOT_MEASURED], SETTINGS
    if args.experiment is not None:
        content = tomllib.loads(args.experiment.read_text("utf-8"))
        methods, wanted = content["grid"]["method"], content["training"]
        if args.encoder is not None:
            wanted["base"] = {"encoder": args.encoder}
    silence_transformers()
    set_quiet(True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        signals = stack.enter_context(StopSignals())
        trainers: dict[str, StageTrainer] = {}
        first_stages: set[tuple[str, str]] = set()
        precisions = args.precision or [wanted.get("precision", "auto")]
        for name, precision in itertools.product(methods, precisions):
            told = f" {precision}" if precision != precisions[0] else ""
            steps = {stage.name: 10_000 for stage in METHODS[name].stages}
            rates = {stage.name: 1e-3 for stage in METHODS[name].stages}
            settings = {
                **wanted,
                "method": name,
                "precision": precision,
                "dataset": str(args.dataset),
                "steps": steps,
                "learning_rate": rates,
            }
            if name == "sft":
                del settings["rationale_source"]
            config, processes = parse_config(settings, name), Processes()
            given = stack.enter_context(prepared(config, processes, args.dataset))
            log = RunLog(folder / "log.jsonl", (), {}, {})
            context = RunContext(config, folder, processes, log, signals, {}, {}, given.bfloat16)
            for own in config.stages():
                if own.name == "stage1":
                    if (config.chosen_layout, precision) in first_stages:
                        continue  # Stage 1 is shared by the methods of a layout
                    first_stages.add((config.chosen_layout, precision))
                train, validation = given.features(own.name)
                plan = given.plans[own.name]
                trainer = StageTrainer(context, own, given.model, train, validation, plan, finished={})
                if args.bundle is not None:
                    load_weights(trainer.model, load_file(args.bundle / "model" / "model.safetensors"))
                trainer.step = 8_000
                trainers[(f"{name} {own.name}" if name.startswith("r2d") else name) + told] = trainer
                trainer.train_step()
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(args.rounds):
            for name, trainer in trainers.items():
                started = time.perf_counter()
                for _ in range(args.steps):
                    trainer.train_step()
                seconds[name].append((time.perf_counter() - started) / args.steps)
    print("| stage | seconds a step | ratio to r2d's Stage 2 |\n|---|---|---|")
    for name, own in seconds.items():
        ratios = [value / other for value, other in zip(own, seconds[REFERENCE], strict=True)]
        print(
            f"| {name} | {statistics.median(own):.3f} ({min(own):.3f} to {max(own):.3f}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()

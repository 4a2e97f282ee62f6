"""Training in one pass against two prompts: examples per second in turns, and peak memory each in its own process.

    r2d data import pubmedqa ori_pqal.json --test-ids test_ground_truth.json --out runs/pubmedqa
    python benchmarks/one_pass.py runs/pubmedqa [--shape base --batch-size 8]

The same random T5 in Stage 2 at pi = 0.9, on the same records, step by step, with dropout as T5 has it. Both take the
same batches: a round is the same steps of both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from training import SHAPES, new_engine, new_model, seconds

from reason2decide.console import set_quiet
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.model.hub import silence_transformers
from reason2decide.training import memory
from reason2decide.training.tiny import train_tokenizer
from reason2decide.training.trainer import StageTrainer

LAYOUTS = ("two-prompt", "one-pass")


def engine(layout: str, args: argparse.Namespace, folder: Path) -> StageTrainer:
    dataset = DatasetFolder.open(args.dataset)
    tokenizer = train_tokenizer((record.text for record in dataset.split("train")), 8000)
    changes = {"conditioning_dropout": args.conditioning_dropout}
    return new_engine(new_model(args, tokenizer), tokenizer, dataset, args, folder / layout, layout=layout, **changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", default="human")
    parser.add_argument("--conditioning-dropout", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--memory-of", choices=LAYOUTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.bfloat16 = args.device == "cuda"
    set_quiet(True), silence_transformers()
    with tempfile.TemporaryDirectory() as folder:
        if args.memory_of:
            trainer = engine(args.memory_of, args, Path(folder))
            seconds(trainer.train_step, args.steps * args.rounds, args.device)
            print(memory.peak_bytes(trainer.device))
            return
        trainers = {layout: engine(layout, args, Path(folder)) for layout in LAYOUTS}
        for trainer in trainers.values():
            trainer.train_step()
        speeds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
        for _ in range(args.rounds):
            for layout, trainer in trainers.items():
                taken = seconds(trainer.train_step, args.steps, args.device)
                speeds[layout].append(args.steps * args.batch_size / taken)
        ratios = [one / two for two, one in zip(*(speeds[layout] for layout in LAYOUTS), strict=True)]
    print(", ".join(f"{layout} {statistics.median(values):.3f} examples/s" for layout, values in speeds.items()))
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)")
    for layout in LAYOUTS:
        own = subprocess.run(
            [sys.executable, *sys.argv, "--memory-of", layout], capture_output=True, text=True, check=True
        )
        print(f"{layout}: memory peak {int(own.stdout) / memory.GIB:.2f} GiB")


if __name__ == "__main__":
    main()

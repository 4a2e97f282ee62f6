"""The data path at 10 thousand, 100 thousand and a million records: seconds and resident memory, each in a process.

    python benchmarks/data_path.py [--sizes 10000 100000 1000000]

Tokenising (once), opening the cached tables again, planning an epoch, and reading the batches of 2,000 steps of 16. The
records are synthetic calls, repeated under ids of their own. Memory is what the process holds for itself (anonymous
pages): pages of mapped files are the system's to take back at any time, and are shown apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from reason2decide.console import set_quiet
from reason2decide.data.dataset_folder import DatasetFolder, write_dataset
from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.model.prompt_encoder import PromptEncoder
from reason2decide.training.base import load_base
from reason2decide.training.config_file import parse_config
from reason2decide.training.features import SplitFeatures, TokenCache
from reason2decide.training.stage_plan import batch_plan

SIMULATED, STEPS, BATCH = 4000, 2000, 16


def memory() -> tuple[float, float]:
    """Megabytes of anonymous and of file pages that are resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return int(values["RssAnon"]) / 1024, int(values["RssFile"]) / 1024


def repeated(records: list[Record], size: int) -> Iterator[Record]:
    for number, record in enumerate(itertools.islice(itertools.cycle(records), size)):
        yield replace(record, id=f"r{number}", group=None)


def measure(folder: Path) -> dict[str, float]:
    """One size, in a process of its own."""
    dataset = DatasetFolder.open(folder)
    few = list(itertools.islice(dataset.split("train"), SIMULATED))
    _, tokenizer = load_base("tiny", texts=lambda: (record.text for record in few), seed=0)
    config = parse_config(
        {
            "method": "r2d-no-stage1",
            "base": "tiny",
            "dataset": str(folder),
            "rationale_source": "llm",
            "steps": STEPS,
            "batch_size": BATCH,
        },
        "the benchmark's configuration",
    )
    (stage,) = config.stages()
    before = memory()
    found: dict[str, float] = {}

    def open_tables() -> SplitFeatures:
        cache = TokenCache(folder / ".tokens", tokenizer)
        encoder, records = PromptEncoder(tokenizer, config.lengths), dataset.split("train")
        features = SplitFeatures(records, dataset.hashes["train"], dataset.info.labels, encoder, cache)
        return features.with_source("llm")

    started = time.perf_counter()
    open_tables()
    found["tokenising"] = time.perf_counter() - started
    started = time.perf_counter()
    features = open_tables()
    found["opening"] = time.perf_counter() - started
    started = time.perf_counter()
    plan = batch_plan(config, stage, features, 1)
    plan.step(0)
    found["planning"] = time.perf_counter() - started
    started = time.perf_counter()
    for step in range(STEPS):
        for batch in plan.step(step % max(1, len(features) // BATCH)):
            [features[row] for row in batch.tolist()]
    found["reading"] = time.perf_counter() - started
    after = memory()
    return {**found, "before": before[0], "after": after[0], "files": after[1] - before[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", type=Path, help="measure this dataset and print it as JSON")
    args = parser.parse_args()
    set_quiet(True)
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    print("records | tokenising s | opening s | planning s | 2,000 steps s | own memory MB | grown by MB | mapped MB")
    with tempfile.TemporaryDirectory() as name:
        calls = list(synthesize_calls(Path(name) / "calls", train=SIMULATED).split("train"))
        for size in args.sizes:
            folder = Path(name) / str(size)
            info = DatasetFolder.open(Path(name) / "calls").info
            write_dataset(folder, info, {"train": repeated(calls, size)})
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(folder)], capture_output=True, text=True, check=True
            )
            m = json.loads(done.stdout)
            speeds = " | ".join(f"{m[key]:.2f}" for key in ("tokenising", "opening", "planning", "reading"))
            print(
                f"{size:,} | {speeds} | {m['after']:.0f} | {m['after'] - m['before']:.1f} | {m['files']:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

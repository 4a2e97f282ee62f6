"""Import, check and tokenising by several processes: seconds of each, in turns, and whether the bytes are the same.

    python benchmarks/preparing.py [--size 100000] [--workers 1 2] [--rounds 3]

A CSV file of this many synthetic calls, repeated under ids of their own. Processes import this file anew, as they do
the `r2d` script: what is slow to import is imported where it is used.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIMULATED = 4000


def prepare(size: int, workers: list[int], rounds: int) -> None:
    """Print the seconds of import, check and tokenising for each number of processes, in turns."""
    from reason2decide.data.check import check_dataset
    from reason2decide.data.dataset_folder import DatasetFolder
    from reason2decide.data.sources.synthetic_calls import synthesize_calls
    from reason2decide.data.sources.table import import_table
    from reason2decide.data.sources.table_records import Columns
    from reason2decide.model.prompt_encoder import Lengths, PromptEncoder
    from reason2decide.parallel import use_cores
    from reason2decide.training.base import load_base
    from reason2decide.training.features import SplitFeatures, TokenCache

    found: dict[tuple[str, int], list[float]] = {}
    bytes_made: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        calls = list(synthesize_calls(home / "calls", train=SIMULATED).split("train"))
        with (home / "calls.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("id", "text", "label", "rationale"))
            for number in range(size):
                own = calls[number % SIMULATED]
                writer.writerow((f"r{number}", f"Call {number}. {own.text}", own.label, own.rationales["llm"]))
        _, tokenizer = load_base("tiny", texts=lambda: (own.text for own in calls), seed=0)
        columns = Columns(text=("text",), label="label", id="id", rationales={"llm": "rationale"})
        for number, count in itertools.product(range(rounds), workers):
            use_cores(count)
            data = home / f"{number}-{count}"

            def timed(what: str, work: Callable[[], object], count: int = count) -> Any:
                started = time.perf_counter()
                result = work()
                found.setdefault((what, count), []).append(time.perf_counter() - started)
                return result

            def tokenise(data: Path = data) -> None:
                dataset = DatasetFolder.open(data)
                encoder, cache = PromptEncoder(tokenizer, Lengths()), TokenCache(data / ".tokens", tokenizer)
                split = dataset.split("train")
                SplitFeatures(split, dataset.hashes["train"], dataset.info.labels, encoder, cache).with_source("llm")

            timed("import", lambda data=data: import_table([home / "calls.csv"], data, columns, name="calls"))
            report = timed("check", lambda data=data: check_dataset(data))
            timed("tokenising", tokenise)
            made = {
                "import": [path.read_bytes() for path in sorted(data.iterdir()) if path.is_file()],
                "check": [json.dumps({**report.to_json(), "path": ""}).encode()],
                "tokenising": [path.read_bytes() for path in sorted(data.rglob("tokens*"))],
            }
            for what, content in made.items():
                bytes_made.setdefault(what, set()).add(hashlib.sha256(b"".join(content)).hexdigest())
            shutil.rmtree(data)
    for (what, count), seconds in sorted(found.items()):
        spread = f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"
        ratios = [one / own for one, own in zip(found[what, workers[0]], seconds, strict=True)]
        print(f"{what}, {count} processes: {spread}, {statistics.median(ratios):.2f} x", end="")
        print(", the same bytes" if len(bytes_made[what]) == 1 else ", OTHER BYTES")


def main() -> None:
    """Read the arguments."""
    from reason2decide.console import set_quiet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    set_quiet(True)
    prepare(args.size, args.workers, args.rounds)


if __name__ == "__main__":
    main()

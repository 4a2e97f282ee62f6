"""How fast and how large batches are: workers against the engine's own loop, reading, and memory by number of rows.

    python benchmarks/batch.py speed EXPORT DATASET [--rows 200] [--repeats 5]
    python benchmarks/batch.py read [--rows 10000 100000 1000000]
    python benchmarks/batch.py memory EXPORT [--rows 1000 10000]
    python benchmarks/batch.py driver EXPORT [--rows 10000 1000000 10000000]
    python benchmarks/batch.py evaluate PARTS DATASET [--rows 10000 100000 1000000] [--labels-only]

`speed` alternates, in one run: the predictor's own loop with one and two threads, one worker with as many, two workers
with one thread each. Workers are timed once their models are loaded. `read` is what happens before the first decision:
every row parsed, ids compared, files hashed. `memory` decides short texts and prints the peaks of this process and of
its workers. `driver` does so with workers that answer at once, without a model: what it takes to read, send, get back
and write any number of rows. `evaluate` repeats the decisions of PARTS, made of DATASET's test split, as often as asked
for, and prints the time and the peak of measuring them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import tomli_w
from peak import Peak

from reason2decide.batch.decided import DecidedFolder
from reason2decide.batch.decider import BatchWork, Decider
from reason2decide.batch.input import BatchInput, Chunk, InputFile
from reason2decide.batch.job import part_folder
from reason2decide.batch.storage import Patience
from reason2decide.batch.workers import Workers
from reason2decide.data.cases import Cases
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import Prediction, Undecided
from reason2decide.data.records import Record
from reason2decide.files import sha256_file

PART = 25
AT_ONCE = "R2D_BENCHMARK_AT_ONCE"  # environment variable: workers answer at once


def speed(export: Path, dataset: Path, rows: int, repeats: int) -> None:
    """Print the rows a second of each way, and their ratios within a repeat."""
    lines = (dataset / "test.jsonl").read_text("utf-8").splitlines()[:rows]
    records = [Record(row["id"], row["text"]) for row in map(json.loads, lines)]
    chunks = [Chunk(index // PART, records[index : index + PART]) for index in range(0, len(records), PART)]
    loops = {threads: Decider(export, threads=threads) for threads in (1, 2)}

    def loop(threads: int) -> None:
        for chunk in chunks:
            loops[threads].outcomes(chunk.rows)

    def crew(workers: Workers) -> None:
        for _ in workers.decide(iter(chunks), lambda count: None):
            pass

    ways: dict[str, Callable[[], None]] = {
        "own loop, one thread": lambda: loop(1),
        "own loop, two threads": lambda: loop(2),
    }
    with Workers(BatchWork(export), 1) as one, Workers(BatchWork(export), 2) as two:
        ways["one worker, two threads"] = lambda: crew(one)
        ways["two workers, one thread each"] = lambda: crew(two)
        with _one_thread(export) as single:
            ways["one worker, one thread"] = lambda: crew(single)
            found: dict[str, list[float]] = {name: [] for name in ways}
            for repeat in range(repeats + 1):  # the first one warms up
                for name, way in ways.items():
                    started = time.perf_counter()
                    way()
                    if repeat:
                        found[name].append(len(records) / (time.perf_counter() - started))
    for name, rates in found.items():
        print(f"{name}: {statistics.median(rates):.1f} rows/s ({min(rates):.1f} to {max(rates):.1f})")
    for over, under in (
        ("two workers, one thread each", "one worker, one thread"),
        ("two workers, one thread each", "one worker, two threads"),
        ("one worker, one thread", "own loop, one thread"),
        ("one worker, two threads", "own loop, two threads"),
    ):
        ratios = [first / second for first, second in zip(found[over], found[under], strict=True)]
        print(f"{over} / {under}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _one_thread(export: Path) -> Workers:
    """One worker that leaves the second core alone."""

    class Single(Workers):
        def __enter__(self) -> Workers:
            self.count = 1
            self._crew = [self._started(0)]
            return self

    return Single(BatchWork(export, threads=1))


def write_rows(path: Path, rows: int) -> None:
    """A file of short cases."""
    with path.open("w") as stream:
        for index in range(rows):
            text = f"{index % 90} yo with a cough for {index % 9} days, no fever, no chest pain, asks what to do"
            stream.write(json.dumps({"id": f"call-{index}", "text": text}) + "\n")


def read(rows: int) -> None:
    """Print the seconds and the peak memory of reading through a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cases.jsonl"
        write_rows(path, rows)
        started = time.perf_counter()
        BatchInput(str(path), Cases(path), Patience(0)).read_through("refuse")
        seconds = time.perf_counter() - started
    print(f"{rows} rows: {seconds:.1f} s, {rows / seconds:.0f} rows/s, peak {_peak(resource.RUSAGE_SELF)} MB")


def memory(export: Path, rows: int, rows_per_part: int = 200) -> None:
    """Print the peak memory of a batch, in this process and in the largest of its workers."""
    from reason2decide.batch.run import decide_batch
    from reason2decide.batch.settings import BatchSettings

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cases.jsonl"
        write_rows(path, rows)
        started = time.perf_counter()
        with Peak() as peak:
            decide_batch(export, str(path), f"{folder}/out", BatchSettings(rows_per_part=rows_per_part))
        seconds = time.perf_counter() - started
    print(
        f"{rows} rows: {seconds:.0f} s, {rows / seconds:.0f} rows/s, peak {peak.megabytes} MB here, "
        f"{peak.of_children} MB in a worker",
        flush=True,
    )


class AtOnce:
    """A worker's part that answers without a model."""

    def outcomes(self, given: Sequence[Record | Undecided], on_progress: Callable[[int], None]) -> list[Prediction]:
        p = {"home care": 0.2, "see a doctor within 24 hours": 0.7, "call an ambulance": 0.1}
        return [Prediction(own.id, "home care", p, "No fever and no chest pain, so it can wait.") for own in given]


if os.environ.get(AT_ONCE):  # workers import this file too
    Decider.of = classmethod(lambda cls, work: AtOnce())  # type: ignore[method-assign,assignment]


def driver(export: Path, rows: int) -> None:
    """Print the time and the peak memory of a batch whose workers answer at once."""
    os.environ[AT_ONCE] = "1"
    memory(export, rows, rows_per_part=2000)


def repeat(parts: Path, dataset: Path, rows: int, folder: Path, labels_only: bool) -> None:
    """Write a dataset and a folder of parts of `rows` rows, repeating those given under new ids."""
    decided = {own.id: own for own in DecidedFolder.open(str(parts)) if isinstance(own, Prediction)}
    info = DatasetFolder.open(dataset).info
    records = list(DatasetFolder.open(dataset).split("test"))

    def again(index: int) -> str:
        return f"{index}-{records[index % len(records)].id}"

    data = folder / "data"
    data.mkdir()
    with (data / "test.jsonl").open("w") as stream:
        for index in range(rows):
            record = replace(records[index % len(records)], id=again(index))
            stream.write(json.dumps(record.to_json()) + "\n")
    toml = tomllib.loads((dataset / "dataset.toml").read_text())
    toml["files"] = {"test": {"records": rows, "sha256": sha256_file(data / "test.jsonl")}}
    (data / "dataset.toml").write_text(tomli_w.dumps(toml))
    assert DatasetFolder.open(data).info == info
    job = replace(DecidedFolder.open(str(parts)).job, files=[InputFile("test.jsonl", "0", rows)])
    (folder / "parts").mkdir()
    job.write(folder / "parts")
    target = part_folder(folder / "parts", job)
    for number in job.parts:
        outcomes = [
            replace(decided[records[index % len(records)].id], id=again(index))
            for index in range(number * job.size, number * job.size + job.rows_of(number))
        ]
        target.write(number, [replace(own, rationale=None) for own in outcomes] if labels_only else outcomes)


def evaluate(parts: Path, dataset: Path, rows: int, labels_only: bool, workers: int) -> None:
    """Print the seconds and the peak memory of measuring repeated decisions."""
    from reason2decide.evaluation.settings import Settings
    from reason2decide.workflows.evaluate_parts import evaluate_parts

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own, whose memory is not counted.
        context = multiprocessing.get_context("spawn")
        writer = context.Process(target=repeat, args=(parts, dataset, rows, folder, labels_only))
        writer.start()
        writer.join()
        assert writer.exitcode == 0
        started = time.perf_counter()
        settings = Settings(slices=("age_years", "length"))
        with Peak() as peak:
            evaluate_parts(str(folder / "parts"), folder / "data", folder / "results", settings, workers=workers)
        seconds = time.perf_counter() - started
    print(
        f"{rows} rows: {seconds:.0f} s, {rows / seconds:.0f} rows/s, peak {peak.megabytes} MB here, "
        f"{peak.of_children} MB in a worker",
        flush=True,
    )


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss // 1024


def main() -> None:
    """Each number of rows is measured in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "read", "memory", "driver", "evaluate"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--labels-only", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    if given.what == "speed":
        speed(*given.paths, rows=(given.rows or [200])[0], repeats=given.repeats)
        return
    rows = given.rows or ([1_000, 10_000] if given.what == "memory" else [10_000, 100_000, 1_000_000])
    if len(rows) == 1:
        if given.what == "read":
            read(rows[0])
        elif given.what in ("memory", "driver"):
            {"memory": memory, "driver": driver}[given.what](given.paths[0], rows[0])
        else:
            evaluate(*given.paths, rows=rows[0], labels_only=given.labels_only, workers=given.workers)
        return
    for number in rows:
        command = [sys.executable, __file__, given.what, *map(str, given.paths), "--rows", str(number)]
        command += ["--labels-only"] * given.labels_only + ["--workers", str(given.workers)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

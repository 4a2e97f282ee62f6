"""Accuracy on long notes by how they are read: the beginning only, in windows, or in one long prompt.

    python benchmarks/long_notes.py BUNDLE DATASET [--records 200] [--times 1 2 4 8]

A test note of a triage dataset is made TIMES as long as the model's prompt with sentences that change no decision; the
note itself stands at the beginning, in the middle or at the end, drawn by a hash of its id. Prints a Markdown table:
macro-F1, the share decided as less urgent than the gold label, the share of deferred decisions among those read by
`defer`, and seconds per note.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from sklearn.metrics import f1_score

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.model.decision import Decision
from reason2decide.model.predictor import Predictor
from reason2decide.model.reading import ReadingSettings

FILLER = "caller is calm. asks for a work note for this week. eats and drinks as usual. "


def lengthened(record: Record, predictor: Predictor, times: int) -> Record:
    """The record's note among filler sentences, together about `times` as long as the model's prompt."""
    if times == 1:
        return record
    per_filler = len(predictor.encoder.text_ids([FILLER])[0])
    count = times * predictor.bundle.manifest.lengths.input // per_filler
    before = [0, count // 2, count][zlib.crc32(record.id.encode()) % 3]
    text = FILLER * before + record.text + " " + FILLER * (count - before)
    return Record(record.id, text, record.label)


def row(name: str, predictor: Predictor, records: Sequence[Record], labels: Sequence[str]) -> str:
    started = time.monotonic()
    decisions = [decision for decision in predictor.decide(records) if isinstance(decision, Decision)]
    seconds = (time.monotonic() - started) / len(records)
    gold = [str(record.label) for record in records]
    decided = [decision.label for decision in decisions]
    macro_f1 = f1_score(gold, decided, labels=list(labels), average="macro", zero_division=0)
    rank = {label: place for place, label in enumerate(labels)}
    under = sum(rank[mine] < rank[own] for mine, own in zip(decided, gold, strict=True)) / len(gold)
    deferred = sum(decision.deferred for decision in decisions) / len(gold)
    return f"| {name} | {macro_f1:.3f} | {under:.3f} | {deferred:.3f} | {seconds:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    dataset = DatasetFolder.open(args.dataset)
    labels = dataset.info.labels
    ordered = labels.values if labels.urgent == "last" else labels.values[::-1]
    records = list(dataset.split("test"))[: args.records]
    limit = Predictor.load(args.bundle).bundle.manifest.lengths.input
    print("| length / prompt | read | macro-F1 | under-triage | deferred | s per note |\n|---|---|---|---|---|---|")
    for times in args.times:
        ways = {
            "beginning (defer)": ReadingSettings("defer"),
            "windows": ReadingSettings("windows"),
            "one long prompt": ReadingSettings("defer", (times + 1) * limit),
        }
        for name, reading in ways.items():
            predictor = Predictor.load(args.bundle, reading)
            long = [lengthened(record, predictor, times) for record in records]
            print(f"| {times} " + row(name, predictor, long, ordered), flush=True)


if __name__ == "__main__":
    main()

"""Test calls side by side, chosen by the hash of their ids: the note, the decision, and reasons of two models.

    python benchmarks/side_by_side.py runs/calls OLD_RUN/bundle NEW_RUN/bundle [--records 20]

For each call the reason of the old model for its decision, that of the new model for its own, and the new model's
reason for its second choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from reason2decide.console import set_quiet
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.sampling import some_explained
from reason2decide.model.predictor import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--records", type=int, default=20)
    args = parser.parse_args()
    set_quiet(True)
    dataset, old, new = DatasetFolder.open(args.dataset), Predictor.load(args.old), Predictor.load(args.new)
    records = some_explained(dataset.split("test"), "llm", args.records)
    before, after = list(old.predict(records)), list(new.predict(records))
    second = []
    for prediction in after:
        others = {k: p for k, p in (prediction.probabilities or {}).items() if k != prediction.predicted_label}
        second.append(max(others, key=others.__getitem__))
    why_not = new.rationales(records, second)
    for record, one, other, label, reason in zip(records, before, after, second, why_not, strict=True):
        print(f"**{record.id}**, gold label: {record.label}\n\n> {record.text}\n")
        print(f"- {old.bundle.manifest.method}, *{one.predicted_label}*: {one.rationale}")
        print(f"- {new.bundle.manifest.method}, *{other.predicted_label}*: {other.rationale}")
        print(f"- {new.bundle.manifest.method}, the case for *{label}*: {reason}\n")


if __name__ == "__main__":
    main()

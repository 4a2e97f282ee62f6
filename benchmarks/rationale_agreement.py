"""Does the written reason argue for the decision made? On synthetic calls that can be read off.

    python benchmarks/rationale_agreement.py DATASET RESULTS...

The simulator's `llm` rationales end in one sentence about urgency, which stands for exactly one label. For each results
folder this prints how often the generated rationale's last sentence stands for the label that was decided: of all
records, of those decided right, and of those decided wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reason2decide.data.predictions import read_predictions
from reason2decide.data.records import DatasetFolder


def last_sentence(rationale: str) -> str:
    return rationale.strip().rstrip(".").split(". ")[-1]


def main() -> None:
    records = {record.id: record for record in DatasetFolder.open(Path(sys.argv[1])).split("test")}
    label_of = {last_sentence(record.rationales["llm"]): record.label for record in records.values()}
    assert len(label_of) == len(set(label_of.values())), "each urgency sentence stands for one label"
    print("| results | all | decided right | decided wrong |\n|---|---|---|---|")
    for folder in map(Path, sys.argv[2:]):
        agrees: dict[bool, list[bool]] = {True: [], False: []}
        for prediction in read_predictions(folder / "predictions.jsonl"):
            said = label_of.get(last_sentence(prediction.rationale or ""))
            right = prediction.predicted_label == records[prediction.id].label
            agrees[right].append(said == prediction.predicted_label)
        shares = [sum(own) / len(own) for own in (agrees[True] + agrees[False], agrees[True], agrees[False])]
        print(f"| {folder} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")


if __name__ == "__main__":
    main()

"""Where false citations come from: what the note says of each finding that a reason gets wrong.

    python benchmarks/false_citations.py runs/calls RESULTS...

On synthetic calls, whose facts are known. *Read as present*: the note denies it, or says it of others or of the past.
*Read as absent*: the patient has it, the reason denies it or says that it is not the patient's. *Made up*: the note
does not name it. Shares are of reasons, for all test calls, for those whose note has only wordings of training, and for
the others; then of the findings that decided, those that the reason leaves out.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import read_predictions
from reason2decide.evaluation.citations import citations, deciding, true_now

KINDS = ("read as present", "read as absent", "made up")


def main() -> None:
    records = {record.id: record for record in DatasetFolder.open(Path(sys.argv[1])).split("test")}
    print("| results | notes | reasons | " + " | ".join(KINDS) + " | deciding findings left out |\n|" + "---|" * 7)
    for folder in map(Path, sys.argv[2:]):
        counts: dict[str, Counter[str]] = {name: Counter() for name in ("all", "known wordings", "unseen wordings")}
        for prediction in read_predictions(folder / "predictions.jsonl"):
            record = records[prediction.id]
            cited, true, decided = citations(prediction.rationale or ""), true_now(record), deciding(record)
            absent = {*record.meta["denied"], *record.meta["not_now_or_not_theirs"]}
            false = cited.present - true
            wrong = (bool(false & absent), bool(cited.denied & true), bool(false - absent))
            for name in ("all", "unseen wordings" if record.meta["unseen_wordings"] else "known wordings"):
                counts[name].update(kind for kind, found in zip(KINDS, wrong, strict=True) if found)
                counts[name].update({"reasons": 1, "deciding": len(decided), "out": len(decided - cited.present)})
        for name, own in counts.items():
            shares = " | ".join(f"{own[kind] / own['reasons']:.3f}" for kind in KINDS)
            print(f"| {folder} | {name} | {own['reasons']} | {shares} | {own['out'] / own['deciding']:.3f} |")


if __name__ == "__main__":
    main()

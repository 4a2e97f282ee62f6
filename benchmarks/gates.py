"""How often the gates of written rationales drop those that people or rules wrote, most of which are good.

    python benchmarks/gates.py runs/calls llm nurse_refined nurse       # a dataset and its sources
    python benchmarks/gates.py runs/cqa llm --splits train validation test

Prints for each source the share that any gate drops, and each gate alone; for a source `X_refined` beside `X`, also
what the two gates of `r2d refine` drop.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.llm.prompt_files import load_prompt
from reason2decide.llm.teach.fidelity import dropped, findings, turned
from reason2decide.llm.teach.gates import GatedCase, failed_gates, instructions


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--splits", nargs="+", default=["test"])
    told = parser.parse_args()
    dataset = DatasetFolder.open(told.dataset)
    records = [record for split in told.splits for record in dataset.split(split)]
    words = instructions(load_prompt("rationalize"))
    for source in told.sources:
        counts: Counter[str] = Counter()
        own = [record for record in records if source in record.rationales]
        for record in own:
            choices = record.choices_or(dataset.info.labels)
            failed = failed_gates(record.rationales[source], GatedCase(record.text, record.label or "", choices, words))
            counts.update(["any gate"] * bool(failed) + failed)
            note = record.rationales.get(source.removesuffix("_refined"))
            if source.endswith("_refined") and note is not None:
                written = record.rationales[source]
                counts["turned"] += bool(turned(written, note))
                counts["dropped"] += 2 * len(dropped(written, note)) > len(findings(note))
        shown = ", ".join(f"{name} {count / len(own):.1%}" for name, count in counts.items())
        print(f"{source}: n = {len(own)}; {shown}")


if __name__ == "__main__":
    main()

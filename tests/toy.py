"""A toy task whose label hangs on one cue, and runs of a few steps on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record
from reason2decide.training.config_file import parse_config
from reason2decide.training.run import train

LABELS = LabelSet(("home care", "see a doctor", "call an ambulance"))
CUES = {"home care": "mild rash", "see a doctor": "high fever", "call an ambulance": "chest pain"}


def record(index: int) -> Record:
    label = LABELS.values[index % 3]
    rationales = {"llm": f"The {CUES[label]} decides."} if index % 4 else {}
    return Record(f"r{index}", f"{20 + index} yo with {CUES[label]} since {index % 5} days", label, rationales)


def write_toy(folder: Path) -> DatasetFolder:
    """The toy dataset; a quarter of its records have no rationale."""
    splits = {"train": range(48), "validation": range(48, 60), "test": range(60, 72)}
    return write_dataset(
        folder,
        DatasetInfo("toy", "triage", LABELS, ("llm",)),
        {name: [record(i) for i in indices] for name, indices in splits.items()},
    )


def write_contrasted(folder: Path) -> DatasetFolder:
    """The toy dataset, in which every other record also argues for other labels."""
    toy, splits = write_toy(folder / "plain"), {}
    for split in toy.hashes:
        splits[split] = [
            replace(
                own,
                contrasts={
                    "llm": {other: f"It could be {other} too." for other in LABELS.values[:2] if other != own.label}
                }
                if i % 2
                else {},
            )
            for i, own in enumerate(toy.split(split))
        ]
    return write_dataset(folder / "contrasted", toy.info, splits)


def settings(dataset: DatasetFolder, /, **changes: Any) -> dict[str, Any]:
    """A configuration of four steps a stage; validation and checkpoint come at a stage's end only, to be quick."""
    return {
        "method": "r2d",
        "base": "tiny",
        "dataset": str(dataset.path),
        "rationale_source": "llm",
        "steps": 4,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "evaluate_every": 1000,
        "lengths": {"input": 64, "rationale": 24, "label": 32},
        **changes,
    }


def run(dataset: DatasetFolder, out: Path, /, **changes: Any) -> Path:
    return train(parse_config(settings(dataset, **changes), "test"), out)

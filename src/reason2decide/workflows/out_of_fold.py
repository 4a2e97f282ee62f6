"""Predictions of the training split by models that have not learnt from the record they predict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from reason2decide.console import say, track
from reason2decide.data.dataset_folder import DatasetFolder, write_dataset
from reason2decide.data.defaults import FOLDS
from reason2decide.data.predictions import read_predictions, write_predictions
from reason2decide.data.records import Record
from reason2decide.data.sampling import id_hash
from reason2decide.errors import ConfigError, DataError
from reason2decide.files import new_file
from reason2decide.model.predictor import Predictor
from reason2decide.syntax import Malformed, parse_json
from reason2decide.training.config import Config
from reason2decide.training.run import train

PREDICTIONS, FOLDS_MADE = "predictions.jsonl", "folds.json"


def predict_out_of_fold(config: Config, out: Path, folds: int = FOLDS) -> Path:
    """Train `folds` models, each without one part of the training split, and let it predict that part.

    Records of one group stay together. What is there already is not done again, so an interrupted call goes on where
    it stopped.

    Returns:
        The file of all predictions, in the order of the training split's folds.

    Raises:
        ConfigError: fewer than two folds; or `out` has folds of another configuration, other data or another number.
        DataError: a fold has no records, or the data cannot be used.
        ConfigError, BaseModelError, Interrupted: as `train`.
    """
    if folds < 2:
        raise ConfigError(f"there are {folds} folds; expected at least 2")
    dataset = DatasetFolder.open(config.dataset)
    learnt = config.identity()
    _require_same_folds(
        out, {"folds": folds, "dataset": dict(dataset.hashes), **learnt["common"], "stages": learnt["stages"]}
    )
    parts = []
    for fold in range(folds):
        folder = out / f"fold-{fold}"
        part = folder / PREDICTIONS
        if not part.is_file():
            say(f"fold {fold + 1} of {folds}")
            held_out = _split(dataset, folder / "dataset", fold, folds)
            own = config.model_copy(update={"dataset": held_out.path})
            predictor = Predictor.load(train(own, folder / "run", resume="auto"))
            records = held_out.split("test")
            with new_file(part, force=True) as partial:
                write_predictions(partial, track(predictor.predict(records), "deciding", len(records), "records"))
        parts.append(part)
    whole = out / PREDICTIONS
    with new_file(whole, force=True) as partial:
        write_predictions(partial, chain.from_iterable(map(read_predictions, parts)))
    return whole


def _require_same_folds(out: Path, asked: Mapping[str, Any]) -> None:
    """Note in the folder what its folds are of, or refuse if they are of something else."""
    file, asked = out / FOLDS_MADE, json.loads(json.dumps(asked))
    begun = (next(out.glob(f"fold-*/{made}"), None) for made in (PREDICTIONS, "run/*/checkpoint-*"))
    if any(found is not None for found in begun):
        try:
            before = parse_json(file.read_bytes()) if file.is_file() else {}
        except Malformed:
            before = {}
        differing = [key for key in asked if not isinstance(before, dict) or before.get(key) != asked[key]]
        if differing:
            raise ConfigError(
                f"{out} has folds that differ from these in {', '.join(differing)}; give another --out, or remove it"
            )
    out.mkdir(parents=True, exist_ok=True)
    with new_file(file, force=True) as partial:
        partial.write_text(json.dumps(asked, indent=2), "utf-8")


def fold_of(record: Record, folds: int) -> int:
    """The fold of a record, by the hash of its group, or of its id where it has none."""
    return int.from_bytes(id_hash(record.group or record.id), "big") % folds


def _split(dataset: DatasetFolder, path: Path, fold: int, folds: int) -> DatasetFolder:
    """The dataset whose test split is one fold of the training split, and whose training split are the others."""

    def records(*, held_out: bool) -> Iterator[Record]:
        return (own for own in dataset.split("train") if (fold_of(own, folds) == fold) == held_out)

    for held_out, share in ((True, "none"), (False, "all")):
        if next(records(held_out=held_out), None) is None:
            raise DataError(f"fold {fold + 1} of {folds} has {share} of the training records; use fewer folds")
    splits = {
        "train": records(held_out=False),
        "validation": iter(dataset.split("validation")),
        "test": records(held_out=True),
    }
    return write_dataset(path, dataset.info, splits, force=path.exists())

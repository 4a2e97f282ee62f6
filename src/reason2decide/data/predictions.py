"""The only form of a model's output: `Prediction`, one line of `predictions.jsonl`, from any system."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reason2decide.errors import DataError

NO_ANSWER = ""  # the label if a system did not decide, or gave something that is not a label


@dataclass(frozen=True, slots=True)
class Prediction:
    """A system's decision on one record, with `probabilities` by label and a rationale where it gives them.

    Without a valid answer the label is `NO_ANSWER`, which is never right and never another label.
    """

    id: str
    predicted_label: str
    probabilities: Mapping[str, float] | None = None
    rationale: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The prediction as a JSON object without absent fields."""
        value: dict[str, Any] = {"id": self.id, "predicted_label": self.predicted_label}
        if self.probabilities is not None:
            value["probabilities"] = dict(self.probabilities)
        if self.rationale is not None:
            value["rationale"] = self.rationale
        return value


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one prediction per line."""
    with path.open("w", encoding="utf-8") as stream:
        for prediction in predictions:
            stream.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")


def read_predictions(path: Path) -> list[Prediction]:
    """Read a `predictions.jsonl`.

    Raises:
        DataError: the file is missing, a line is not JSON, or a prediction lacks its id or label; with its line.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected a predictions.jsonl")
    predictions = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
            if not isinstance(value, dict) or not all(
                isinstance(value.get(key), str) for key in ("id", "predicted_label")
            ):
                raise DataError(f"{path}, line {number}: expected an object with the strings id and predicted_label")
            predictions.append(
                Prediction(value["id"], value["predicted_label"], value.get("probabilities"), value.get("rationale"))
            )
    return predictions

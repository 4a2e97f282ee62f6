"""The only form of a model's output: `Prediction`, one line of `predictions.jsonl`, from any system."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from reason2decide.errors import DataError
from reason2decide.syntax import Malformed, parse_json, storable

NO_ANSWER = ""  # the label if a system did not decide, or gave something that is not a label


@dataclass(frozen=True, slots=True)
class Prediction:
    """A system's decision on one record, with `probabilities` by label and a rationale where it gives them.

    A trained model also says whether a person should decide (`deferred`), which labels it cannot rule out
    (`prediction_set`), and how many of the text's tokens it has read (`tokens_read` of `tokens`). Where reasons are
    checked, `reason_support` is the probability that it argues for the label, `reason_supports` whether it is enough.
    Without a valid answer the label is `NO_ANSWER`, which is never right and never another label.
    """

    id: str
    predicted_label: str
    probabilities: Mapping[str, float] | None = None
    rationale: str | None = None
    deferred: bool | None = None
    prediction_set: tuple[str, ...] | None = None
    tokens: int | None = None
    tokens_read: int | None = None
    reason_support: float | None = None
    reason_supports: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The prediction as a JSON object without absent fields."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Undecided:
    """A row without a decision, and why; the reason holds nothing of its text."""

    id: str
    reason: str


_KEYS = {key.name for key in fields(Prediction)}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_yes_or_no(value: object) -> bool:
    return isinstance(value, bool)


# Keys that a prediction may have: whether a value fits, and what is expected.
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "probabilities": (lambda value: isinstance(value, dict), "an object of label -> probability"),
    "rationale": (lambda value: isinstance(value, str), "text"),
    "deferred": (_is_yes_or_no, "true or false"),
    "prediction_set": (
        lambda value: isinstance(value, list) and all(isinstance(label, str) for label in value),
        "a list of labels",
    ),
    "tokens": (_is_count, "a whole number"),
    "tokens_read": (_is_count, "a whole number"),
    "reason_support": (lambda value: isinstance(value, int | float) and 0 <= value <= 1, "a number from 0 to 1"),
    "reason_supports": (_is_yes_or_no, "true or false"),
}


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one prediction per line."""
    with path.open("w", encoding="utf-8") as stream:
        for prediction in predictions:
            stream.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")


def read_predictions(path: Path) -> list[Prediction]:
    """Read a `predictions.jsonl`; raises as `predictions_in`."""
    return list(predictions_in(path))


def predictions_in(path: Path) -> Iterator[Prediction]:
    """The predictions of a `predictions.jsonl`, one at a time.

    Raises:
        DataError: the file is missing, a line is not JSON, or a prediction lacks its id or label; with its line.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected a predictions.jsonl")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not content.strip():
                continue
            try:
                value = parse_json(content)
            except Malformed as error:
                raise DataError(f"{path}, line {number}: {error}") from None
            if not isinstance(value, dict) or not all(
                isinstance(value.get(key), str) for key in ("id", "predicted_label")
            ):
                raise DataError(f"{path}, line {number}: expected an object with the strings id and predicted_label")
            for key, (fits, expected) in _FORMS.items():
                if value.get(key) is not None and not fits(value[key]):
                    raise DataError(f"{path}, line {number}: {key} is {value[key]!r:.40}; expected {expected}")
            yield prediction_of(value)


def prediction_of(value: Mapping[str, Any]) -> Prediction:
    """A prediction from a JSON object that has at least its id and label; other keys are left out."""
    known = {key: value[key] for key in _KEYS & value.keys()}
    if known.get("rationale") is not None:
        known["rationale"] = storable(known["rationale"])
    if known.get("prediction_set") is not None:
        known["prediction_set"] = tuple(known["prediction_set"])
    return Prediction(**known)

"""Further answers about a prediction, of the model itself, simulators and judges, to measure its rationale by.

A probe is data, one line of a file next to the predictions (`probes_path`); the metrics that read it run no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reason2decide.data.predictions import Prediction
from reason2decide.errors import DataError
from reason2decide.syntax import parse_json

PREDICTIONS, PROBES = "predictions.jsonl", "probes.jsonl"  # of a results folder


@dataclass(frozen=True, slots=True)
class Insertion:
    """A word that was inserted into a text, and the model's label and rationale after that."""

    word: str
    label: str
    rationale: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Answers about one record's prediction; a field is None if the question was not asked.

    From the model itself: its label when it reads only the rationale (`label_from_rationale`), also with the words of
    all labels masked (`label_from_masked_rationale`) and without the verdict (`label_from_reasons`); the rationale it
    writes when given `swapped_label`, its second choice, instead of its decision; the probability of its decision
    without the sentences of the text that the rationale cites (`p_without_cited`), and without as many words of others
    (`p_without_others`); and what became of label and rationale after each of the `insertions`.

    `simulated` has the label that each simulator predicts. They read the "text", the "rationale", the rationale with
    label words masked ("masked_rationale"), without the verdict ("reasons"), text and rationale ("both"), and the
    rationale for the swapped label ("swapped_rationale"), also without the verdict ("swapped_reasons").

    `judged` has the judges' mean score of the rationale, from 1 to 5, by criterion; `judged_by` names the judges and
    the version of their prompt. `about` is the hash of the answer that the probe is about (`answer_hash`), so that it
    is never taken for one about another system's; None in files that earlier versions wrote.
    """

    id: str
    about: str | None = None
    label_from_rationale: str | None = None
    label_from_masked_rationale: str | None = None
    label_from_reasons: str | None = None
    swapped_label: str | None = None
    swapped_rationale: str | None = None
    p_without_cited: float | None = None
    p_without_others: float | None = None
    insertions: tuple[Insertion, ...] = ()
    simulated: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, float] = field(default_factory=dict)
    judged_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_probed(self) -> bool:
        """Whether the model was asked more than to read its rationale."""
        return bool(self.insertions) or self.swapped_label is not None or self.p_without_cited is not None

    def to_json(self) -> dict[str, Any]:
        """The probe as a JSON object without absent fields."""
        return {key: value for key, value in asdict(self).items() if value not in (None, {}, ())}


def answer_hash(prediction: Prediction) -> str:
    """A hash of the decision and its rationale."""
    answer = json.dumps([prediction.predicted_label, prediction.rationale or ""])
    return hashlib.sha256(answer.encode()).hexdigest()[:16]


def probes_about(probes: Iterable[Probe], predictions: Sequence[Prediction]) -> list[Probe]:
    """The probes that are about these predictions, and not about other answers for the same records."""
    answers = {prediction.id: answer_hash(prediction) for prediction in predictions}
    return [probe for probe in probes if probe.about is None or probe.about == answers.get(probe.id)]


def probes_path(predictions: Path) -> Path:
    """Where the probes of a file are: `probes.jsonl` for `predictions.jsonl`, else `NAME.probes.jsonl`."""
    return predictions.with_name(PROBES if predictions.name == PREDICTIONS else f"{predictions.stem}.{PROBES}")


def write_probes(path: Path, probes: Iterable[Probe]) -> None:
    """Write one probe per line."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(probe.to_json(), ensure_ascii=False) + "\n" for probe in probes)


def read_probes(path: Path) -> list[Probe]:
    """Read what `write_probes` wrote.

    Raises:
        DataError: a line is not a probe; the message has its number.
    """
    probes = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                value = parse_json(line)
                insertions = tuple(Insertion(**insertion) for insertion in value.pop("insertions", ()))
                probes.append(Probe(**value, insertions=insertions))
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"{path}, line {number}: not a probe ({error}); evaluate again") from None
    return probes

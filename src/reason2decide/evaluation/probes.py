"""Further answers about a prediction, of the model itself, simulators and judges, to measure its rationale by.

A probe is data, one line of `probes.jsonl` next to `predictions.jsonl`; the metrics that read it run no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reason2decide.errors import DataError
from reason2decide.syntax import parse_json


@dataclass(frozen=True, slots=True)
class Probe:
    """Answers about one record's prediction; a field is None if the question was not asked.

    From the model itself: its label when it reads only the rationale (`label_from_rationale`), also with the words of
    all labels masked (`label_from_masked_rationale`); the rationale it writes when given `swapped_label`, its second
    choice, instead of its decision; its label and rationale after `inserted_word` was inserted into the text.

    `simulated` has the label that each simulator predicts. They read the "text", the "rationale", the rationale with
    label words masked ("masked_rationale"), text and rationale ("both"), and the rationale for the swapped label
    ("swapped_rationale").

    `judged` has the judges' mean score of the rationale, from 1 to 5, by criterion; `judged_by` names the judges and
    the version of their prompt.
    """

    id: str
    label_from_rationale: str | None = None
    label_from_masked_rationale: str | None = None
    swapped_label: str | None = None
    swapped_rationale: str | None = None
    inserted_word: str | None = None
    label_after_insertion: str | None = None
    rationale_after_insertion: str | None = None
    simulated: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, float] = field(default_factory=dict)
    judged_by: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The probe as a JSON object without absent fields."""
        return {key: value for key, value in asdict(self).items() if value not in (None, {})}


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
                probes.append(Probe(**parse_json(line)))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a probe ({error}); evaluate again") from None
    return probes

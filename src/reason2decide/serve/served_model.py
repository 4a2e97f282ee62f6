"""A model as the server sees it: decisions with what calibration says of them, and rationales. Nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import ConfigError
from reason2decide.files import sha256_file
from reason2decide.model.operating_point import ERROR_RATE, MISCOVERAGE
from reason2decide.model.predictor import Predictor


@dataclass(frozen=True, slots=True)
class Decision:
    """One text decided: calibrated probabilities by label, in the order of the label set.

    `prediction_set` holds the labels that split-conformal prediction cannot rule out, most probable first; `deferred`
    says that the confidence is under the threshold, so that a person should decide.
    """

    label: str
    probabilities: Mapping[str, float]
    prediction_set: tuple[str, ...]
    deferred: bool

    @property
    def confidence(self) -> float:
        """The calibrated probability of the label."""
        return self.probabilities[self.label]


class ServedModel:
    """A loaded bundle or export under a name. Its methods block; they are called from one thread at a time.

    Args:
        error_rate: wanted among the decisions that are not deferred; `miscoverage`: allowed to prediction sets. Both
            are looked up in the model's own validation outcomes.

    Raises:
        ConfigError: its records bring labels of their own, which no interface of the server can ask for.
        BundleError, MissingExtraError: as `Predictor.load`.
    """

    def __init__(
        self, name: str, path: Path, *, error_rate: float = ERROR_RATE, miscoverage: float = MISCOVERAGE
    ) -> None:
        self.name, self.path = name, path
        self.predictor = Predictor.load(path)
        manifest, calibration = self.predictor.bundle.manifest, self.predictor.bundle.calibration
        if manifest.labels.is_open:
            raise ConfigError(f"{path} has no labels of its own (each record brings choices), so it cannot be served")
        self.labels: LabelSet = manifest.labels
        self.created = manifest.created
        self.hash = sha256_file(path / "manifest.json")  # which holds the hash of every other file
        self.description = f"{manifest.method} on {manifest.dataset['name']}"
        self.operating_point = calibration.operating_point(error_rate, miscoverage)

    @property
    def explains(self) -> bool:
        """Whether the model writes rationales."""
        return self.predictor.explains

    @property
    def longest_text(self) -> str:
        """A text that fills all the model reads: what costs most."""
        return "warm-up " * self.predictor.bundle.manifest.lengths.input

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, before any cut."""
        return [len(ids) for ids in self.predictor.bundle.encoder.text_ids(texts)]

    def decide(self, texts: Sequence[str]) -> list[Decision]:
        """Decide on each text; a text's decision does not depend on the others of the batch."""
        found = self.predictor.distributions([Record(str(i), text) for i, text in enumerate(texts)])
        decisions = []
        for own in found:
            label = max(own, key=own.__getitem__)
            point = self.operating_point
            decisions.append(Decision(label, own, point.prediction_set(own), point.defers(own[label])))
        return decisions

    def explain(self, texts: Sequence[str], labels: Sequence[str]) -> list[str]:
        """The rationale of each text for its label: the decided one, or another ("why not ...?")."""
        return self.predictor.rationales([Record(str(i), text) for i, text in enumerate(texts)], labels)

    def stream(self, text: str, label: str) -> Iterator[str]:
        """The rationale of one text for a label, in pieces as they are written."""
        return self.predictor.stream(Record("0", text), label)

"""A model as the server sees it: calibrated decisions and rationales. Knows nothing of HTTP."""

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
    """The decision on one text: calibrated probabilities by label, in the order of the label set.

    `prediction_set` lists the labels that split-conformal prediction cannot rule out, most probable first; `deferred`
    says that the confidence is below the threshold, so that a person should decide.
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
        error_rate: target among the decisions that are not deferred; `miscoverage`: allowed for prediction sets. Both
            are looked up in the model's own validation outcomes.

    Raises:
        ConfigError: each of its records has its own labels, which no interface of the server can ask for.
        BundleError, MissingExtraError: as `Predictor.load`.
    """

    def __init__(
        self, name: str, path: Path, *, error_rate: float = ERROR_RATE, miscoverage: float = MISCOVERAGE
    ) -> None:
        self.name, self.path = name, path
        self.predictor = Predictor.load(path)
        manifest, calibration = self.predictor.bundle.manifest, self.predictor.bundle.calibration
        if manifest.labels.is_open:
            raise ConfigError(f"{path} has no fixed labels (each record has its own choices), so it cannot be served")
        self.labels: LabelSet = manifest.labels
        self.created = manifest.created
        self.hash = sha256_file(path / "manifest.json")  # which contains the hash of every other file
        self.description = f"{manifest.method} on {manifest.dataset['name']}"
        self.operating_point = calibration.operating_point(error_rate, miscoverage)

    @property
    def explains(self) -> bool:
        """Whether the model writes rationales."""
        return self.predictor.explains

    @property
    def longest_text(self) -> str:
        """A text that fills the model's input length, and so costs most."""
        return "warm-up " * self.predictor.bundle.manifest.lengths.input

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, before truncation."""
        return [len(ids) for ids in self.predictor.bundle.encoder.text_ids(texts)]

    def decide(self, texts: Sequence[str]) -> list[Decision]:
        """Decide on each text; a text's decision does not depend on the others of the batch."""
        found = self.predictor.distributions([Record(str(i), text) for i, text in enumerate(texts)])
        decisions = []
        for probabilities in found:
            label = max(probabilities, key=probabilities.__getitem__)
            point = self.operating_point
            labels, deferred = point.prediction_set(probabilities), point.defers(probabilities[label])
            decisions.append(Decision(label, probabilities, labels, deferred))
        return decisions

    def explain(self, texts: Sequence[str], labels: Sequence[str]) -> list[str]:
        """The rationale of each text for its label: the decided one, or another ("why not ...?")."""
        return self.predictor.rationales([Record(str(i), text) for i, text in enumerate(texts)], labels)

    def stream(self, text: str, label: str) -> Iterator[str]:
        """The rationale of one text for a label, in pieces as they are written."""
        return self.predictor.stream(Record("0", text), label)

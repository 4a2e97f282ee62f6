"""A model as the server sees it: calibrated decisions and rationales. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from reason2decide.data.cases import FORMS
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import ConfigError, DataError
from reason2decide.model.decision import Decision
from reason2decide.model.operating_point import ERROR_RATE, MISCOVERAGE
from reason2decide.model.predictor import Predictor
from reason2decide.model.reading import MOST_WINDOWS, WHAT_FITS, ReadingSettings
from reason2decide.model.reasons import PLAIN, Reason, ReasonSettings


class ServedModel:
    """A loaded bundle or export under a name. Its methods block; they are called from one thread at a time.

    Args:
        reading, reasons, error_rate, miscoverage: as `Predictor`.

    Raises:
        ConfigError: each of its records has its own labels, which no interface of the server can ask for.
        BundleError, MissingExtraError: as `Predictor.load`.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        reading: ReadingSettings = WHAT_FITS,
        reasons: ReasonSettings = PLAIN,
        *,
        error_rate: float = ERROR_RATE,
        miscoverage: float = MISCOVERAGE,
    ) -> None:
        self.name, self.path = name, path
        self.predictor = Predictor.load(path, reading, reasons, error_rate=error_rate, miscoverage=miscoverage)
        manifest = self.predictor.bundle.manifest
        if manifest.labels.is_open:
            raise ConfigError(f"{path} has no fixed labels (each record has its own choices), so it cannot be served")
        self.labels: LabelSet = manifest.labels
        self.recipe = manifest.recipe  # how its texts are made
        self.created = manifest.created
        self.hash = manifest.sha256  # of what was loaded: the manifest has the hash of every other file
        self.description = f"{manifest.method} on {manifest.dataset['name']}"

    @property
    def reads_notes(self) -> bool:
        """Whether its texts are notes as they are, rather than made of several columns or of a form of their own."""
        return self.recipe is None or (self.recipe.source not in FORMS and not self.recipe.joins)

    @property
    def explains(self) -> bool:
        """Whether the model writes rationales."""
        return self.predictor.explains

    @property
    def explains_any_label(self) -> bool:
        """Whether its rationales depend on the label that they are for, so that they may be asked for any."""
        return self.predictor.bundle.manifest.explain == "conditioned"

    @property
    def defers_by_reasons(self) -> bool:
        """Whether decisions are left to a person where their reasons do not support them."""
        return self.predictor.writer.settings.check_reasons == "defer"

    @property
    def longest_text(self) -> str:
        """A text that fills all that the model reads, and so costs most."""
        encoder, word = self.predictor.encoder, "warm-up "
        prompts = MOST_WINDOWS if self.predictor.reading.long_texts == "windows" else 1
        return word * max(1, prompts * encoder.room(predict=True) // len(encoder.text_ids([word])[0]))

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, before truncation."""
        return [len(ids) for ids in self.predictor.encoder.text_ids(texts)]

    def decide(self, texts: Sequence[str]) -> list[Decision | DataError]:
        """The decision on each text, or why there is none; it does not depend on the others of the batch."""
        return self.predictor.decide([Record(str(i), text) for i, text in enumerate(texts)])

    def explain(self, texts: Sequence[str], labels: Sequence[str]) -> list[Reason]:
        """The reason of each text for its label: the decided one, or another."""
        return self.predictor.reasons([Record(str(i), text) for i, text in enumerate(texts)], labels)

    def reviewed(self, decision: Decision, reason: Reason | None) -> Decision:
        """See `ReasonSettings.reviewed`."""
        return self.predictor.writer.settings.reviewed(decision, reason)

    def stream(self, text: str, label: str) -> Iterator[str]:
        """The rationale of one text for a label, in pieces as they are written."""
        return self.predictor.stream(Record("0", text), label)

    def checked(self, label: str, rationale: str) -> Reason:
        """A rationale that was written for a label, checked if the settings say so."""
        return self.predictor.writer.checked([rationale], [label], [self.labels.values])[0]

"""Two passes: the label, then the rationale given that label (paper, "inference")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from reason2decide.backends import Backend
from reason2decide.bundle import ModelBundle, load_bundle
from reason2decide.errors import DataError
from reason2decide.features import Truncation
from reason2decide.predictions import Prediction
from reason2decide.prompts import body
from reason2decide.records import Record

READ_AHEAD = 256  # ours: records sorted by length at a time, so that batches hold little padding
BATCH_SIZE = 32  # ours


class Predictor:
    """Decides and explains with a loaded bundle; `cut_texts` counts the texts that were too long."""

    def __init__(self, bundle: ModelBundle, backend: Backend) -> None:
        self.bundle, self.backend = bundle, backend
        self.cut_texts = Truncation()

    @classmethod
    def load(cls, path: Path) -> Predictor:
        """Load a bundle onto the reference engine.

        Raises:
            BundleError, MissingExtraError: as `bundle.load_bundle`.
        """
        bundle = load_bundle(path)
        from reason2decide.backends.torch import TorchBackend

        return cls(bundle, TorchBackend(bundle.model, bundle.encoder.tokenizer))

    def choices(self, record: Record) -> tuple[str, ...]:
        """The labels a record may be given.

        Raises:
            DataError: it has no choices and the model no label set of its own.
        """
        choices = record.choices_or(self.bundle.manifest.labels)
        if not choices:
            raise DataError("it has no choices, and this model has no labels of its own")
        return choices

    def decidable(self, records: Iterable[Record], on_bad: Callable[[DataError], None]) -> Iterator[Record]:
        """Yield the records this model can decide on; what is wrong with the others goes to `on_bad`."""
        for record in records:
            try:
                self.bundle.encoder.candidates(self.choices(record))
            except DataError as error:
                on_bad(DataError(f"record {record.id!r}: {error}"))
            else:
                yield record

    def predict(self, records: Iterable[Record], *, read_ahead: int = READ_AHEAD) -> Iterator[Prediction]:
        """Yield a prediction for each record in order, reading ahead at most `read_ahead` of them.

        Raises:
            DataError: a record has no choices, or two of its labels look the same to the tokenizer.
        """
        stream = iter(records)
        while ahead := list(islice(stream, read_ahead)):
            yield from self._predict_all(ahead)

    def _predict_all(self, records: Sequence[Record]) -> list[Prediction]:
        encoder, explain = self.bundle.encoder, self.bundle.manifest.explain
        texts = encoder.text_ids([body(record.text, record.choices) for record in records])
        predictions: dict[int, Prediction] = {}
        order = np.argsort([len(text) for text in texts], kind="stable")
        for begin in range(0, len(order), BATCH_SIZE):
            rows = [int(row) for row in order[begin : begin + BATCH_SIZE]]
            choices = [self.choices(records[row]) for row in rows]
            scores = self.backend.score_labels(
                [encoder.predict_ids(texts[row]) for row in rows], [encoder.candidates(own) for own in choices]
            )
            distributions = [label_distribution(own) for own in scores]
            labels = [own[int(np.argmax(p))] for own, p in zip(choices, distributions, strict=True)]
            written: list[str | None] = [None] * len(rows)
            if explain != "none":
                given = labels if explain == "conditioned" else [None] * len(rows)
                prompts = [encoder.explain_ids(texts[row], label) for row, label in zip(rows, given, strict=True)]
                ids = self.backend.generate(prompts, encoder.lengths.rationale)
                written = [encoder.tokenizer.decode(own, skip_special_tokens=True).strip() for own in ids]
            for row, own, p, label, rationale in zip(rows, choices, distributions, labels, written, strict=True):
                self.cut_texts.count(len(texts[row]) > encoder.room(label if explain == "conditioned" else None))
                probabilities = dict(zip(own, p.tolist(), strict=True))
                predictions[row] = Prediction(records[row].id, label, probabilities, rationale)
        return [predictions[row] for row in range(len(records))]


def label_distribution(scores: np.ndarray) -> np.ndarray:
    """P(label | text) over the candidates from their total log-probabilities (candidates,): a softmax (ours)."""
    shifted = np.exp(scores - scores.max())
    result: np.ndarray = shifted / shifted.sum()
    return result

"""Two passes: the label, then the rationale given that label (paper, "inference")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.errors import DataError
from reason2decide.method.prompts import body
from reason2decide.model.bundle import Bundle, load_bundle, load_export
from reason2decide.model.calibration import label_distribution
from reason2decide.model.engines import Engine
from reason2decide.model.manifest import read_manifest
from reason2decide.model.prompt_encoder import Truncation

READ_AHEAD = 256  # ours: records sorted by length together, so that batches contain little padding
BATCH_SIZE = 32  # ours


class Predictor:
    """Decides and explains with a loaded bundle or export; `cut_texts` counts the texts that were too long."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle, self.engine = bundle, engine
        self.cut_texts = Truncation()

    @classmethod
    def load(cls, path: Path) -> Predictor:
        """Load a bundle onto torch, or an export onto the engine it was made for.

        Raises:
            BundleError, MissingExtraError: as `bundle.load_bundle` and `bundle.load_export`.
        """
        manifest = read_manifest(path)
        if manifest.engine is not None:
            from reason2decide.model.engines.onnx import OnnxEngine

            return cls(load_export(path, manifest), OnnxEngine(path / "model"))
        bundle = load_bundle(path, manifest)
        from reason2decide.model.engines.torch import TorchEngine

        return cls(bundle, TorchEngine(bundle.model, bundle.encoder.tokenizer))

    def choices(self, record: Record) -> tuple[str, ...]:
        """The labels a record may be given.

        Raises:
            DataError: the record has no choices and the model no label set.
        """
        choices = record.choices_or(self.bundle.manifest.labels)
        if not choices:
            raise DataError("it has no choices, and this model has no label set")
        return choices

    def decidable(self, records: Iterable[Record], on_bad: Callable[[DataError], None]) -> Iterator[Record]:
        """Yield the records this model can decide on; the errors of the others go to `on_bad`."""
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
            texts = self._text_ids(ahead)
            distributions = self._distributions(texts, ahead)
            labels = [max(p, key=p.__getitem__) for p in distributions]
            rationales: Sequence[str | None] = self._rationales(texts, labels) if self.explains else [None] * len(ahead)
            for record, label, p, rationale in zip(ahead, labels, distributions, rationales, strict=True):
                yield Prediction(record.id, label, p, rationale)

    @property
    def explains(self) -> bool:
        """Whether this model writes rationales at all."""
        return self.bundle.manifest.explain != "none"

    def distributions(self, records: Sequence[Record], *, calibrated: bool = True) -> list[dict[str, float]]:
        """P(label | text) of each record by label, in the order of its choices.

        Raises:
            DataError: as `predict`.
        """
        return self._distributions(self._text_ids(records), records, calibrated)

    def _distributions(
        self, texts: Sequence[Sequence[int]], records: Sequence[Record], calibrated: bool = True
    ) -> list[dict[str, float]]:
        encoder = self.bundle.encoder
        temperature = self.bundle.calibration.temperature if calibrated else 1.0
        choices = [self.choices(record) for record in records]
        prompts = [encoder.predict_ids(ids) for ids in texts]
        for ids in texts:
            self.cut_texts.count(len(ids) > encoder.room(predict=True))

        def scores(rows: Sequence[int]) -> Sequence[Any]:
            return self.engine.score_labels(
                [prompts[row] for row in rows], [encoder.candidates(choices[row]) for row in rows]
            )

        found = in_batches(list(map(len, prompts)), scores)
        return [
            dict(zip(labels, label_distribution(values, temperature).tolist(), strict=True))
            for labels, values in zip(choices, found, strict=True)
        ]

    def rationales(self, records: Sequence[Record], labels: Sequence[str]) -> list[str]:
        """The rationale of each record, given its label; an unconditioned method ignores the label."""
        return self._rationales(self._text_ids(records), labels)

    def _rationales(self, texts: Sequence[Sequence[int]], labels: Sequence[str]) -> list[str]:
        encoder = self.bundle.encoder
        given = labels if self.bundle.manifest.explain == "conditioned" else [None] * len(texts)
        prompts = [encoder.explain_ids(ids, label) for ids, label in zip(texts, given, strict=True)]
        written = in_batches(
            list(map(len, prompts)),
            lambda rows: self.engine.generate([prompts[row] for row in rows], encoder.lengths.rationale),
        )
        return [encoder.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]

    def stream(self, record: Record, label: str) -> Iterator[str]:
        """The rationale of one record given its label, in pieces as they are written; together they are the whole."""
        encoder = self.bundle.encoder
        given = label if self.bundle.manifest.explain == "conditioned" else None
        ids: list[int] = []
        written = text = ""
        for token in self.engine.stream(
            encoder.explain_ids(self._text_ids([record])[0], given), encoder.lengths.rationale
        ):
            ids.append(token)
            text = encoder.tokenizer.decode(ids, skip_special_tokens=True).lstrip()
            # Where the text ends in a replacement character, a character of several tokens is not complete yet.
            if len(text) > len(written) and text.startswith(written) and not text.endswith("\ufffd"):
                yield text[len(written) :]
                written = text
        if len(text) > len(written) and text.startswith(written):  # the limit came in the middle of a character
            yield text[len(written) :]

    def _text_ids(self, records: Sequence[Record]) -> list[list[int]]:
        return self.bundle.encoder.text_ids([body(record.text, record.choices) for record in records])


def in_batches(lengths: Sequence[int] | NDArray[Any], run: Callable[[Sequence[int]], Sequence[Any]]) -> list[Any]:
    """The results of `run` for prompts of these lengths, in their order.

    `run` gets the indices of `BATCH_SIZE` prompts of similar lengths at a time, and returns a value for each.
    """
    order = np.argsort(lengths, kind="stable").tolist()
    results: dict[int, Any] = {}
    for begin in range(0, len(order), BATCH_SIZE):
        rows = order[begin : begin + BATCH_SIZE]
        results |= zip(rows, run(rows), strict=True)
    return [results[row] for row in range(len(lengths))]

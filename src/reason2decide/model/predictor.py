"""Two passes: the label, then the rationale given that label (paper, "inference")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from reason2decide.data.predictions import Prediction, Undecided
from reason2decide.data.records import Record
from reason2decide.errors import BundleError, DataError
from reason2decide.model.batches import in_batches
from reason2decide.model.bundle import Bundle, bundle_from, export_from
from reason2decide.model.calibration import label_distribution
from reason2decide.model.decision import Decision
from reason2decide.model.engines import Engine
from reason2decide.model.explaining import Explained, ReadText, ReasonWriter
from reason2decide.model.manifest import verified_copy
from reason2decide.model.operating_point import ERROR_RATE, MISCOVERAGE
from reason2decide.model.prompt_encoder import PromptEncoder, Truncation
from reason2decide.model.reading import WHAT_FITS, ReadingSettings, UnreadableText, deciding_window
from reason2decide.model.reason_checks import reason_check
from reason2decide.model.reasons import PLAIN, Reason, ReasonSettings

READ_AHEAD = 256  # ours: records sorted by length together, so that batches contain little padding


@dataclass(frozen=True)
class _Decided:
    """A text, P(label | part) of each of its parts, and what follows from them."""

    text: ReadText
    found: Sequence[Mapping[str, float]]
    decision: Decision


class Predictor:
    """Decides and explains with a loaded bundle or export.

    `cut_texts` counts the texts that were not read whole for their decision; `writer.cut` those of which the prompt for
    the rationale, which has the label too, holds less than that for the decision.

    Args:
        reading: how texts over the prompt's limit are read.
        reasons: how reasons are written and checked.
        error_rate: target among decisions that are not deferred; `miscoverage`: allowed for prediction sets. Both are
            looked up in the model's validation outcomes.

    Raises:
        BundleError: the reading asks for longer prompts than the model has positions for.
        ConfigError: as `ReasonWriter`.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        reading: ReadingSettings = WHAT_FITS,
        reasons: ReasonSettings = PLAIN,
        *,
        error_rate: float = ERROR_RATE,
        miscoverage: float = MISCOVERAGE,
    ) -> None:
        self.bundle, self.engine, self.reading, self.encoder = bundle, engine, reading, bundle.encoder
        self.operating_point = bundle.calibration.operating_point(error_rate, miscoverage)
        # What it was loaded with, by the names of `load`'s arguments.
        self.settings: Mapping[str, Any] = {
            **asdict(reading),
            **asdict(reasons.reasons),
            "error_rate": error_rate,
            "miscoverage": miscoverage,
        }
        self.cut_texts = Truncation()
        if reading.input_tokens is not None:
            lengths = bundle.manifest.lengths
            # Without an encoder the answer takes positions too.
            answers = bundle.encoder.longest_after_text
            if engine.positions is not None and reading.input_tokens > engine.positions - answers:
                raise BundleError(
                    f"{bundle.path} reads prompts of at most {engine.positions - answers} tokens, "
                    f"{reading.input_tokens} are asked for; only bases with relative positions, such as T5, read longer"
                )
            limits = lengths.model_copy(update={"input": reading.input_tokens})
            self.encoder = PromptEncoder(bundle.encoder.tokenizer, limits, bundle.encoder.form)
        self.writer = ReasonWriter(engine, self.encoder, bundle.manifest.explain, reasons, reason_check(bundle))

    @classmethod
    def load(
        cls,
        path: Path,
        reading: ReadingSettings = WHAT_FITS,
        reasons: ReasonSettings = PLAIN,
        *,
        error_rate: float = ERROR_RATE,
        miscoverage: float = MISCOVERAGE,
        threads: int = 0,
    ) -> Predictor:
        """Load a bundle onto torch, or an export onto the engine it was made for, and let it decide once.

        Args:
            threads: processor threads of a forward pass; 0: as many as the engine takes by itself.

        Raises:
            BundleError, MissingExtraError: as `bundle.bundle_from` and `bundle.export_from`; or the model's answers are
                not finite numbers.
            ConfigError: as `ReasonWriter`.
        """
        bundle: Bundle
        engine: Engine
        with verified_copy(path) as (manifest, copy):
            if manifest.engine is not None:
                from reason2decide.model.engines.onnx import OnnxEngine

                bundle, engine = export_from(path, manifest, copy), OnnxEngine(copy / "model", threads)
            else:
                bundle = bundle_from(path, manifest, copy)
                from reason2decide.model.engines.torch import TorchEngine

                engine = TorchEngine(bundle.model, bundle.encoder.tokenizer, threads)
        predictor = cls(bundle, engine, reading, reasons, error_rate=error_rate, miscoverage=miscoverage)
        predictor.try_once()
        return predictor

    def try_once(self) -> None:
        """Score the labels of a short text and write one token, so that a model that cannot is refused when loaded.

        Raises:
            NotFinite: its answers are not finite numbers.
        """
        text = self.encoder.text_ids(["warm-up"])[0]
        labels = self.bundle.manifest.labels.values or ("yes",)
        self.engine.score_labels([self.encoder.decide(text)], [self.encoder.candidates(labels)])
        if self.explains:
            self.engine.generate([self.encoder.explain(text, None)], 1)

    def choices(self, record: Record) -> tuple[str, ...]:
        """The labels a record may be given.

        Raises:
            DataError: the record has no choices and the model no label set.
        """
        choices = record.choices_or(self.bundle.manifest.labels)
        if not choices:
            raise DataError("it has no choices, and this model has no label set")
        return choices

    def decide(self, records: Sequence[Record]) -> list[Decision | DataError]:
        """The decision on each record, or why there is none: its labels or its text cannot be used.

        A record's decision does not depend on the others.
        """
        decided = self._decided(records, self._text_ids(records))
        return [own if isinstance(own, DataError) else own.decision for own in decided]

    def _decided(self, records: Sequence[Record], tokens: Sequence[list[int]]) -> list[_Decided | DataError]:
        read = [self._readable(record, ids) for record, ids in zip(records, tokens, strict=True)]
        found = iter(self._by_part([text for text in read if isinstance(text, ReadText)]))
        return [text if isinstance(text, DataError) else self._decision(text, next(found)) for text in read]

    def predict(
        self,
        records: Iterable[Record],
        *,
        read_ahead: int = READ_AHEAD,
        on_bad: Callable[[DataError], None] | None = None,
    ) -> Iterator[Prediction]:
        """Yield a prediction for each record in order, reading ahead at most `read_ahead` of them.

        Args:
            on_bad: gets the error of each record that cannot be decided on, which is then left out; None raises it.

        Raises:
            DataError: a record has no choices, two of its labels look the same to the tokenizer, or its text cannot be
                read, or is too long where such texts are refused.
        """
        for found in self.outcomes(records, read_ahead=read_ahead):
            if isinstance(found, Prediction):
                yield found
                continue
            error = DataError(f"record {found.id!r}: {found.reason}")
            if on_bad is None:
                raise error
            on_bad(error)

    def outcomes(self, records: Iterable[Record], *, read_ahead: int = READ_AHEAD) -> Iterator[Prediction | Undecided]:
        """As `predict`, with a record that cannot be decided on in its place and not left out."""
        stream = iter(records)
        while ahead := list(islice(stream, read_ahead)):
            tokens = self._text_ids(ahead)

            def both(rows: Sequence[int]) -> list[Prediction | DataError]:
                return self._predicted([ahead[row] for row in rows], [tokens[row] for row in rows])  # noqa: B023

            for record, found in zip(ahead, in_batches(list(map(len, tokens)), both), strict=True):
                yield found if isinstance(found, Prediction) else Undecided(record.id, str(found))

    def _predicted(self, records: Sequence[Record], tokens: Sequence[list[int]]) -> list[Prediction | DataError]:
        """Decide and explain a batch, so that an engine that read a text to decide has it still to explain."""
        decided = self._decided(records, tokens)
        good = [own for own in decided if isinstance(own, _Decided)]
        reasons: Sequence[Reason | None] = [None] * len(good)
        if self.explains:
            reasons = self.writer.write([Explained(own.text, own.decision.label, own.found) for own in good])
        reason_of = iter(reasons)
        return [
            own if isinstance(own, DataError) else self._prediction(record.id, own.decision, next(reason_of))
            for record, own in zip(records, decided, strict=True)
        ]

    def _prediction(self, id: str, decision: Decision, reason: Reason | None) -> Prediction:
        decision = self.writer.settings.reviewed(decision, reason)
        return Prediction(
            id,
            decision.label,
            decision.probabilities,
            None if reason is None else reason.text,
            decision.deferred,
            decision.prediction_set,
            decision.tokens,
            decision.tokens_read,
            None if reason is None else reason.support,
            None if reason is None else reason.supports,
        )

    @property
    def caution(self) -> str | None:
        """What a user must know before the first decision; None if nothing."""
        if not self.operating_point.defers_all:
            return None
        shown = len(self.bundle.calibration.right)
        return (
            f"{self.bundle.path} leaves every decision to a person (deferred): its {shown} validation records show no "
            "confidence above which the error rate is kept; more of them may, or a higher rate where one can be chosen"
        )

    @property
    def explains(self) -> bool:
        """Whether this model writes rationales at all."""
        return self.bundle.manifest.explain != "none"

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return self.encoder.lengths.input

    def distributions(self, records: Sequence[Record], *, calibrated: bool = True) -> list[dict[str, float]]:
        """P(label | text) of each record by label, in the order of its choices; also of texts without a token.

        Raises:
            DataError: a record's labels cannot be used, or as `ReadingSettings.parts`.
        """
        return [self._together(found) for found in self._by_part(self._texts(records), calibrated)]

    def _decision(self, text: ReadText, found: Sequence[Mapping[str, float]]) -> _Decided:
        probabilities = self._together(found)
        label = max(probabilities, key=probabilities.__getitem__)
        tokens, read = len(text.tokens), text.parts[-1][1]
        self.cut_texts.count(read < tokens)
        point = self.operating_point
        deferred = point.defers(probabilities[label]) or self.reading.defers(tokens, read)
        decision = Decision(label, probabilities, point.prediction_set(probabilities), deferred, tokens, read)
        return _Decided(text, found, decision)

    def _together(self, found: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return dict(deciding_window(found, self.bundle.manifest.labels))

    def _readable(self, record: Record, tokens: list[int]) -> ReadText | DataError:
        """A record's text, or why there is nothing to decide."""
        if not self.encoder.reads(tokens):
            return UnreadableText("the model's tokenizer reads nothing in the text, so there is nothing to decide on")
        try:
            return self._text(record, tokens)
        except DataError as error:
            return error

    def _texts(self, records: Sequence[Record]) -> list[ReadText]:
        return [self._text(record, ids) for record, ids in zip(records, self._text_ids(records), strict=True)]

    def _text(self, record: Record, tokens: list[int]) -> ReadText:
        choices = self.choices(record)
        candidates = self.encoder.candidates(choices)
        head = self.encoder.choices_ids(record.choices)
        room = self.encoder.room(predict=True) - len(head)
        return ReadText(tokens, self.reading.parts(len(tokens), room), choices, candidates, head)

    def _by_part(self, texts: Sequence[ReadText], calibrated: bool = True) -> list[list[dict[str, float]]]:
        """P(label | part) of each part of each text."""
        temperature = self.bundle.calibration.temperature if calibrated else 1.0
        rows = [(text, index) for text in texts for index in range(len(text.parts))]
        prompts = [self.encoder.decide(text.part(index)) for text, index in rows]

        def scores(batch: Sequence[int]) -> Sequence[Any]:
            return self.engine.score_labels([prompts[row] for row in batch], [rows[row][0].candidates for row in batch])

        found = iter(in_batches(list(map(len, prompts)), scores))
        return [
            [
                dict(zip(text.choices, label_distribution(next(found), temperature).tolist(), strict=True))
                for _ in text.parts
            ]
            for text in texts
        ]

    def rationales(self, records: Sequence[Record], labels: Sequence[str]) -> list[str]:
        """The text of each of `reasons`."""
        return [reason.text for reason in self.reasons(records, labels)]

    def reasons(self, records: Sequence[Record], labels: Sequence[str]) -> list[Reason]:
        """The reason of each record, given its label; an unconditioned method ignores the label.

        Of a text read in windows, one window is explained: see `explaining_window`.
        """
        return self.writer.write(self._explained(records, labels))

    def stream(self, record: Record, label: str) -> Iterator[str]:
        """The rationale of one record given its label, in pieces as they are written; together they are the whole."""
        (explained,) = self._explained([record], [label])
        yield from self.writer.stream(explained)

    def _explained(self, records: Sequence[Record], labels: Sequence[str]) -> list[Explained]:
        """What is explained of each record; its labels are scored where that is needed."""
        texts = self._texts(records)
        found = iter(self._by_part([text for text in texts if self.writer.needs_found(text)]))
        return [
            Explained(text, label, next(found) if self.writer.needs_found(text) else ())
            for text, label in zip(texts, labels, strict=True)
        ]

    def _text_ids(self, records: Sequence[Record]) -> list[list[int]]:
        return self.encoder.text_ids([record.text for record in records], [bool(record.choices) for record in records])

"""A trained model in Python: decide, explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

from reason2decide.api.html import table
from reason2decide.data.cases import MADE, case_of
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import ConfigError, DataError, require
from reason2decide.model.operating_point import ERROR_RATE, MISCOVERAGE
from reason2decide.model.predictor import Predictor
from reason2decide.model.reading import LongTexts, ReadingSettings
from reason2decide.model.reasons import Check, ReasonSettings

Case = str | Mapping[str, Any] | Record


@dataclass(frozen=True)
class Answer:
    """A decision and the reason for it.

    Attributes:
        id: id of the record; for a text, its position among those given, from 0.
        label: the most probable label.
        probabilities: calibrated probability of each label, in the label set's order; they sum to 1.
        rationale: the reason for `label`; None where the model writes none.
        deferred: whether a person should decide: the probability of `label` is under the deferral threshold, or the
            text was not read whole and such texts are deferred (`load`).
        prediction_set: the labels that may well be right, most probable first.
        tokens, tokens_read: how many tokens the text has, and how many of them the model has read.
        reason_support: the probability that the rationale argues for `label`, as an independent reader sees it; None
            where reasons are not checked (`load`).
        reason_supports: whether that is enough; where not, the rationale argues for something else.
    """

    id: str
    label: str
    probabilities: Mapping[str, float]
    rationale: str | None
    deferred: bool
    prediction_set: tuple[str, ...]
    tokens: int
    tokens_read: int
    reason_support: float | None = None
    reason_supports: bool | None = None

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.label]

    def _repr_html_(self) -> str:
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        rows = [(label, f"{probability:.1%}") for label, probability in ranked]
        deferred = " (deferred to a person)" if self.deferred else ""
        doubt = " (this reason does not support the decision)" if self.reason_supports is False else ""
        caption = f"{self.label}{deferred}: {self.rationale or 'no rationale'}{doubt}"
        return table(("label", "probability"), rows, caption)


class Answers(list[Answer]):
    """Answers in the order of the cases; a list, shown as a table in a notebook."""

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row per answer: id, label, probability, rationale, deferred, P(LABEL) columns.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [
            {
                "id": answer.id,
                "label": answer.label,
                "probability": answer.probability,
                "rationale": answer.rationale,
                "deferred": answer.deferred,
                **{f"P({label})": probability for label, probability in answer.probabilities.items()},
            }
            for answer in self
        ]
        return require("pandas", "pandas").DataFrame(rows)

    def _repr_html_(self) -> str:
        rows = [
            (
                answer.id,
                answer.label,
                f"{answer.probability:.1%}",
                "yes" if answer.deferred else "",
                answer.rationale or "",
            )
            for answer in self
        ]
        return table(("id", "label", "probability", "deferred", "rationale"), rows)


class Model:
    """A loaded bundle or export, which `load` returns."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def path(self) -> Path:
        """The folder it was loaded from."""
        return self.predictor.bundle.path

    @property
    def labels(self) -> LabelSet:
        """The labels it decides between; without values if each record brings its own choices."""
        return self.predictor.bundle.manifest.labels

    @property
    def method(self) -> str:
        """The method it was trained by."""
        return self.predictor.bundle.manifest.method

    @overload
    def decide(self, cases: Case) -> Answer: ...  # type: ignore[overload-overlap]  # a string is a sequence too
    @overload
    def decide(self, cases: Sequence[Case]) -> Answers: ...
    def decide(self, cases: Case | Sequence[Case]) -> Answer | Answers:
        """Decide a text, or a list of texts in their order, and give the reason for each decision.

        Texts of similar lengths run in one batch. Instead of a text, a row may be given, from whose columns a text is
        made as in training; or a `Record`: its id is kept, and the decision is between its `choices`.

        Raises:
            DataError: an empty text, a row without a column that texts are made of, a text that is none of that form,
                or choices that the model cannot decide between.

        Example:
            >>> import reason2decide as r2d
            >>> model = r2d.load("run/bundle")
            >>> answer = model.decide("21 yo with mild rash since 2 days")
            >>> answer.label in model.labels.values
            True
            >>> [other.label == answer.label for other in model.decide(["21 yo with mild rash since 2 days"] * 2)]
            [True, True]
        """
        if isinstance(cases, str | Mapping | Record):
            return self._answers([self._record(cases, 0)])[0]
        return self._answers([self._record(case, place) for place, case in enumerate(cases)])

    def explain(self, case: Case, label: str | None = None) -> str:
        """The reason for a label: the decided one, or another one to see what supports it.

        Args:
            label: one of the case's labels; None takes the one that the model decides on.

        Raises:
            DataError: an empty text, or `label` is not one of the case's labels.
            ConfigError: the model writes no rationales, or none that depend on a label.

        Example:
            >>> import reason2decide as r2d
            >>> model = r2d.load("run/bundle")
            >>> isinstance(model.explain("21 yo with mild rash since 2 days", label="see a doctor"), str)
            True
        """
        record, manifest = self._record(case, 0), self.predictor.bundle.manifest
        if manifest.explain == "none":
            raise ConfigError(f"this model was trained by {manifest.method}, which writes no rationales")
        if label is None:
            answer = self._answers([record])[0]
            assert answer.rationale is not None
            return answer.rationale
        if manifest.explain == "unconditioned":
            raise ConfigError(f"the rationales of {manifest.method} do not depend on a label; leave `label` out")
        choices = self.predictor.choices(record)
        if label not in choices:
            raise DataError(f"{label!r} is not a label of this case; choose one of {', '.join(map(repr, choices))}")
        return self.predictor.rationales([record], [label])[0]

    def _record(self, case: Case, place: int) -> Record:
        """A case as a record, its text made as those of training."""
        text = case.text if isinstance(case, Record) else case
        if isinstance(text, str) and not text.strip():
            id = case.id if isinstance(case, Record) else str(place)
            raise DataError(f"the text of case {id!r} is empty; there is nothing to decide on")
        if isinstance(case, Record):
            return case
        row = {MADE: case} if isinstance(case, str) else case
        return case_of(self.predictor.bundle.manifest.recipe, row, f"case {place}", str(place))

    def _answers(self, records: Sequence[Record]) -> Answers:
        return Answers(self._answer(prediction) for prediction in self.predictor.predict(records))

    def _answer(self, prediction: Prediction) -> Answer:
        values = asdict(prediction)
        return Answer(label=values.pop("predicted_label"), **values)

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}, method={self.method!r}, labels={list(self.labels.values)})"


def load(
    path: str | Path,
    *,
    error_rate: float = ERROR_RATE,
    miscoverage: float = MISCOVERAGE,
    long_texts: LongTexts = "decide",
    input_tokens: int | None = None,
    guidance: float = 0.0,
    best_of: int = 1,
    check_reasons: Check = "flag",
) -> Model:
    """Load a bundle (with torch) or an export (without).

    Args:
        path: the folder that `r2d train` wrote at RUN/bundle, or `r2d export`.
        error_rate: target among decisions that are not deferred; sets the deferral threshold from validation.
        miscoverage: share of prediction sets that may miss the right label.
        long_texts: how texts over the prompt's limit are read: `decide` on their beginning; `defer` to a person,
            besides deciding on their beginning; `refuse`; or read overlapping `windows`, of which the most urgent
            answer wins.
        input_tokens: longest prompt in tokens; None takes the limit of training. More needs a base such as T5.
        guidance: how strongly reasons are guided away from those for the second choice; 0: not at all.
        best_of: number of reasons to write for each decision; the one that makes its label easiest to infer is
            returned.
        check_reasons: `flag` reasons that do not support their decision, also `defer` such decisions to a person, or
            `off`.

    Raises:
        BundleError: not a bundle or export, or damaged.
        ConfigError: unknown `long_texts`; or `guidance`, `best_of` or `defer` for a model whose reasons do not depend
            on the label, or cannot be checked.
        MissingExtraError: a package that runs it is not installed; the message gives the `pip install`.

    Example:
        >>> import reason2decide as r2d
        >>> r2d.load("run/bundle")
        Model('run/bundle', method='r2d', labels=['home care', 'see a doctor', 'call an ambulance'])
    """
    reading = ReadingSettings(long_texts, input_tokens)
    reasons = ReasonSettings(guidance, best_of, check_reasons)
    return Model(Predictor.load(Path(path), reading, reasons, error_rate=error_rate, miscoverage=miscoverage))

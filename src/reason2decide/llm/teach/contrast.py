"""A language model as advocate: rationales for labels that are not the gold one, such as a model's mistakes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from reason2decide.data.dataset_folder import DatasetInfo
from reason2decide.data.disk_index import DiskIndex
from reason2decide.data.predictions import Prediction, prediction_of, predictions_in
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import ConfigError, DataError
from reason2decide.llm.answers import Argued, argued_schema
from reason2decide.llm.client.calls import Call, ModelAnswer
from reason2decide.llm.prompt_files import load_prompt
from reason2decide.llm.settings import MAX_WORDS, MIN_SUPPORT
from reason2decide.llm.teach.gates import GatedCase, failed_gates, instructions
from reason2decide.llm.teach.source_writing import Reading, SourceWriter

ForLabels = Literal["second", "predicted", "all"]
UNSUPPORTED, ANOTHER = "nothing_supports_it", "argues_for_another"  # why a case is not written, beside the gates


class Advocate(SourceWriter):
    """Writes contrasts: for each record the most candid case for labels other than the gold one.

    Gates apply with the argued label in the gold one's place. A case for which nothing in the text speaks is counted
    and kept in `meta["unsupported_contrasts"]`, and becomes a contrast only with `keep_unsupported`. Labels that have
    a contrast already are not asked for again.

    Args:
        source: an existing source of rationales, which the contrasts belong to.
        for_labels: `all` others; the one `predicted` where it is wrong; or the `second`: the model's wrong label, else
            its second choice.
        predictions: by record id, for all but `all`.

    Raises:
        ConfigError: predictions are missing or of no use.
        PromptError: as `load_prompt`.
    """

    noun = "contrasts"

    def __init__(
        self,
        source: str,
        for_labels: ForLabels,
        predictions: PredictionsById | Mapping[str, Prediction] | None = None,
        *,
        keep_unsupported: bool = False,
        max_words: int = MAX_WORDS,
        sampling: Mapping[str, Any] = {},
        min_support: float = MIN_SUPPORT,
        prompts: Path | None = None,
    ) -> None:
        if for_labels not in get_args(ForLabels):
            raise ConfigError(f"--for-labels {for_labels!r}: expected one of {', '.join(get_args(ForLabels))}")
        if (for_labels == "all") != (predictions is None):
            none, some = "all takes no --predictions: every other label is argued for", "needs --predictions FILE"
            raise ConfigError(
                f"--for-labels {none}"
                if for_labels == "all"
                else f"--for-labels {for_labels} {some}, which `r2d out-of-fold` or `r2d predict` writes"
            )
        self.source, self.for_labels, self.predictions = source, for_labels, predictions or {}
        self.keep_unsupported, self.max_words, self.sampling = keep_unsupported, max_words, sampling
        self.min_support = min_support
        self.prompt = load_prompt("rationalize_contrast", prompts)
        self._instructions = instructions(self.prompt)
        self.unsupported: Counter[str] = Counter()

    def prepared(self, info: DatasetInfo) -> DatasetInfo:
        """The same dataset: contrasts belong to a source that it has.

        Raises:
            DataError: it has not.
        """
        if self.source not in info.rationale_sources:
            known = ", ".join(info.rationale_sources) or "none"
            raise DataError(
                f"the dataset has no rationales of source {self.source!r}, and contrasts stand beside those of a "
                f"source; its sources are: {known}"
            )
        return info

    def calls(self, record: Record, labels: LabelSet) -> dict[str, Call]:
        """One call for each label to argue for."""
        argued = record.contrasts.get(self.source, {})
        wanted = argued_labels(record, labels, self.for_labels, self.predictions.get(record.id))
        schema = argued_schema(record.choices_or(labels), self.max_words, listed=record.choices is not None)
        return {
            label: Call(
                f"{record.id}\n{label}",
                self.prompt.messages({"text": record.text, "label": label}, {"max_words": str(self.max_words)}),
                schema,
                self.sampling,
                self.prompt.full_version,
            )
            for label in wanted
            if label not in argued
        }

    def read(self, record: Record, labels: LabelSet, label: str, answer: ModelAnswer) -> Reading:
        """The case for a label if it passes the gates and anything supports it."""
        written = answer.parsed
        assert isinstance(written, Argued)
        rationale, choices = written.rationale.strip(), record.choices_or(labels)
        case = GatedCase(record.text, label, choices, self._instructions, self.max_words, self.min_support)
        failed = failed_gates(rationale, case) + [ANOTHER] * (written.label != label)
        if failed:
            return Reading(None, failed[0])
        if written.supported:
            return Reading(rationale)
        self.unsupported[label] += 1
        notes = {"unsupported_contrasts": {label: rationale}}
        return Reading(rationale if self.keep_unsupported else None, UNSUPPORTED, notes)

    def placed(self, record: Record, label: str, rationale: str) -> Record:
        """The record with the contrast beside its rationales."""
        own = {**record.contrasts.get(self.source, {}), label: rationale}
        return replace(record, contrasts={**record.contrasts, self.source: own})

    def settings(self) -> dict[str, Any]:
        """The settings of the teacher."""
        asked = {"for_labels": self.for_labels, "keep_unsupported": self.keep_unsupported}
        return {**asked, "max_words": self.max_words, "min_support": self.min_support, "sampling": dict(self.sampling)}

    def found(self) -> dict[str, Any]:
        """The cases that nothing supports, by label."""
        return {"unsupported": dict(self.unsupported)}


def argued_labels(
    record: Record, labels: LabelSet, for_labels: ForLabels, prediction: Prediction | None
) -> tuple[str, ...]:
    """The labels to argue for besides the gold one; none where there is no prediction to take them from.

    Raises:
        DataError: the prediction has another label than the record's, or no probabilities where the second is wanted.
    """
    choices = record.choices_or(labels)
    if for_labels == "all":
        return tuple(choice for choice in choices if choice != record.label)
    if prediction is None or not prediction.predicted_label:
        return ()
    if prediction.predicted_label not in choices:
        raise DataError(
            f"record {record.id!r}: the label predicted, {prediction.predicted_label!r}, is not one of its labels; "
            "give predictions of a model with the dataset's labels"
        )
    if prediction.predicted_label != record.label:
        return (prediction.predicted_label,)
    if for_labels == "predicted":
        return ()
    if not prediction.probabilities:
        raise DataError(f"record {record.id!r}: its prediction has no probabilities; use --for-labels predicted or all")
    others = {label: p for label, p in prediction.probabilities.items() if label != record.label}
    return (max(others, key=others.__getitem__),) if others else ()


class PredictionsById:
    """The predictions of several files by record id, of any number.

    Raises:
        DataError: as `predictions_in`, or two predictions are of one record.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._lines = DiskIndex()
        for path in paths:
            for prediction in predictions_in(path):
                if not self._lines.add(prediction.id, json.dumps(prediction.to_json())):
                    raise DataError(f"{path}: there are two predictions of record {prediction.id!r}; give each once")

    def get(self, id: str) -> Prediction | None:
        """The prediction of a record, None if there is none."""
        line = self._lines.get(id)
        return None if line is None else prediction_of(json.loads(line))

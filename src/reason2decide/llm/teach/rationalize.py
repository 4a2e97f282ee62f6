"""A language model as teacher: rationales for known decisions, or for its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import ConfigError
from reason2decide.evaluation.results import MetricValue
from reason2decide.llm.answers import Decided, Written, decided_schema, written_schema
from reason2decide.llm.client.calls import Call, ModelAnswer
from reason2decide.llm.prompt_files import load_prompt
from reason2decide.llm.settings import MAX_WORDS, MIN_SUPPORT
from reason2decide.llm.settling import share
from reason2decide.llm.teach.gates import GatedCase, failed_gates, instructions
from reason2decide.llm.teach.source_writing import Reading, SourceWriter


class Teacher(SourceWriter):
    """Writes a rationale for each record's text and gold label.

    `without_label` hides the label from the teacher, which then decides too, as in Distilling Step-by-Step (Hsieh et
    al. 2023): its label is kept in `meta["teacher_labels"]`, and with `only_right` a rationale is dropped if that label
    is not the gold one. Otherwise it is kept, although it argues for a wrong decision.

    Raises:
        ConfigError: `only_right` without `without_label`.
        PromptError: as `load_prompt`.
    """

    def __init__(
        self,
        source: str,
        *,
        without_label: bool = False,
        only_right: bool = False,
        max_words: int = MAX_WORDS,
        sampling: Mapping[str, Any] = {},
        min_support: float = MIN_SUPPORT,
        prompts: Path | None = None,
    ) -> None:
        if only_right and not without_label:
            raise ConfigError("--only-right needs --without-label: otherwise the teacher does not decide")
        self.source, self.without_label, self.only_right = source, without_label, only_right
        self.max_words, self.sampling, self.min_support = max_words, sampling, min_support
        self.prompt = load_prompt("rationalize_unlabelled" if without_label else "rationalize", prompts)
        self._instructions = instructions(self.prompt)
        self._hits: list[tuple[str, bool]] = []

    def calls(self, record: Record, labels: LabelSet) -> dict[str, Call]:
        """One call per record."""
        choices = record.choices_or(labels)
        own = record.choices is not None
        other = {"choices": "\n".join(choices)} if self.without_label else {"label": record.label or ""}
        data, words = {"text": record.text, **other}, {"max_words": str(self.max_words)}
        messages = self.prompt.messages(data, words, apart=() if own else ("choices",))
        schema = (
            decided_schema(choices, self.max_words, listed=own)
            if self.without_label
            else written_schema(self.max_words)
        )
        call = Call(record.id, messages, schema, self.sampling, self.prompt.full_version)
        return {record.label or "": call}

    def read(self, record: Record, labels: LabelSet, label: str, answer: ModelAnswer) -> Reading:
        """The rationale if it passes the gates, and the teacher's own label if it decided."""
        written = answer.parsed
        assert isinstance(written, Written)
        notes = {}
        if isinstance(written, Decided):
            label = written.label
            notes = {"teacher_labels": label}
            self._hits.append((record.group or f"id:{record.id}", label == record.label))
        rationale = written.rationale.strip()
        choices = record.choices_or(labels)
        case = GatedCase(record.text, label, choices, self._instructions, self.max_words, self.min_support)
        failed = failed_gates(rationale, case)
        if self.only_right and label != record.label:
            failed.append("teacher_wrong")
        return Reading(None, failed[0], notes) if failed else Reading(rationale, notes=notes)

    def settings(self) -> dict[str, Any]:
        """The settings of the teacher."""
        asked: dict[str, Any] = {"with_label": not self.without_label, "max_words": self.max_words}
        asked |= {"min_support": self.min_support, "sampling": dict(self.sampling)}
        return {**asked, "only_right": self.only_right} if self.without_label else asked

    def accuracy(self) -> MetricValue:
        """The share of right decisions among the calls that the teacher answered."""
        return share(self._hits)

    def found(self) -> dict[str, Any]:
        """The accuracy of a teacher that decided."""
        accuracy = self.accuracy()
        if accuracy.value is None:
            return {}
        interval = {"low": accuracy.low, "high": accuracy.high}
        return {"teacher_accuracy": {"value": accuracy.value, **interval, "n": accuracy.n}}

"""A language model as editor: it turns terse notes into readable rationales, and its additions are flagged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reason2decide.data.records import LabelSet, Record
from reason2decide.llm.answers import Written
from reason2decide.llm.client.calls import Call, ModelAnswer
from reason2decide.llm.prompt_files import load_prompt
from reason2decide.llm.settings import MAX_WORDS
from reason2decide.llm.teach.gates import GatedCase, additions, failed_gates, instructions
from reason2decide.llm.teach.source_writing import Reading, SourceWriter


class Editor(SourceWriter):
    """Rewrites the rationales of one source as those of another.

    Words and numbers that are in neither the note nor the text are listed in `meta["refine_flags"]`; with
    `drop_flagged` such a rationale is not written. A gate that the note itself fails is not applied to its rationale.

    Raises:
        PromptError: as `load_prompt`.
    """

    def __init__(
        self,
        original: str,
        source: str,
        *,
        drop_flagged: bool = False,
        max_words: int = MAX_WORDS,
        sampling: Mapping[str, Any] = {},
        prompts: Path | None = None,
    ) -> None:
        self.original, self.source, self.drop_flagged = original, source, drop_flagged
        self.max_words, self.sampling = max_words, sampling
        self.prompt = load_prompt("refine", prompts)
        self._instructions = instructions(self.prompt)
        self.flagged = 0

    def calls(self, record: Record, labels: LabelSet) -> dict[str, Call]:
        """One call for each record that has a note."""
        note = record.rationales.get(self.original)
        if note is None:
            return {}
        messages = self.prompt.messages({"text": record.text, "rationale": note}, {"max_words": str(self.max_words)})
        return {record.label or "": Call(record.id, messages, Written, self.sampling, self.prompt.full_version)}

    def read(self, record: Record, labels: LabelSet, label: str, answer: ModelAnswer) -> Reading:
        """The rewritten note if it passes the gates, and the additions to it."""
        written = answer.parsed
        assert isinstance(written, Written)
        note, rationale = record.rationales[self.original], written.rationale.strip()
        choices = record.choices_or(labels)
        case = GatedCase(record.text, label, choices, self._instructions, self.max_words)
        # The note's writer could see what it cites; what the editor adds is flagged.
        forgiven = {"not_in_text", *failed_gates(note, case)}
        for gate in failed_gates(rationale, case):
            if gate not in forgiven:
                return Reading(None, gate)
        added = additions(rationale, (record.text, note, record.label or ""))
        self.flagged += bool(added)
        if added and self.drop_flagged:
            return Reading(None, "added", {"refine_flags": added})
        return Reading(rationale, notes={"refine_flags": added} if added else {})

    def settings(self) -> dict[str, Any]:
        """The settings of the editor."""
        asked = {"from": self.original, "max_words": self.max_words, "drop_flagged": self.drop_flagged}
        return {**asked, "sampling": dict(self.sampling)}

    def found(self) -> dict[str, Any]:
        """The number of rationales with additions, dropped or not."""
        return {"flagged": self.flagged}

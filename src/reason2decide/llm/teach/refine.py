"""A language model as editor: it turns terse notes into readable rationales, and its additions are flagged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reason2decide.data.records import LabelSet, Record
from reason2decide.llm.answers import Written, written_schema
from reason2decide.llm.client.calls import Call, ModelAnswer
from reason2decide.llm.prompt_files import load_prompt
from reason2decide.llm.settings import MAX_WORDS, MIN_SUPPORT
from reason2decide.llm.teach.fidelity import additions, dropped, findings, turned
from reason2decide.llm.teach.gates import GatedCase, failed_gates, instructions
from reason2decide.llm.teach.source_writing import Reading, SourceWriter


class Editor(SourceWriter):
    """Rewrites the rationales of one source as those of another.

    A rationale that affirms what the note only denies, or the other way round, is not written (`turned`), nor one that
    lacks more than half of the note's findings (`dropped`). Words and numbers that are in neither the note nor the
    text, and findings that it lacks, are listed in `meta["refine_flags"]`; with `drop_flagged` a rationale with
    additions is not written (`added`). A gate that the note itself fails is not applied to its rationale.

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
        min_support: float = MIN_SUPPORT,
        prompts: Path | None = None,
    ) -> None:
        self.original, self.source, self.drop_flagged = original, source, drop_flagged
        self.max_words, self.sampling, self.min_support = max_words, sampling, min_support
        self.prompt = load_prompt("refine", prompts)
        self._instructions = instructions(self.prompt)
        self.flagged = 0

    def calls(self, record: Record, labels: LabelSet) -> dict[str, Call]:
        """One call for each record that has a note."""
        note = record.rationales.get(self.original)
        if note is None:
            return {}
        messages = self.prompt.messages({"text": record.text, "rationale": note}, {"max_words": str(self.max_words)})
        schema = written_schema(self.max_words)
        return {record.label or "": Call(record.id, messages, schema, self.sampling, self.prompt.full_version)}

    def read(self, record: Record, labels: LabelSet, label: str, answer: ModelAnswer) -> Reading:
        """The rewritten note if it passes the gates, and the additions to it."""
        written = answer.parsed
        assert isinstance(written, Written)
        note, rationale = record.rationales[self.original], written.rationale.strip()
        choices = record.choices_or(labels)
        known = f"{record.text}\n{note}"
        case = GatedCase(known, label, choices, self._instructions, self.max_words, self.min_support)
        # The note's writer could see what it cites; what the editor adds is flagged.
        forgiven = {"not_in_text", *failed_gates(note, case)}
        lacking, added = dropped(rationale, note), additions(rationale, (known, record.label or ""))
        self.flagged += bool(added)
        flags = added | ({"dropped": sorted(lacking)} if lacking else {})
        failed = [gate for gate in failed_gates(rationale, case) if gate not in forgiven]
        failed += ["turned"] * bool(turned(rationale, note))
        failed += ["dropped"] * (2 * len(lacking) > len(findings(note)))
        failed += ["added"] * bool(added and self.drop_flagged)
        notes = {"refine_flags": flags} if flags else {}
        return Reading(None, failed[0], notes) if failed else Reading(rationale, notes=notes)

    def settings(self) -> dict[str, Any]:
        """The settings of the editor."""
        asked = {"from": self.original, "max_words": self.max_words, "drop_flagged": self.drop_flagged}
        return {**asked, "min_support": self.min_support, "sampling": dict(self.sampling)}

    def found(self) -> dict[str, Any]:
        """The number of rationales with additions, dropped or not."""
        return {"flagged": self.flagged}

"""Every string a trained model sees. Change one and `PROMPT_VERSION` with it: a bundle records the version it saw.

The prompts are the paper's (section "Method"): "predict: {x}", "explain: {x}", "given label: {y}, explain: {x}".
Each is a prefix and the text (`body`), joined by one space. They are tokenised separately and their ids joined, so
that a text is tokenised once, whatever its prefix. Every supported tokenizer splits at white space, so the ids equal
those of the whole string (checked by `tests/test_features.py`).

A model without an encoder reads the text first and then the same words, each task on a line of its own, so that
what it has read of a text serves both tasks (ours). Where a method is trained in one pass, the label that is shown to
the rationale task stands before the rationale, as the model itself would have written it, end token included (ours).
How the parts are put together is a `PromptForm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PROMPT_VERSION = 1

Candidate = tuple[int, ...]  # a label as the ids that a model scores, the end token last


@dataclass(frozen=True)
class PromptForm:
    """How text, task and answer follow one another.

    Attributes:
        text_first: the text comes before the words of the task, as a model without an encoder reads it, rather than
            after them (paper).
        one_pass: the label comes first in the answer and the rationale after it, from one prompt; else each task has
            its own prompt (paper).
        head, tail: what a chat template puts before the text, and between task and answer; empty for base models.
    """

    text_first: bool = False
    one_pass: bool = False
    head: str = ""
    tail: str = ""

    @property
    def shares_text(self) -> bool:
        """Whether both tasks read the same text, so that it is read once for both."""
        return self.text_first or self.one_pass

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


PAPER_FORM = PromptForm()
PREDICT_PREFIX = "predict:"
EXPLAIN_PREFIX = "explain:"


def explain_prefix(conditioning_label: str | None) -> str:
    """The words before the text when a rationale is asked for, given a label (None: without one)."""
    if conditioning_label is None:
        return EXPLAIN_PREFIX
    return f"given label: {conditioning_label}, {EXPLAIN_PREFIX}"


def body(text: str, choices: Sequence[str] | None) -> str:
    """The text as it appears in a prompt: a record's own choices come first, so that cutting a long text spares them.

    Labels common to all records are not listed: the model learns them (paper). A record's own choices are (ours).
    """
    if choices is None:
        return text.strip()
    return f"choices: {'; '.join(choices)}. {text.strip()}"


def join(prefix: str, text: str) -> str:
    """The whole prompt as one string."""
    return f"{prefix} {text.strip()}"

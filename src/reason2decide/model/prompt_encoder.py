"""Prompts and targets as token ids under given limits: the same in training and in use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from reason2decide.errors import DataError
from reason2decide.method.prompts import PAPER_FORM, PREDICT_PREFIX, Candidate, PromptForm, body, explain_prefix
from reason2decide.syntax import storable

TokenIds = Sequence[int] | NDArray[np.int32]


WORDS_KEPT = 10_000  # ours: labels and prefixes whose token ids are cached


@dataclass
class Truncation:
    """Counts how many texts, out of how many, were cut to fit."""

    cut: int = 0
    of: int = 0

    def count(self, was_cut: bool) -> None:
        self.cut += was_cut
        self.of += 1

    def __str__(self) -> str:
        return f"{self.cut} of {self.of}"


class LabelTooLong(DataError):
    """A label has more tokens than `lengths.label`."""


@dataclass(frozen=True)
class TokenPrompt:
    """What a model reads before its answer.

    Attributes:
        text: the text with what surrounds it. Where tasks share it, it is read once for all of them.
        lead: what follows the text before the answer.
        shared: whether other prompts read the same text, so that its reading is worth keeping.
    """

    text: Sequence[int]
    lead: tuple[int, ...] = ()
    shared: bool = False

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.text) + len(self.lead)


@dataclass
class PromptEncoder:
    """Token ids of prompts and targets under given limits; the one place that puts them together.

    Texts are tokenised without special tokens; a prompt is special tokens before, prefix, text, special tokens after.
    Where the text comes first, it is special tokens before, text; and then, as its lead, the words of the task.
    A text that does not fit is cut at its end, so that prefix and label always stay.
    """

    tokenizer: Any
    lengths: Lengths
    form: PromptForm = PAPER_FORM
    _words: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The special tokens a tokenizer puts around a text: none and </s> for T5, <s> and </s> for BART.
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        self.before, self.after = whole[:start], whole[start + len(bare) :]
        self._special = special_ids(self.tokenizer) - {self.tokenizer.unk_token_id}
        end = self.tokenizer.eos_token_id
        # What surrounds an answer; the end token is its last in any case.
        self.opens, self.ends = self.before, [*self.after, *([] if end in self.after else [end])]
        self._tail: list[int] = []
        if self.form.text_first:
            # A space belongs to the word after it, as tokenizers have it.
            self.before = self._template_ids(self.form.head.rstrip(" ")) or self.before
            self._tail = self._template_ids(self.form.tail.rstrip(" "))
            self.after, self.opens, self.ends = [], [], [end]

    def text_ids(self, texts: Sequence[str], after_choices: Sequence[bool] | None = None) -> list[list[int]]:
        """Ids of texts (`prompts.body`) as they stand in a prompt: after a prefix and a space, or first.

        Args:
            after_choices: whether each text comes after its record's own choices, whose ids are asked for apart.
        """
        after_space = self.form.head.endswith(" ") if self.form.text_first else True
        follows = after_choices or [False] * len(texts)
        spaces = [" " * (after_space or own) for own in follows]
        return self._plain_ids([f"{space}{text.strip()}" for space, text in zip(spaces, texts, strict=True)])

    def choices_ids(self, choices: Sequence[str] | None) -> list[int]:
        """Ids of a record's own choices, which stand before its text; none if it has none of its own.

        Raises:
            DataError: they leave no room for the text.
        """
        ids = self.text_ids([body("", choices)])[0] if choices else []
        if len(ids) >= self.room(predict=True):
            raise DataError(
                f"the choices of the case take {len(ids)} tokens and leave no room for its text in prompts of "
                f"{self.lengths.input}; give fewer or shorter ones, or train with a longer lengths.input"
            )
        return ids

    def reads(self, ids: TokenIds) -> bool:
        """Whether the tokens of a text show anything: a character that is neither unknown nor invisible."""
        known = [int(token) for token in ids if token != self.tokenizer.unk_token_id]
        shown = self.tokenizer.decode(known, skip_special_tokens=True)
        return any(character.isprintable() and not character.isspace() for character in shown)

    def target_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of rationales as targets, end token last; not yet cut to `lengths.rationale`."""
        contents = self._plain_ids([self._answer(text) for text in texts])
        return [[*self.opens, *content, *self.ends] for content in contents]

    @property
    def predict_head(self) -> list[int]:
        """What comes before the text in the prompt that asks for a label."""
        return [*self.before, *([] if self.form.text_first else self._word_ids(PREDICT_PREFIX))]

    @property
    def longest_after_text(self) -> int:
        """The most tokens that follow a text in its own sequence: without an encoder, task, label and rationale."""
        if not self.form.text_first:
            return 0
        task = max(len(self._task(PREDICT_PREFIX)), len(self._task(explain_prefix(""))))
        return task + self.lengths.label + self.lengths.rationale

    def decide(self, text_ids: TokenIds) -> TokenPrompt:
        """The prompt that asks for a label."""
        return self._prompt(PREDICT_PREFIX, text_ids, self._task(PREDICT_PREFIX) if self.form.text_first else ())

    def explain(self, text_ids: TokenIds, conditioning_label: str | None) -> TokenPrompt:
        """The prompt that asks for a rationale, given a label (None: without one)."""
        prefix = explain_prefix(conditioning_label)
        if not self.form.one_pass:
            return self._prompt(prefix, text_ids, self._task(prefix) if self.form.text_first else ())
        if conditioning_label is None:
            return self._prompt(PREDICT_PREFIX, text_ids, self._task(prefix))
        prompt = self.decide(text_ids)
        return replace(prompt, lead=(*prompt.lead, *self._label(conditioning_label)))

    def room(self, conditioning_label: str | None = None, *, predict: bool = False) -> int:
        """Number of text tokens that fit in a prompt; where the text comes first, the same in each."""
        own = not predict and not self.form.one_pass
        head = self._head(explain_prefix(conditioning_label) if own else PREDICT_PREFIX)
        return max(0, self.lengths.input - len(head) - len(self.after))

    def label_tokens(self, label: str) -> int:
        """Number of tokens of a label, end token included."""
        return len(self._label(label))

    def label_ids(self, label: str) -> Candidate:
        """The target ids of a label, end token last.

        Raises:
            LabelTooLong: the label is longer than `lengths.label`.
            DataError: it leaves no room for a text, or the tokenizer cannot write it.
        """
        content, ids = self._word_ids(self._answer(label)), self._label(label)
        if not content or self.tokenizer.unk_token_id in content:
            raise DataError(
                f"the base's vocabulary cannot write the label {label[:60]!r}: it has no tokens for some of its "
                "characters; reword the label, or take another base"
            )
        if len(ids) > self.lengths.label:
            raise LabelTooLong(
                f"the label {label[:60]!r} takes {len(ids)} tokens, over the limit of {self.lengths.label}; "
                "raise lengths.label or shorten the label"
            )
        if not self.room(label):
            raise DataError(
                f"the label {label[:60]!r} leaves no room for the text in prompts of {self.lengths.input} tokens; "
                "raise lengths.input or shorten the label"
            )
        return ids

    def candidates(self, choices: Sequence[str]) -> list[Candidate]:
        """The target ids of each choice, in their order.

        Raises:
            DataError: two choices look the same to the tokenizer, or one cannot be written or is too long.
        """
        candidates = [self.label_ids(choice) for choice in choices]
        if len(set(candidates)) < len(candidates):
            twin = next(c for c, ids in zip(choices, candidates, strict=True) if candidates.count(ids) > 1)
            raise DataError(
                f"the label {twin!r} and another have the same tokens for this base; reword one of {choices}"
            )
        return candidates

    def _prompt(self, prefix: str, text_ids: TokenIds, lead: tuple[int, ...]) -> TokenPrompt:
        head = self._head(prefix)
        room = max(0, self.lengths.input - len(head) - len(self.after))
        text = [*head, *np.asarray(text_ids[:room], np.int64).tolist(), *self.after]
        return TokenPrompt(text, lead, self.form.shares_text)

    def _task(self, prefix: str) -> tuple[int, ...]:
        """The words of a task after the text, on a line of their own, and what a template has before the answer."""
        return (*self._word_ids(f"\n{prefix}" if self.form.text_first else prefix), *self._tail)

    def _label(self, label: str) -> Candidate:
        return (*self.opens, *self._word_ids(self._answer(label)), *self.ends)

    def _head(self, prefix: str) -> list[int]:
        """What comes before the text."""
        return self.before if self.form.text_first else [*self.before, *self._word_ids(prefix)]

    def _answer(self, text: str) -> str:
        """An answer as it follows what comes before it."""
        follows_space = self.form.text_first and (not self.form.tail or self.form.tail.endswith(" "))
        return f"{' ' * follows_space}{text.strip()}"

    def _word_ids(self, words: str) -> list[int]:
        if words not in self._words:
            if len(self._words) >= WORDS_KEPT:
                self._words.clear()  # open label sets are unbounded
            self._words[words] = self._plain_ids([words])[0]
        return self._words[words]

    def _template_ids(self, text: str) -> list[int]:
        """Ids of a part of a chat template, its special tokens included."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        whole = [storable(text) for text in texts]
        encoded = self.tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
        # A "</s>" written in a note must not become the token that ends the prompt: such tokens are left out.
        return [
            ids if self._special.isdisjoint(ids) else [id for id in ids if id not in self._special] for ids in encoded
        ]


def special_ids(tokenizer: Any) -> set[int]:
    """The tokens that no text may contain: the special ones, those that only chat templates use included."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash that is equal for tokenizers that produce the same ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{type(tokenizer).__name__} {tokenizer.all_special_tokens} {content}".encode()).hexdigest()


class Lengths(BaseModel):
    """Limits in tokens, end token included; longer sequences are cut, counted and reported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: int = Field(
        1024,
        ge=16,
        description="longest prompt in tokens, text included; the text is cut, never the label (authors' code)",
    )
    rationale: int = Field(
        256, ge=2, description="longest rationale in tokens, as target and when generated (authors' code)"
    )
    label: int = Field(
        50,
        ge=2,
        description="longest label in tokens; a longer one is refused, as it could never be right (authors' code)",
    )

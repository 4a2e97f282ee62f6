"""Records to token ids: what the model reads and learns, the same in training and at use.

A text is tokenised once. The tables of a split live in files that are read by memory map, so that a million records
cost an index, not their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from reason2decide.backends import Candidate
from reason2decide.config import Lengths
from reason2decide.console import ProgressBar
from reason2decide.errors import DataError
from reason2decide.prompts import PREDICT_PREFIX, body, explain_prefix
from reason2decide.records import JsonlRecords, LabelSet, Record

TokenIds = Sequence[int] | NDArray[np.int32]
WORDS_KEPT = 10_000  # ours: token ids of labels and prefixes that are kept
TOKENISED_AT_ONCE = 1000  # ours: texts per call of the tokenizer, which is fast in batches


@dataclass
class Truncation:
    """How many of how many texts were cut to fit, to be reported."""

    cut: int = 0
    of: int = 0

    def count(self, was_cut: bool) -> None:
        self.cut += was_cut
        self.of += 1

    def __str__(self) -> str:
        return f"{self.cut} of {self.of}"


@dataclass
class PromptEncoder:
    """Token ids of prompts and targets under given limits; the one place that puts them together.

    Texts are tokenised without special tokens; a prompt is special tokens before, prefix, text, special tokens after.
    A text that does not fit is cut at its end, so that prefix and label always stay.
    """

    tokenizer: Any
    lengths: Lengths
    _words: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The special tokens a tokenizer puts around a text: none and </s> for T5, <s> and </s> for BART.
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        self.before, self.after = whole[:start], whole[start + len(bare) :]
        self._special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts (`prompts.body`) as they stand behind a prefix and a space."""
        return self._plain_ids([f" {text.strip()}" for text in texts])

    def target_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of rationales as targets, end token last; not yet cut to `lengths.rationale`."""
        return [[*self.before, *content, *self.after] for content in self._plain_ids([t.strip() for t in texts])]

    def predict_ids(self, text_ids: TokenIds) -> list[int]:
        """The prompt that asks for a label."""
        return self._prompt(PREDICT_PREFIX, text_ids)

    def explain_ids(self, text_ids: TokenIds, conditioning_label: str | None) -> list[int]:
        """The prompt that asks for a rationale, given a label or (None) given none."""
        return self._prompt(explain_prefix(conditioning_label), text_ids)

    def room(self, conditioning_label: str | None = None, *, predict: bool = False) -> int:
        """Tokens of text that fit a prompt."""
        prefix = self._word_ids(PREDICT_PREFIX if predict else explain_prefix(conditioning_label))
        return max(0, self.lengths.input - len(self.before) - len(prefix) - len(self.after))

    def label_ids(self, label: str) -> Candidate:
        """The target ids of a label, end token last.

        Raises:
            DataError: the label is longer than `lengths.label`.
        """
        ids = (*self.before, *self._word_ids(label.strip()), *self.after)
        if len(ids) > self.lengths.label:
            raise DataError(
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
            DataError: two choices look the same to the tokenizer, or one is too long.
        """
        candidates = [self.label_ids(choice) for choice in choices]
        if len(set(candidates)) < len(candidates):
            twin = next(c for c, ids in zip(choices, candidates, strict=True) if candidates.count(ids) > 1)
            raise DataError(
                f"the label {twin!r} and another have the same tokens for this base; reword one of {choices}"
            )
        return candidates

    def _prompt(self, prefix: str, text_ids: TokenIds) -> list[int]:
        head = [*self.before, *self._word_ids(prefix)]
        room = max(0, self.lengths.input - len(head) - len(self.after))
        return [*head, *text_ids[:room], *self.after]

    def _word_ids(self, words: str) -> list[int]:
        if words not in self._words:
            if len(self._words) >= WORDS_KEPT:
                self._words.clear()  # labels of open sets are without number
            self._words[words] = self._plain_ids([words])[0]
        return self._words[words]

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        # A "</s>" written in a note must not become the token that ends the prompt: such tokens are left out.
        return [
            ids if self._special.isdisjoint(ids) else [id for id in ids if id not in self._special] for ids in encoded
        ]


class TokenTable(Sequence[np.ndarray]):
    """Rows of token ids in one flat file, read by memory map."""

    def __init__(self, path: Path, offsets: np.ndarray) -> None:
        self._offsets = offsets
        empty = not offsets[-1]
        self._tokens = np.zeros(0, np.int32) if empty else np.memmap(path, np.int32, mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        return self._tokens[self._offsets[index] : self._offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        return np.diff(self._offsets)

    @classmethod
    def write(cls, path: Path, rows: Iterable[Sequence[int]]) -> TokenTable:
        """Write rows one after another and open the table they form."""
        lengths = [0]
        with path.open("wb") as stream:
            for row in rows:
                stream.write(np.asarray(row, np.int32).tobytes())
                lengths.append(len(row))
        return cls(path, np.cumsum(np.asarray(lengths, np.int64)))


@dataclass(frozen=True)
class Example:
    """One record as token ids: `rationale` is empty where the wanted source wrote none."""

    id: str
    text: np.ndarray
    rationale: np.ndarray
    label: str
    choices: tuple[str, ...]


class SplitFeatures(Sequence[Example]):
    """A split's records as `Example`s. Texts are tokenised once into a file of `folder`, rationales once per source."""

    def __init__(self, records: JsonlRecords, labels: LabelSet, encoder: PromptEncoder, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.records, self.labels, self.encoder, self.folder = records, labels, encoder, folder
        self.cut_texts, self.cut_rationales = Truncation(), Truncation()
        # Nothing is stored that no prompt has room for; each prompt then cuts to its own room.
        widest = max(encoder.room(), encoder.room(predict=True))
        rows = _batched(records, encoder.text_ids, _body, f"tokenising {records.path.stem}")
        self.texts = TokenTable.write(
            folder / f"{records.path.stem}.texts.bin", (self._cut(ids, widest, self.cut_texts) for ids in rows)
        )
        self.rationales = TokenTable(Path(), np.zeros(len(records) + 1, np.int64))

    def with_source(self, source: str | None) -> SplitFeatures:
        """The same texts with the rationales of a source as targets; without any for None."""
        if source is None:
            return self
        features = copy(self)
        features.cut_rationales = Truncation()
        rows = _batched(
            self.records, self.encoder.target_ids, lambda record: record.rationales.get(source), f"tokenising {source}"
        )
        # A cut rationale has no end token: the model is not taught to stop in mid-sentence (ours).
        limit = self.encoder.lengths.rationale
        features.rationales = TokenTable.write(
            self.folder / f"{self.records.path.stem}.rationales.{quote(source, safe='')}.bin",
            (self._cut(ids, limit, features.cut_rationales) for ids in rows),
        )
        return features

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        record = self.records[index]
        assert record.label is not None, "datasets hold labelled records only"
        return Example(
            record.id,
            self.texts[index],
            self.rationales[index],
            record.label,
            record.choices_or(self.labels),
        )

    @property
    def with_rationale(self) -> NDArray[np.int64]:
        """Indices of the records that have a rationale of the wanted source, in order."""
        return np.flatnonzero(self.rationales.lengths)

    @staticmethod
    def _cut(ids: list[int], limit: int, counter: Truncation) -> list[int]:
        if ids:
            counter.count(len(ids) > limit)
        return ids[:limit]


def _body(record: Record) -> str:
    return body(record.text, record.choices)


def _batched(
    records: Sequence[Record],
    tokenise: Callable[[Sequence[str]], list[list[int]]],
    text_of: Callable[[Record], str | None],
    description: str,
) -> Iterator[list[int]]:
    """Token ids of each record's text in order, empty where it has none, tokenised in batches."""
    stream = iter(records)
    with ProgressBar(description, len(records)) as bar:
        while batch := [text_of(record) for record in islice(stream, TOKENISED_AT_ONCE)]:
            ids = iter(tokenise([text for text in batch if text]) if any(batch) else [])
            for text in batch:
                yield next(ids) if text else []
            bar.advance(len(batch))

"""Records to token ids: what the model reads and learns, the same in training and in use.

A text is tokenised once, whatever the number of runs: token tables are cached next to the data and memory-mapped, so
that a million records cost an index, not their size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from reason2decide.console import ProgressBar
from reason2decide.data.records import JsonlRecords, LabelSet, Record
from reason2decide.errors import DataError
from reason2decide.files import new_folder, sha256_file
from reason2decide.method.prompts import PAPER_FORM, PROMPT_VERSION, Candidate, PromptForm, body
from reason2decide.model.prompt_encoder import LabelTooLong, PromptEncoder, Truncation, tokenizer_hash
from reason2decide.parallel import ordered, processes_for

T = TypeVar("T")
Ids = Sequence[int] | NDArray[np.int32]  # of one row; bytes are one too
ROWS_AT_ONCE = 1000  # ours: records per call of the tokenizer, which is fast in batches
TABLE, TOKENS = "table.json", "tokens"  # files of a cached table


class TokenTable(Sequence[np.ndarray]):
    """Rows of token ids, or of bytes of texts, in one flat file and their offsets in another, both memory-mapped."""

    def __init__(self, path: Path, dtype: type[np.integer[Any]] = np.int32) -> None:
        self._offsets = np.memmap(_offsets_path(path), np.int64, mode="r")
        empty = not self._offsets[-1]  # an empty file cannot be mapped
        self._tokens: NDArray[Any] = np.zeros(0, dtype) if empty else np.memmap(path, dtype, mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        return self._tokens[self._offsets[index] : self._offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row, (rows,)."""
        return np.diff(self._offsets).astype(np.int32)

    def lengths_of(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Tokens of these rows, in their order."""
        return np.asarray(self._offsets[rows + 1] - self._offsets[rows])

    @classmethod
    def write(cls, path: Path, rows: Iterable[Ids], dtype: type[np.integer[Any]] = np.int32) -> TokenTable:
        """Write rows one after another, and their offsets, and open the table they form."""
        position = 0
        with path.open("wb") as tokens, _offsets_path(path).open("wb") as offsets:
            offsets.write(np.int64(0).tobytes())
            for row in rows:
                position += len(row)
                tokens.write(row if isinstance(row, bytes) else np.asarray(row, dtype).tobytes())
                offsets.write(np.int64(position).tobytes())
        return cls(path, dtype)


def _offsets_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.offsets")


class TokenCache:
    """Cached token tables, each in its own folder, so that a text is tokenised once.

    A table is identified by the hash of the data file, the tokenizer, the prompts' version and form, its content and
    its limit.
    One whose files have changed is made again.
    """

    def __init__(self, folder: Path, tokenizer: Any, form: PromptForm = PAPER_FORM) -> None:
        self.folder = folder
        self.common = {
            "tokenizer": tokenizer_hash(tokenizer),
            "prompt_version": PROMPT_VERSION,
            "prompt_form": form.to_json(),
        }

    def table(
        self,
        identity: Mapping[str, Any],
        rows: Callable[[Truncation], Iterable[Ids]],
        dtype: type[np.integer[Any]] = np.int32,
    ) -> tuple[TokenTable, Truncation]:
        """The table of this identity and how many of its rows were cut; `rows` is read if there is none yet."""
        identity = {**identity, **self.common}
        folder = self.folder / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
        if (cut := self._intact(folder)) is None:
            cut = Truncation()
            with new_folder(folder, TABLE, force=folder.exists()) as partial:
                TokenTable.write(partial / TOKENS, rows(cut), dtype)
                description = {
                    "identity": identity,
                    "cut": [cut.cut, cut.of],
                    "sha256": {file.name: sha256_file(file) for file in partial.iterdir()},
                }
                (partial / TABLE).write_text(json.dumps(description, indent=2), "utf-8")
        return TokenTable(folder / TOKENS, dtype), cut

    @staticmethod
    def _intact(folder: Path) -> Truncation | None:
        try:
            description = json.loads((folder / TABLE).read_text("utf-8"))
            if all(sha256_file(folder / name) == digest for name, digest in description["sha256"].items()):
                return Truncation(*description["cut"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None


@dataclass(frozen=True)
class Example:
    """One record as token ids; `rationale` is empty if the chosen source wrote none.

    `contrasts` has its rationales for other labels, if the stage learns from them.
    """

    id: str
    text: np.ndarray
    rationale: np.ndarray
    label: str
    choices: tuple[str, ...]
    contrasts: Mapping[str, np.ndarray] = field(default_factory=dict)


class SplitFeatures(Sequence[Example]):
    """A split's records as `Example`s; texts and labels are tokenised once, rationales once per source.

    Raises:
        DataError: a label, or a record's own choice, is too long or looks like another to the tokenizer, or the
            choices leave no room for a text.
    """

    def __init__(
        self, records: JsonlRecords, data_hash: str, labels: LabelSet, encoder: PromptEncoder, cache: TokenCache
    ) -> None:
        self.records, self.data_hash, self.labels, self.encoder, self.cache = records, data_hash, labels, encoder, cache
        # No token is stored that no prompt has room for; each prompt then cuts to its own room.
        widest = max(encoder.room(), encoder.room(predict=True))
        # A text that fits beside the prefix of a decision may still be cut beside the label to explain.
        narrowest = min([encoder.room(predict=True), *map(encoder.room, labels.values)])
        self.texts, self.cut_texts = self._table("texts", None, widest, fits=narrowest)
        limits = encoder.lengths
        self.targets, _ = cache.table(
            self._identity("labels", [limits.label, limits.input]), lambda _: self._label_rows()
        )
        # What a step needs of a record besides tokens, so that its JSON is not parsed again: three rows per record.
        self._keys, _ = cache.table(self._identity("keys", None), lambda _: _each(_Keys(records)), np.uint8)
        self.rationales: TokenTable | None = None
        self.contrasts: TokenTable | None = None
        self.cut_rationales = Truncation()

    def with_source(self, source: str | None, *, contrasts: bool = False) -> SplitFeatures:
        """The same texts with the rationales of a source as targets; None: without rationales.

        With `contrasts`, also with that source's rationales for other labels than the gold one.
        """
        features = copy(self)
        features.contrasts = self._contrast_table(source) if source is not None and contrasts else None
        features.rationales, features.cut_rationales = None, Truncation()
        if source is not None:
            features.rationales, features.cut_rationales = self._table(
                f"rationales of {source}", source, self.encoder.lengths.rationale
            )
        return features

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        label, own = (self._keys[3 * index + place].tobytes().decode() for place in (1, 2))
        choices = tuple(json.loads(own)) if own else self.labels.values
        contrasts = {}
        if self.contrasts is not None:
            argued = ((choice, self.contrasts[index * self._most_choices + k]) for k, choice in enumerate(choices))
            contrasts = {choice: ids for choice, ids in argued if len(ids)}
        return Example(
            self.id_of(index),
            self.texts[index],
            self.rationales[index] if self.rationales is not None else np.zeros(0, np.int32),
            label,
            choices,
            contrasts,
        )

    def id_of(self, row: int) -> str:
        """The id of a record."""
        return str(self._keys[3 * row].tobytes(), "utf-8")

    def target_lengths_of(self, rows: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Target tokens of these records' labels and of their rationales."""
        rationales = self.rationales.lengths_of(rows) if self.rationales is not None else np.zeros(len(rows), np.int64)
        return self.targets.lengths_of(rows), rationales

    def widest_rationales_of(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Tokens of the longest target that each of these records' explain prompt may have."""
        _, widest = self.target_lengths_of(rows)
        if self.contrasts is None:
            return widest
        stride = self._most_choices
        others = self.contrasts.lengths_of((rows[:, None] * stride + np.arange(stride)).ravel())
        longest: NDArray[np.int64] = np.maximum(widest, others.reshape(len(rows), stride).max(axis=1))
        return longest

    @property
    def rationale_lengths(self) -> NDArray[np.int32]:
        """Target tokens of each record's rationale, 0 where it has none, (records,)."""
        return self.rationales.lengths if self.rationales is not None else np.zeros(len(self), np.int32)

    @property
    def with_rationale(self) -> NDArray[np.int64]:
        """Indices of the records that have a rationale from the chosen source, in order."""
        return np.flatnonzero(self.rationale_lengths)

    @property
    def prompt_lengths(self) -> NDArray[np.int32]:
        """Tokens of each record's longest prompt, that of a rationale given the longest label, (records,)."""
        return self._with_prefix(self.texts.lengths)

    def prompt_lengths_of(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """The same of these records, in their order."""
        return self._with_prefix(self.texts.lengths_of(rows))

    def _with_prefix(self, lengths: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        return np.asarray(np.minimum(lengths + self._widest_prefix, self.encoder.lengths.input), np.int32)

    @cached_property
    def _widest_prefix(self) -> int:
        return int(self.targets.lengths.max()) + len(self.encoder.explain([], ""))

    @cached_property
    def _most_choices(self) -> int:
        """The rows of each record in the table of contrasts."""
        return max(len(self.labels.values), *(len(record.choices or ()) for record in self.records))

    def _contrast_table(self, source: str) -> TokenTable:
        """Each record's rationales for each of its choices in turn, empty where there is none."""
        limit = self.encoder.lengths.rationale
        work = _Contrasts(self.records, self.encoder, source, limit, self.labels, self._most_choices)
        what = f"tokenising {self.records.path.stem} contrasts"
        table, _ = self.cache.table(self._identity(f"contrasts of {source}", limit), lambda _: _each(work, what))
        return table

    def _identity(self, what: str, limit: Any) -> dict[str, Any]:
        return {"data": self.data_hash, "labels": list(self.labels.values), "what": what, "limit": limit}

    def _table(
        self, what: str, source: str | None, limit: int, fits: int | None = None
    ) -> tuple[TokenTable, Truncation]:
        """At most `limit` tokens of each record's text, or of its rationale of a source; cut are those over `fits`."""
        most = limit if fits is None else fits

        def rows(cut: Truncation) -> Iterator[NDArray[np.int32]]:
            work = _Texts(self.records, self.encoder, source, limit)
            for length, ids in _each(work, f"tokenising {self.records.path.stem} {what}"):
                if length:
                    cut.count(length > most)
                yield ids

        return self.cache.table(self._identity(what, [limit, most]), rows)

    def _label_rows(self) -> Iterator[Candidate]:
        try:
            yield from self._labels_of_records()
        except LabelTooLong:
            known = {label for record in self.records for label in record.choices_or(self.labels)}
            tokens = {label: self.encoder.label_tokens(label) for label in known}
            longest = max(tokens, key=tokens.__getitem__)
            limit, most = self.encoder.lengths.label, tokens[longest]
            over = sum(count > limit for count in tokens.values())
            raise DataError(
                f"{over} of {len(tokens)} labels take more than lengths.label = {limit} tokens, the longest {most} "
                f"({longest[:60]!r}); set lengths.label = {most} or shorten them"
            ) from None

    def _labels_of_records(self) -> Iterator[Candidate]:
        self.encoder.candidates(self.labels.values)
        yield from _each(_Labels(self.records, self.encoder))


@dataclass(frozen=True)
class _Rows(ABC, Generic[T]):
    """What a table has of each record: computed for a range of them at a time, in any process."""

    records: JsonlRecords

    def __call__(self, rows: range) -> list[T]:
        return self.of([self.records[row] for row in rows])

    @abstractmethod
    def of(self, records: Sequence[Record]) -> list[T]:
        """The rows of these records, in their order."""


def _each(work: _Rows[T], description: str | None = None) -> Iterator[T]:
    """The rows of all records, in their order; with a progress bar if described."""
    count = len(work.records)
    parts = (range(start, min(start + ROWS_AT_ONCE, count)) for start in range(0, count, ROWS_AT_ONCE))
    with ProgressBar(description, count) if description else contextlib.nullcontext() as bar:
        for rows in ordered(work, parts, processes_for(count)):
            yield from rows
            if bar is not None:
                bar.advance(min(ROWS_AT_ONCE, count - bar.done))


@dataclass(frozen=True)
class _Keys(_Rows[bytes]):
    """The id, the gold label and the choices (JSON, or empty if it has none of its own) of each record."""

    def of(self, records: Sequence[Record]) -> list[bytes]:
        own = ["" if record.choices is None else json.dumps(record.choices) for record in records]
        keys = [(record.id, record.label or "", choices) for record, choices in zip(records, own, strict=True)]
        return [text.encode() for key in keys for text in key]


@dataclass(frozen=True)
class _Labels(_Rows[Candidate]):
    """The target ids of each record's label; its own choices are checked."""

    encoder: PromptEncoder

    def of(self, records: Sequence[Record]) -> list[Candidate]:
        ids = []
        for record in records:
            assert record.label is not None, "datasets contain labelled records only"
            if record.choices is not None:
                self.encoder.candidates(record.choices)
                self._require_room(record)
            ids.append(self.encoder.label_ids(record.label))
        return ids

    def _require_room(self, record: Record) -> None:
        try:
            self.encoder.choices_ids(record.choices)
        except DataError as error:
            raise DataError(f"record {record.id}: {error}") from None


@dataclass(frozen=True)
class _Texts(_Rows[tuple[int, NDArray[np.int32]]]):
    """The tokens of each record's text, or of its rationale of a source, at most `limit`, and how many there were."""

    encoder: PromptEncoder
    source: str | None
    limit: int

    def of(self, records: Sequence[Record]) -> list[tuple[int, NDArray[np.int32]]]:
        if self.source is None:
            found = self.encoder.text_ids([body(record.text, record.choices) for record in records])
        else:
            # A cut rationale has no end token: the model is not taught to stop in mid-sentence (ours).
            found = _where_given(self.encoder.target_ids, [record.rationales.get(self.source) for record in records])
        return [(len(ids), np.asarray(ids[: self.limit], np.int32)) for ids in found]


@dataclass(frozen=True)
class _Contrasts(_Rows[NDArray[np.int32]]):
    """The tokens of each record's contrasts of a source, a row for each of its choices and as many for each record."""

    encoder: PromptEncoder
    source: str
    limit: int
    labels: LabelSet
    stride: int

    def of(self, records: Sequence[Record]) -> list[NDArray[np.int32]]:
        texts: list[str | None] = []
        for record in records:
            argued = record.contrasts.get(self.source, {})
            choices = record.choices_or(self.labels)
            texts += [argued.get(choice) for choice in choices] + [None] * (self.stride - len(choices))
        return [np.asarray(ids[: self.limit], np.int32) for ids in _where_given(self.encoder.target_ids, texts)]


def _where_given(tokenise: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str | None]) -> list[list[int]]:
    """The token ids of each text, none where there is none."""
    given = [text for text in texts if text]
    ids = iter(tokenise(given) if given else [])
    return [next(ids) if text else [] for text in texts]

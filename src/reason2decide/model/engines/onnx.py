"""The engine for ordinary servers: ONNX Runtime and numpy, without torch. `export/graphs.py` writes what it runs.

Each text is encoded alone, and its labels are scored alone: there is no padding, and no other text can change a bit of
its label scores, whatever the weight type. At 256 tokens a batch of texts would be no faster, as the products are
limited by arithmetic. Rationales are generated in batches, since every step reads all weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.errors import BundleError, require
from reason2decide.method.decoding import guided, plausible
from reason2decide.method.prompts import Candidate
from reason2decide.model.decoding import GREEDY, Decoding, Draws
from reason2decide.model.engines import finite
from reason2decide.model.label_trie import Branch, branches
from reason2decide.model.prompt_encoder import TokenPrompt

ENGINE_FILE, ENGINE_FORMAT = "engine.json", 2
HIDDEN = -1e9  # added to a score, it leaves no attention in float32
BYTES_PER_FORWARD = 2**27  # ours: caches and log-probabilities of one forward pass, whatever the number of labels


@dataclass(frozen=True)
class EngineFile:
    """The content of `engine.json`: token ids, the decoder's layers, heads and head width, and the graphs' files.

    `positions` is the length of the longest prompt; None: any.
    """

    format: int
    weights: str
    architecture: str
    start: int
    end: int
    special: Sequence[int]
    vocabulary: int
    layers: int
    heads: int
    width: int
    positions: int | None
    encoder: str
    decoder: str


def read_engine(folder: Path) -> EngineFile:
    """Read the `engine.json` of an exported model.

    Raises:
        BundleError: it is not an exported model, or of another format.
    """
    path = folder / ENGINE_FILE
    if not path.is_file():
        raise BundleError(f"{folder} is not exported for ONNX Runtime: it has no {ENGINE_FILE}; run `r2d export` first")
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != ENGINE_FORMAT:
            raise BundleError(
                f"{folder} has export format {content['format']}, this program reads {ENGINE_FORMAT}; export it again"
            )
        file = EngineFile(**content)
        if any(Path(name).name != name for name in (file.encoder, file.decoder)):
            raise ValueError("a graph outside the folder")
        return file
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(f"{path} is not what an export writes; export the bundle again") from None


@dataclass(frozen=True)
class _Text:
    """An encoded text: keys and values of each decoder layer, (1, heads, length, width), as ONNX Runtime values."""

    length: int
    cross: list[Any]


@dataclass(frozen=True)
class _Read:
    """Tokens of a branch to be read after the past of a row."""

    row: int
    branch: Branch
    tokens: Candidate


class OnnxEngine:
    """Runs an exported encoder-decoder on the CPU.

    Args:
        folder: what `export_graphs` wrote.
        threads: processor threads of a forward pass; 0 leaves it to ONNX Runtime, which takes one per core.

    Raises:
        BundleError: not an export, of another format, or damaged.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self._ort = require("onnxruntime", "serve")
        self.folder, self.file = folder, read_engine(folder)
        self.positions = self.file.positions
        self._special = frozenset(self.file.special)
        self._encoder = self._session(folder / self.file.encoder, threads, spinning=False)
        self._decoder = self._session(folder / self.file.decoder, threads, spinning=True)
        caches = [value.name for value in self._decoder.get_inputs()[2:]]
        self._past_names, self._cross_names = caches[: len(caches) // 2], caches[len(caches) // 2 :]
        self._encoder_outputs = [value.name for value in self._encoder.get_outputs()]
        self._decoder_outputs = [value.name for value in self._decoder.get_outputs()]

    def score_labels(
        self, prompts: Sequence[TokenPrompt], candidates: Sequence[Sequence[Candidate]]
    ) -> list[NDArray[np.float64]]:
        """Total log-probability of each candidate given each prompt, (candidates,) per prompt, not normalised.

        A text's scores are bitwise the same in any batch.
        """
        return [self._score(self._encode(prompt), labels) for prompt, labels in zip(prompts, candidates, strict=True)]

    def generate(self, prompts: Sequence[TokenPrompt], max_tokens: int, decoding: Decoding = GREEDY) -> list[list[int]]:
        """Continuation of each prompt, without special tokens, at most `max_tokens` long.

        Args:
            prompts: texts of similar lengths are best batched together.
            max_tokens: the end token included.
        """
        texts = [self._encode(prompt) for prompt in prompts]
        written: list[list[int]] = [[] for _ in texts]
        for step in self._write(texts, max_tokens, decoding):
            for text, token in step:
                written[text].append(token)
        return [[token for token in row if token not in self._special] for row in written]

    def stream(self, prompt: TokenPrompt, max_tokens: int) -> Iterator[int]:
        """The tokens that `generate` returns for this prompt alone, each as soon as it is known."""
        for ((_, token),) in self._write([self._encode(prompt)], max_tokens, GREEDY):
            if token not in self._special:
                yield token

    def _session(self, path: Path, threads: int, *, spinning: bool) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Memory plans are cached per combination of sizes, and decoding has a new one for every token.
        options.enable_mem_pattern = False
        # Threads that spin between operators save a decoder of small operators a quarter of its time on an idle
        # machine. They stop after a call: they would take processor time from everything else.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            return self._ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # a damaged file can make the library raise anything
            raise BundleError(
                f"{path.name} cannot be loaded ({type(error).__name__}); export the bundle again"
            ) from None

    def _encode(self, prompt: TokenPrompt) -> _Text:
        ids = self._value(np.asarray(prompt.text, np.int64)[None])
        return _Text(len(prompt.text), self._encoder.run_with_ort_values(self._encoder_outputs, {"input_ids": ids}))

    def _read(
        self, ids: NDArray[np.int64], hidden: Any, past: Sequence[Any], cross: Sequence[Any]
    ) -> tuple[NDArray[np.float32], list[Any]]:
        """Read tokens (rows, tokens) after the past: log-probabilities (rows, tokens, vocabulary) and the new past.

        Raises:
            NotFinite: a log-probability is not finite.
        """
        feeds = {"input_ids": self._value(ids), "hidden": hidden}
        feeds.update(zip(self._past_names, past, strict=True))
        feeds.update(zip(self._cross_names, cross, strict=True))
        log_probs, *present = self._decoder.run_with_ort_values(self._decoder_outputs, feeds)
        return finite(log_probs.numpy()), present

    def _value(self, array: NDArray[Any]) -> Any:
        """An array as an ONNX Runtime value, not copied."""
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    def _nothing_read(self, rows: int) -> list[Any]:
        empty = self._value(np.zeros((rows, self.file.heads, 0, self.file.width), np.float32))
        return [empty] * (2 * self.file.layers)

    def _score(self, text: _Text, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        scores = np.zeros(len(candidates))
        start = np.array([[self.file.start]])
        log_probs, past = self._read(start, self._shown(text), self._nothing_read(1), text.cross)
        self._follow(text, [(0, branch) for branch in branches(candidates)], past, log_probs[:, 0], 1, scores)
        return scores

    def _follow(
        self,
        text: _Text,
        ways: list[tuple[int, Branch]],
        past: list[Any],
        following: NDArray[np.float32],
        depth: int,
        scores: NDArray[np.float64],
    ) -> None:
        """Add the branches' log-probabilities to `scores`, each from its row of the past and of `following`.

        A method, since a closure that calls itself would keep the text alive until garbage collection.

        Args:
            following: (rows, vocabulary), log-probabilities of the token after the past.
            depth: tokens in the past.
        """
        for row, branch in ways:
            scores[list(branch.candidates)] += following[row, branch.tokens[0]]
        for part in self._forwards(ways, depth):
            ids = np.zeros((len(part), len(part[0].tokens)), np.int64)
            for index, read in enumerate(part):
                ids[index, : len(read.tokens)] = read.tokens  # padding after them changes nothing: causal attention
            copies = self._rows(past, [read.row for read in part])
            log_probs, present = self._read(ids, self._shown(text), copies, text.cross)
            for index, read in enumerate(part):
                rest = read.branch.tokens[1:]
                scores[list(read.branch.candidates)] += log_probs[index, range(len(rest)), rest].sum(dtype=float)
            forks = [index for index, read in enumerate(part) if read.branch.branches]
            for length, group in groupby(forks, key=lambda index: len(part[index].tokens)):
                rows = list(group)
                onward = [(row, way) for row, index in enumerate(rows) for way in part[index].branch.branches]
                grown = self._rows(present, rows, depth + length)
                self._follow(text, onward, grown, log_probs[rows, length - 1], depth + length, scores)

    def _shown(self, text: _Text) -> Any:
        """The mask of a single text: nothing is hidden."""
        return self._value(np.zeros((1, text.length), np.float32))

    def _forwards(self, ways: list[tuple[int, Branch]], past: int) -> Iterator[list[_Read]]:
        """The tokens that branches still need read, longest first, in parts of bounded memory."""
        # A candidate's last token is scored, never read.
        reads = [_Read(row, way, way.tokens if way.branches else way.tokens[:-1]) for row, way in ways]
        reads = sorted((read for read in reads if read.tokens), key=lambda read: -len(read.tokens))
        while reads:
            tokens = len(reads[0].tokens)
            cache = 2 * self.file.layers * self.file.heads * self.file.width * (2 * past + tokens)
            size = max(1, BYTES_PER_FORWARD // (4 * (cache + 2 * tokens * self.file.vocabulary)))
            yield reads[:size]
            reads = reads[size:]

    def _rows(self, past: Sequence[Any], rows: Sequence[int], length: int | None = None) -> list[Any]:
        """Copies of the given rows of the past, up to a length."""
        return [self._value(np.ascontiguousarray(value.numpy()[:, :, :length][rows])) for value in past]

    def _write(self, texts: Sequence[_Text], max_tokens: int, decoding: Decoding) -> Iterator[list[tuple[int, int]]]:
        """At each step the token of every text that has not ended, as (text, token); the end token is its last."""
        guide = decoding.rivals if decoding.guidance else None
        batches = [_Batch(self, texts)] + ([_Batch(self, list(map(self._encode, guide)))] if guide else [])
        draws = Draws(decoding.seeds) if decoding.seeds is not None else None
        alive = np.arange(len(texts))
        tokens = np.full(len(texts), self.file.start)
        for _ in range(max_tokens):
            scores, *rivals = [batch.read(tokens) for batch in batches]
            if rivals:
                scores = guided(np, scores, rivals[0], decoding.guidance)
            if draws is not None:
                scores = plausible(np, scores) / decoding.temperature + draws.noise(alive.tolist(), scores.shape[-1])
            tokens = scores.argmax(-1)
            yield list(zip(alive.tolist(), tokens.tolist(), strict=True))
            unfinished = np.flatnonzero(tokens != self.file.end)
            if not len(unfinished):
                return
            if len(unfinished) < len(alive):
                order, *_ = [batch.keep(unfinished) for batch in batches]
                alive, tokens = alive[order], tokens[order]


class _Batch:
    """Texts decoded together, one row each."""

    def __init__(self, engine: OnnxEngine, texts: Sequence[_Text]) -> None:
        self._engine = engine
        self._past = engine._nothing_read(len(texts))
        longest = max(text.length for text in texts)
        self._hidden = np.ones((len(texts), longest), np.float32)
        for row, text in enumerate(texts):
            self._hidden[row, : text.length] = 0
        if len(texts) == 1:
            self._arrays = [value.numpy() for value in texts[0].cross]
        else:
            shape = (len(texts), engine.file.heads, longest, engine.file.width)
            self._arrays = [np.zeros(shape, np.float32) for _ in texts[0].cross]
            for row, text in enumerate(texts):
                for array, value in zip(self._arrays, text.cross, strict=True):
                    array[row, :, : text.length] = value.numpy()[0]
        self._share()

    def read(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read one token per row (rows,): log-probabilities of the next one (rows, vocabulary)."""
        log_probs, self._past = self._engine._read(tokens[:, None], self._mask, self._past, self._cross)
        return log_probs[:, 0]

    def keep(self, texts: NDArray[np.intp]) -> NDArray[np.intp]:
        """Drop all texts but the given ones; return these in their new order.

        Texts at the end fill the gaps, so that few keys and values are moved: a text's outweigh all the rest.
        """
        count = len(texts)
        order = np.arange(count)
        order[~np.isin(order, texts)] = texts[texts >= count]
        moved = np.flatnonzero(order != np.arange(count))
        for array in (self._hidden, *self._arrays):
            array[moved] = array[order[moved]]
        self._hidden, self._arrays = self._hidden[:count], [array[:count] for array in self._arrays]
        self._past = self._engine._rows(self._past, order.tolist())
        self._share()
        return order

    def _share(self) -> None:
        self._mask = self._engine._value(self._hidden)
        self._cross = [self._engine._value(array) for array in self._arrays]

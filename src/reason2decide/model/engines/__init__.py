"""Engines that run a model: label log-probabilities and generation behind one small protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reason2decide.method.prompts import Candidate


class Engine(Protocol):
    """What the predictor needs from an engine. Prompts and targets are token ids, special tokens included."""

    def score_labels(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Candidate]]
    ) -> list[NDArray[np.float64]]:
        """Total log-probability of each candidate given each prompt, not normalised; one array per prompt."""

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy continuation of each prompt, without special tokens, at most `max_tokens` long."""

    def stream(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """The tokens of one greedy continuation as they are generated."""

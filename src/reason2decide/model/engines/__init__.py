"""Engines that run a model: label log-probabilities and generation behind one small protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from reason2decide.errors import BundleError
from reason2decide.method.prompts import Candidate
from reason2decide.model.decoding import GREEDY, Decoding
from reason2decide.model.prompt_encoder import TokenPrompt

Scores = TypeVar("Scores", bound=NDArray[Any])


class NotFinite(BundleError):
    """A model computed something that is not a finite number: its weights are damaged or too large."""

    def __init__(self) -> None:
        super().__init__(
            "the model computes values that are not finite numbers, so its weights are damaged; "
            "copy the bundle again, or train the model again"
        )


def finite(scores: Scores) -> Scores:
    """The scores themselves.

    Raises:
        NotFinite: one of them is not a finite number.
    """
    if not np.isfinite(scores).all():
        raise NotFinite
    return scores


class Engine(Protocol):
    """What the predictor needs from an engine. Targets are token ids, special tokens included.

    `positions` is the length of the longest prompt that the model can read; None: it can read any. What an engine
    returns was computed from finite numbers only; else it raises `NotFinite`.
    """

    positions: int | None

    def score_labels(
        self, prompts: Sequence[TokenPrompt], candidates: Sequence[Sequence[Candidate]]
    ) -> list[NDArray[np.float64]]:
        """Total log-probability of each candidate given each prompt, not normalised; one array per prompt."""

    def generate(self, prompts: Sequence[TokenPrompt], max_tokens: int, decoding: Decoding = GREEDY) -> list[list[int]]:
        """Continuation of each prompt, without special tokens, at most `max_tokens` long."""

    def stream(self, prompt: TokenPrompt, max_tokens: int) -> Iterator[int]:
        """The tokens of one greedy continuation as they are generated."""

    def forget(self) -> None:
        """Let go of what is kept of earlier texts, so that what follows cannot depend on them."""

"""The kinds of model that both tasks are trained on and run with, behind one small protocol.

Training, label scoring and writing know `Architecture` and readings only. To add a kind of model, write a class with
the methods of the protocol in a file here, and name it in `kinds.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from reason2decide.model.architectures.readings import TextReading

Run = Callable[..., Any]  # the model, or a compiled form of it


class Architecture(Protocol):
    """How a kind of model reads a text and what follows it.

    Attributes:
        model: a model of transformers.
        start: tokens that precede everything that follows a text: the decoder's start token, or none.
    """

    model: Any
    start: tuple[int, ...]

    def read(self, texts: Sequence[Sequence[int]]) -> TextReading:
        """Read texts, one a row; gradients follow the caller's context."""

    def extend(self, reading: TextReading, ids: Tensor, run: Run | None = None) -> tuple[Tensor, TextReading]:
        """Read tokens (rows, tokens) after each row of a reading, which stays as it was.

        Padding on the right changes nothing before it: attention is causal. Only the last extension may have any.

        Returns:
            Logits of the token after each (rows, tokens, vocabulary), in the model's precision, and the grown reading.
        """

    def learn(
        self, texts: Sequence[Sequence[int]], ids: Tensor, run: Run | None = None, *, keep: bool = False
    ) -> tuple[Tensor, TextReading | None]:
        """Read texts and tokens after them in one pass of training.

        Args:
            keep: whether other tokens will follow the same texts, so that all that is computed of them is kept.

        Returns:
            Logits as `extend`, and the reading of the texts alone; None where nothing of it was kept.
        """

    def learn_embedded(self, embedded: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """Logits as `extend`, after texts given as embeddings (rows, tokens, width), padded on the right by a mask."""

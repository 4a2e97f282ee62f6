"""What an engine is told about how to write: greedily, guided, or drawn from seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reason2decide.model.prompt_encoder import TokenPrompt

SMALLEST = np.finfo(np.float32).tiny  # a float32 draw may be 0, whose logarithm is none


@dataclass(frozen=True)
class Decoding:
    """How continuations are written.

    Args:
        rivals: for each prompt the one to be guided away from; None: no guidance.
        guidance: w of `method.decoding.guided`.
        seeds: for each prompt the seed that its tokens are drawn from, so that a draw does not depend on the batch or
            the engine; None for the most probable tokens. Without any, all are greedy.
        temperature: of the draws.
    """

    rivals: Sequence[TokenPrompt] | None = None
    guidance: float = 0.0
    seeds: Sequence[int | None] | None = None
    temperature: float = 1.0

    def of(self, prompts: Sequence[int]) -> Decoding:
        """The same for some of the prompts, by index."""
        rivals = None if self.rivals is None else [self.rivals[prompt] for prompt in prompts]
        seeds = None if self.seeds is None else [self.seeds[prompt] for prompt in prompts]
        return replace(self, rivals=rivals, seeds=seeds)


GREEDY = Decoding()


class Draws:
    """Gumbel noise for each row, from its own seed: the argmax of log p / T + noise is a draw at temperature T."""

    def __init__(self, seeds: Sequence[int | None]) -> None:
        self._generators = [None if seed is None else np.random.default_rng(seed) for seed in seeds]

    def noise(self, rows: Sequence[int], vocabulary: int) -> NDArray[np.float32]:
        """The noise of one more token of these rows, (rows, vocabulary); 0 where a row is greedy."""
        noise = np.zeros((len(rows), vocabulary), np.float32)
        for place, row in enumerate(rows):
            if (generator := self._generators[row]) is not None:
                drawn = generator.standard_exponential(vocabulary, np.float32)
                noise[place] = -np.log(np.maximum(drawn, SMALLEST))
        return noise

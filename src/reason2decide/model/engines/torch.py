"""The reference engine: PyTorch and transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reason2decide.method.prompts import Candidate
from reason2decide.model.architectures.kinds import architecture_of
from reason2decide.model.decoding import GREEDY, Decoding
from reason2decide.model.engines import finite
from reason2decide.model.label_scores import score_labels
from reason2decide.model.prompt_encoder import TokenPrompt, special_ids
from reason2decide.model.reading import positions_of
from reason2decide.model.threads import limit_threads
from reason2decide.model.writing import Rows, write


class TorchEngine:
    """Runs a model of transformers, in float32, on a GPU where there is one."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        limit_threads(model.num_parameters())
        self.architecture = architecture_of(self.model, tokenizer.pad_token_id)
        self._special = special_ids(tokenizer)
        self._end = tokenizer.eos_token_id
        self.positions = positions_of(model.config)

    @torch.no_grad()
    def score_labels(
        self, prompts: Sequence[TokenPrompt], candidates: Sequence[Sequence[Candidate]]
    ) -> list[NDArray[np.float64]]:
        """Total log-probability of each candidate given each prompt (see `label_scores.score_labels`)."""
        reading = self.architecture.read([prompt.text for prompt in prompts])
        return [
            finite(scores.cpu().numpy().astype(np.float64))
            for scores in score_labels(self.architecture, reading, [prompt.lead for prompt in prompts], candidates)
        ]

    @torch.no_grad()
    def generate(self, prompts: Sequence[TokenPrompt], max_tokens: int, decoding: Decoding = GREEDY) -> list[list[int]]:
        """Continuation of each prompt, without special tokens, at most `max_tokens` long."""
        written: list[list[int]] = [[] for _ in prompts]
        for numbers in _groups(prompts, decoding):
            own = decoding.of(numbers)
            rows = self._rows([prompts[number] for number in numbers])
            rivals = self._rows(own.rivals) if own.rivals is not None and own.guidance else None
            for step in write(rows, rivals, own, end=self._end, max_tokens=max_tokens):
                for row, token in step:
                    written[numbers[row]].append(token)
        return [[id for id in row if id not in self._special] for row in written]

    def stream(self, prompt: TokenPrompt, max_tokens: int) -> Iterator[int]:
        """The tokens of one greedy continuation as they are generated."""
        with torch.no_grad():
            for ((_, token),) in write(self._rows([prompt]), None, GREEDY, end=self._end, max_tokens=max_tokens):
                if token not in self._special:
                    yield token

    def _rows(self, prompts: Sequence[TokenPrompt]) -> Rows:
        reading = self.architecture.read([prompt.text for prompt in prompts])
        return Rows(self.architecture, reading, [prompt.lead for prompt in prompts])


def _groups(prompts: Sequence[TokenPrompt], decoding: Decoding) -> list[list[int]]:
    """Indices of the prompts that are written together: all, or where a rival guides, those whose leads are alike.

    A row and its rival then begin to write at the same step.
    """
    numbers = list(range(len(prompts)))
    if decoding.rivals is None or not decoding.guidance:
        return [numbers]
    rivals = decoding.rivals

    def lengths(number: int) -> tuple[int, int]:
        return len(prompts[number].lead), len(rivals[number].lead)

    return [list(group) for _, group in groupby(sorted(numbers, key=lengths), key=lengths)]

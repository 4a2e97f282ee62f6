"""The reference engine: PyTorch and transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reason2decide.method.prompts import Candidate
from reason2decide.model.architectures import Architecture
from reason2decide.model.architectures.kinds import architecture_of
from reason2decide.model.architectures.leads import after_leads
from reason2decide.model.architectures.readings import TextReading
from reason2decide.model.decoding import GREEDY, Decoding
from reason2decide.model.engines import NotFinite, finite
from reason2decide.model.label_scores import score_labels
from reason2decide.model.padding import on_device
from reason2decide.model.prompt_encoder import TokenPrompt, special_ids
from reason2decide.model.reading import positions_of
from reason2decide.model.threads import limit_threads
from reason2decide.model.writing import write, write_all


class TorchEngine:
    """Runs a model of transformers, in float32, on a GPU where there is one.

    What it read last is kept where tasks share their text, so that a text is read once to decide and to explain.

    Args:
        threads: processor threads of a forward pass; 0: by the model's size (`threads.limit_threads`).
    """

    def __init__(self, model: Any, tokenizer: Any, threads: int = 0) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        if threads:
            torch.set_num_threads(threads)
        else:
            limit_threads(model.num_parameters())
        self.architecture = architecture_of(self.model, tokenizer.pad_token_id)
        self._special = special_ids(tokenizer)
        self._end = tokenizer.eos_token_id
        self.positions = positions_of(model.config)
        self._last: tuple[dict[tuple[int, ...], int], TextReading] | None = None

    @torch.no_grad()
    def score_labels(
        self, prompts: Sequence[TokenPrompt], candidates: Sequence[Sequence[Candidate]]
    ) -> list[NDArray[np.float64]]:
        """Total log-probability of each candidate given each prompt (see `label_scores.score_labels`)."""
        leads = [prompt.lead for prompt in prompts]
        scores = score_labels(self.architecture, self._read(prompts), leads, candidates)
        return [finite(own.cpu().numpy().astype(np.float64)) for own in scores]

    @torch.no_grad()
    def generate(self, prompts: Sequence[TokenPrompt], max_tokens: int, decoding: Decoding = GREEDY) -> list[list[int]]:
        """Continuation of each prompt, without special tokens, at most `max_tokens` long."""
        written = write_all(self._begun, prompts, decoding, end=self._end, max_tokens=max_tokens)
        return [[id for id in row if id not in self._special] for row in written]

    def stream(self, prompt: TokenPrompt, max_tokens: int) -> Iterator[int]:
        """The tokens of one greedy continuation as they are generated."""
        with torch.no_grad():
            for step in write(self._begun([prompt]), None, GREEDY, end=self._end, max_tokens=max_tokens):
                yield from (token for _, token in step if token not in self._special)

    def forget(self) -> None:
        """As `Engine`."""
        self._last = None

    def _begun(self, prompts: Sequence[TokenPrompt]) -> TorchRows:
        return TorchRows(self.architecture, self._read(prompts), [prompt.lead for prompt in prompts])

    def _read(self, prompts: Sequence[TokenPrompt]) -> TextReading:
        """The texts of prompts, read now or, where they are among those read last, then."""
        texts = [tuple(prompt.text) for prompt in prompts]
        if self._last is not None:
            places, reading = self._last
            if all(text in places for text in texts):
                rows = [places[text] for text in texts]
                whole = rows == list(range(len(reading)))
                return reading if whole else reading.rows(on_device(torch.tensor(rows), self.device))
        self._last = None  # before the next is read, so that two are never held
        reading = self.architecture.read([prompt.text for prompt in prompts])
        if any(prompt.shared for prompt in prompts):
            self._last = {text: row for row, text in enumerate(texts)}, reading
        return reading


class TorchRows:
    """As `writing.Rows`.

    Raises:
        NotFinite: a log-probability is not a finite number.
    """

    xp = torch
    dropped_together = 1 / 8  # ours

    def __init__(self, architecture: Architecture, reading: TextReading, leads: Sequence[Sequence[int]]) -> None:
        self._architecture = architecture
        self.log_probs, self._reading, self.given = after_leads(architecture, reading, leads)
        self._require_finite()

    def read(self, tokens: Sequence[int]) -> None:
        """As `Rows`."""
        ids = on_device(torch.tensor(tokens), self.log_probs.device)[:, None]
        logits, self._reading = self._architecture.extend(self._reading, ids)
        self.log_probs, self.given = logits[:, -1].float().log_softmax(-1), [rest[1:] for rest in self.given]
        self._require_finite()

    def keep(self, rows: Sequence[int]) -> list[int]:
        """As `Rows`."""
        self._reading = self._reading.rows(on_device(torch.tensor(rows), self.log_probs.device))
        self.given = [self.given[row] for row in rows]
        return list(rows)

    def array(self, values: NDArray[np.float32]) -> Tensor:
        """As `Rows`."""
        return torch.from_numpy(values).to(self.log_probs.device)

    def _require_finite(self) -> None:
        if not bool(torch.isfinite(self.log_probs).all()):
            raise NotFinite

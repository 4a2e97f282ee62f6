"""The reference engine: PyTorch and transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from reason2decide.method.decoding import guided, plausible
from reason2decide.method.prompts import Candidate
from reason2decide.model.decoding import GREEDY, Decoding, Draws
from reason2decide.model.engines import NotFinite, finite
from reason2decide.model.label_scores import score_labels
from reason2decide.model.padding import padded
from reason2decide.model.reading import positions_of
from reason2decide.model.threads import limit_threads


class TorchEngine:
    """Runs an encoder-decoder of transformers, in float32, on a GPU where there is one."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        limit_threads(model.num_parameters())
        self.pad_token_id = tokenizer.pad_token_id
        self._special = set(tokenizer.all_special_ids)
        self._start = model.config.decoder_start_token_id
        self._end = tokenizer.eos_token_id
        self.positions = positions_of(model.config)

    @torch.no_grad()
    def score_labels(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Candidate]]
    ) -> list[NDArray[np.float64]]:
        """Total log-probability of each candidate given each prompt (see `label_scores.score_labels`)."""
        input_ids, attention_mask = self._padded(prompts)
        states = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return [
            finite(scores.cpu().numpy().astype(np.float64))
            for scores in score_labels(self.model, states, attention_mask, candidates)
        ]

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, decoding: Decoding = GREEDY
    ) -> list[list[int]]:
        """Continuation of each prompt, without special tokens, at most `max_tokens` long."""
        input_ids, attention_mask = self._padded(prompts)
        # Ignore a base's generation settings (beams, penalties, forced tokens) except its start and end tokens.
        self.model.generation_config = GenerationConfig()
        settings = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            num_beams=1,
            decoder_start_token_id=self._start,
            eos_token_id=self._end,
            pad_token_id=self.pad_token_id,
        )
        watch = _FiniteWatch()
        processors = [watch]
        if decoding.rivals is not None and decoding.guidance:
            processors.append(_Guidance(self.model, *self._padded(decoding.rivals), decoding.guidance))
        if decoding.seeds is not None:
            processors.append(_Drawing(Draws(decoding.seeds), decoding.temperature))
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList(processors),
        )
        watch.require()
        return [[id for id in row if id not in self._special] for row in output.tolist()]

    @torch.no_grad()
    def stream(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """The tokens of one greedy continuation as they are generated."""
        input_ids, attention_mask = self._padded([prompt])
        output = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        token = self._start
        for _ in range(max_tokens):
            step = self.model(
                encoder_outputs=output,
                attention_mask=attention_mask,
                decoder_input_ids=torch.tensor([[token]], device=self.device),
                past_key_values=cache,
                use_cache=True,
            )
            logits = step.logits[0, -1]
            cache, token = step.past_key_values, int(logits.argmax())
            if not torch.isfinite(logits).all():
                raise NotFinite
            if token == self._end:
                return
            if token not in self._special:
                yield token

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        return padded(rows, self.pad_token_id, self.device)


class _Guidance(LogitsProcessor):  # type: ignore[misc]
    """Reads the same tokens after the rivals' prompts, and prefers those that they make less probable."""

    def __init__(self, model: Any, input_ids: Tensor, attention_mask: Tensor, guidance: float) -> None:
        self._model, self._mask, self._guidance = model, attention_mask, guidance
        self._encoded = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = self._model(
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            decoder_input_ids=input_ids[:, -1:],
            past_key_values=self._cache,
            use_cache=True,
        )
        rival = step.logits[:, -1].float().log_softmax(-1)
        guided_scores: Tensor = guided(torch, scores.log_softmax(-1), rival, self._guidance)
        return guided_scores


class _Drawing(LogitsProcessor):  # type: ignore[misc]
    """Adds each row's noise, so that the most probable token is a draw."""

    def __init__(self, draws: Draws, temperature: float) -> None:
        self._draws, self._temperature = draws, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.from_numpy(self._draws.noise(range(len(scores)), scores.shape[-1])).to(scores.device)
        drawn: Tensor = plausible(torch, scores) / self._temperature + noise
        return drawn


class _FiniteWatch(LogitsProcessor):  # type: ignore[misc]
    """Notes, without waiting for the device, whether all logits of a generation were finite."""

    def __init__(self) -> None:
        self._all: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found = torch.isfinite(scores).all()
        self._all = found if self._all is None else self._all & found
        return scores

    def require(self) -> None:
        """Raise `NotFinite` if some were not."""
        if self._all is not None and not bool(self._all):
            raise NotFinite

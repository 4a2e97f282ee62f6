"""Models with an encoder for the text and a decoder for the answer: T5, BART, T5Gemma, two BERTs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from reason2decide.model.architectures import Run
from reason2decide.model.architectures.readings import TextReading, forked
from reason2decide.model.padding import padded


class EncoderDecoder:
    """Reads a text with the encoder; what follows is the decoder's, after its start token."""

    def __init__(self, model: Any, padding: int) -> None:
        self.model, self._padding = model, padding
        self.start: tuple[int, ...] = (int(model.config.decoder_start_token_id),)

    def read(self, texts: Sequence[Sequence[int]], run: Run | None = None) -> TextReading:
        """As `Architecture`; the encoder is called itself, whatever `run` is."""
        ids, mask = padded(texts, self._padding, self.model.device)
        return TextReading(mask, self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state, None)

    def extend(self, reading: TextReading, ids: Tensor, run: Run | None = None) -> tuple[Tensor, TextReading]:
        """As `Architecture`; keys and values of the text are computed by the first extension, and kept.

        In training, nothing is kept: the decoder reads its tokens at once.
        """
        keeps = not torch.is_grad_enabled()
        cache = forked(reading.cache)
        if keeps and cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        output = (self.model if run is None else run)(
            encoder_outputs=BaseModelOutput(last_hidden_state=reading.states),
            attention_mask=reading.mask,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=keeps,
        )
        return output.logits, replace(reading, cache=cache)

    def learn(
        self, texts: Sequence[Sequence[int]], ids: Tensor, run: Run | None = None
    ) -> tuple[Tensor, TextReading | None]:
        """As `Architecture`."""
        # Decoder inputs rather than `labels`: the model would also compute its own loss, which nobody reads.
        input_ids, mask = padded(texts, self._padding, self.model.device)
        output = (self.model if run is None else run)(
            input_ids=input_ids, attention_mask=mask, decoder_input_ids=ids, use_cache=False
        )
        return output.logits, TextReading(mask, output.encoder_last_hidden_state, None)

    def learn_embedded(self, embedded: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """As `Architecture`."""
        output = self.model(inputs_embeds=embedded, attention_mask=mask, decoder_input_ids=ids, use_cache=False)
        logits: Tensor = output.logits
        return logits

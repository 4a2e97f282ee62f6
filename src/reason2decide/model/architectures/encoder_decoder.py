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

    def read(self, texts: Sequence[Sequence[int]]) -> TextReading:
        """As `Architecture`."""
        ids, mask = padded(texts, self._padding, self.model.device)
        return TextReading(mask, self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state, None)

    def extend(self, reading: TextReading, ids: Tensor, run: Run | None = None) -> tuple[Tensor, TextReading]:
        """As `Architecture`; keys and values of the text are computed by the first extension, and kept.

        In training the decoder reads its tokens at once, and nothing is kept besides what `learn` kept.
        """
        cache = forked(reading.cache)
        if cache is None and not torch.is_grad_enabled():
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        output = (self.model if run is None else run)(
            encoder_outputs=BaseModelOutput(last_hidden_state=reading.states),
            attention_mask=reading.mask,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.logits, replace(reading, cache=cache)

    def learn(
        self, texts: Sequence[Sequence[int]], ids: Tensor, run: Run | None = None, *, keep: bool = False
    ) -> tuple[Tensor, TextReading | None]:
        """As `Architecture`; what is kept are the encoder's states, and the decoder's keys and values of them."""
        # Decoder inputs rather than `labels`: the model would also compute its own loss, which nobody reads.
        input_ids, mask = padded(texts, self._padding, self.model.device)
        keeps = keep and not self.model.is_activation_checkpointing and run in (None, self.model)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if keeps else None
        output = (self.model if run is None else run)(
            input_ids=input_ids,
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        if cache is not None:
            cache = EncoderDecoderCache(DynamicCache(), output.past_key_values.cross_attention_cache)
        return output.logits, TextReading(mask, output.encoder_last_hidden_state, cache)

    def learn_embedded(self, embedded: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """As `Architecture`."""
        output = self.model(inputs_embeds=embedded, attention_mask=mask, decoder_input_ids=ids, use_cache=False)
        logits: Tensor = output.logits
        return logits

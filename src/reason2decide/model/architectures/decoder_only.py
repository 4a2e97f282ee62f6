"""Models that read text and answer as one sequence: Qwen, Gemma, Llama, SmolLM, Phi and their like.

Texts are padded on the left, so that what follows them is at the same place in each row: sliding windows and recurrent
layers then see what they would see of a row alone. What follows is padded on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from reason2decide.model.architectures import Run
from reason2decide.model.architectures.readings import TextReading, forked
from reason2decide.model.padding import padded


class DecoderOnly:
    """Reads a text once; keys and values of it are kept for all that follows."""

    start: tuple[int, ...] = ()

    def __init__(self, model: Any, padding: int) -> None:
        self.model, self._padding = model, padding
        # The library updates the states of linear attention in place, which no gradient can go back through.
        self._recurrent = "linear_attention" in (getattr(model.config, "layer_types", None) or ())

    def read(self, texts: Sequence[Sequence[int]]) -> TextReading:
        """As `Architecture`."""
        ids, mask = padded(texts, self._padding, self.model.device, left=True)
        cache = DynamicCache(config=self.model.config)
        self._forward(None, mask, cache, input_ids=ids, logits_to_keep=1)
        return TextReading(mask, None, cache)

    def extend(self, reading: TextReading, ids: Tensor, run: Run | None = None) -> tuple[Tensor, TextReading]:
        """As `Architecture`."""
        mask = torch.cat([reading.mask, torch.ones_like(ids)], 1)
        cache = forked(reading.cache)
        logits = self._forward(run, mask, cache, input_ids=ids)
        return logits, TextReading(mask, None, cache)

    def learn(
        self, texts: Sequence[Sequence[int]], ids: Tensor, run: Run | None = None, *, keep: bool = False
    ) -> tuple[Tensor, TextReading | None]:
        """As `Architecture`; the text is kept whether asked for or not.

        Nothing is kept in training where activations are checkpointed, the model is compiled, its states are recurrent,
        or its weights sharded, which are there for one pass and its gradient only.
        """
        sharded = hasattr(self.model, "unshard")
        alone = self._recurrent or sharded or self.model.is_activation_checkpointing or run not in (None, self.model)
        if alone and torch.is_grad_enabled():
            before, mask = padded(texts, self._padding, self.model.device, left=True)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            whole = torch.cat([before, ids], 1)
            logits = self._forward(run, mask, None, input_ids=whole, logits_to_keep=ids.shape[1])
            return logits, None
        reading = self.read(texts)
        return self.extend(reading, ids)[0], reading

    def learn_embedded(self, embedded: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """As `Architecture`."""
        width = mask.shape[1]
        places = (torch.arange(width, device=mask.device) + mask.sum(1, keepdim=True)) % width  # padding comes first
        mask, embedded = mask.gather(1, places), embedded.gather(1, places[..., None].expand_as(embedded))
        whole = torch.cat([embedded, self.model.get_input_embeddings()(ids)], 1)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        return self._forward(None, mask, None, inputs_embeds=whole, logits_to_keep=ids.shape[1])

    def _forward(self, run: Run | None, mask: Tensor, cache: Any | None, **inputs: Any) -> Tensor:
        """Logits of the inputs, which are the last of what the mask covers."""
        (given,) = (inputs[name] for name in ("input_ids", "inputs_embeds") if name in inputs)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -given.shape[1] :]
        output = (self.model if run is None else run)(
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **inputs,
        )
        logits: Tensor = output.logits
        return logits

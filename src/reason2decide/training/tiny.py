"""A small T5 from scratch, and a tokenizer trained on the texts it will read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, set_seed

from reason2decide.method.prompts import PREDICT_PREFIX, explain_prefix, join

TINY_VOCABULARY = 3000  # ours: small enough that embeddings are under half of the parameters
SENTINELS = 100  # T5's <extra_id_0> ... <extra_id_99>, for span corruption


def new_tiny(tokenizer: Any, seed: int) -> T5ForConditionalGeneration:
    """A small T5 (v1.0 shape, about 1.7 million parameters) with random weights (sizes are ours)."""
    set_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=128,
            d_kv=32,
            d_ff=512,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train_tokenizer(texts: Iterable[str], vocabulary: int = TINY_VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with T5's special tokens, trained on `texts`; what it never saw is encoded as bytes.

    Byte-pair merges keep the whole words of a small, repetitive corpus, which unigram training pruned: 1.2 against 2.0
    tokens per word on synthetic calls.
    """
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    specials = ["<pad>", "</s>", "<unk>", *sentinels]
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    trainer = BpeTrainer(vocab_size=vocabulary - 256, special_tokens=specials, show_progress=False)
    # The words of the prompts precede every text the model will read, so they precede every text here.
    tokenizer.train_from_iterator((join(explain_prefix(PREDICT_PREFIX), text) for text in texts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    learnt = {**model["vocab"], **{f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer.model = BPE(vocab=learnt, merges=merges, unk_token="<unk>", byte_fallback=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=sentinels,
    )

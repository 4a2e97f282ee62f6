"""What bases of known shapes take to train here: parameters, seconds a step, peak memory; each in its own process.

    r2d data import pubmedqa ori_pqal.json --test-ids test_ground_truth.json --out runs/pubmedqa
    python benchmarks/bases.py runs/pubmedqa [--bases t5-small SmolLM2-135M ...] [--layout one-pass] [--lora]

The shapes are those of the published models, their weights random. Steps are of Stage 2 at pi = 0.9, whole texts cut to
`--input` tokens, all weights trained with AdamW in float32 (bfloat16 products on a GPU) unless `--lora` is given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from training import new_engine, seconds
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from reason2decide.console import set_quiet
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.model.architectures.thin_decoder import ThinDecoderModel, thin_decoder_config
from reason2decide.model.hub import silence_transformers
from reason2decide.training import memory
from reason2decide.training.tiny import train_tokenizer


def t5(width: int, ff: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"d_model": width, "d_kv": 64, "d_ff": ff, "num_layers": layers, "num_heads": heads, **more}


def llama(width: int, ff: int, layers: int, heads: int, shared: int, head: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": head,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    }


GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BASES: dict[str, tuple[str, dict[str, Any]]] = {  # sizes: the configurations that the models are published with
    "t5-small": ("t5", t5(512, 2048, 6, 8, vocab_size=32128)),
    "flan-t5-small": ("t5", t5(512, 1024, 8, 6, vocab_size=32128, **GATED)),
    "t5-base": ("t5", t5(768, 3072, 12, 12, vocab_size=32128)),
    "flan-t5-base": ("t5", t5(768, 2048, 12, 12, vocab_size=32128, **GATED)),
    "bart-base": ("bart", {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12}
                  | {"decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}),
    "ModernBERT-base": ("modernbert", {}),
    "SmolLM2-135M": ("llama", llama(576, 1536, 30, 9, 3, 64, 49152)),
    "SmolLM2-360M": ("llama", llama(960, 2560, 32, 15, 5, 64, 49152)),
    "gemma-3-270m": ("gemma3_text", llama(640, 2048, 18, 4, 1, 256, 262144) | {"sliding_window": 512}),
    "Qwen3-0.6B": ("qwen3", llama(1024, 3072, 28, 16, 8, 128, 151936)),
    "tiny": ("qwen3", llama(32, 64, 2, 4, 2, 8, 1000)),  # to try the program
}  # fmt: skip


def built(base: str, tokenizer: Any) -> Any:
    """The base with random weights."""
    torch.manual_seed(0)
    kind, shape = BASES[base]
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    if kind == "modernbert":
        start = {"start": tokenizer.pad_token_id, "end": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
        return ThinDecoderModel(thin_decoder_config(AutoConfig.for_model(kind), **start))
    config = AutoConfig.for_model(kind, **shape, **ids)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = tokenizer.pad_token_id
        return AutoModelForSeq2SeqLM.from_config(config)
    return AutoModelForCausalLM.from_config(config)


def measure(base: str, args: argparse.Namespace) -> dict[str, float]:
    set_quiet(True), silence_transformers()
    dataset = DatasetFolder.open(args.dataset)
    tokenizer = train_tokenizer((record.text for record in dataset.split("train")), 900 if base == "tiny" else 20_000)
    model = built(base, tokenizer).to(args.device)
    changes: dict[str, Any] = {"lengths": {"input": args.input, "rationale": 64}, "dropout": 0.0}
    changes |= {"lora": {}} if args.lora else {}
    changes |= {"compile": True} if args.compile else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_engine(model, tokenizer, dataset, args, Path(folder), layout=args.layout, **changes)
        seconds(trainer.train_step, 2 if args.compile else 1, args.device)  # until shapes are known to vary
        taken = seconds(trainer.train_step, args.steps, args.device) / args.steps
    peak = memory.peak_bytes(torch.device(args.device)) / memory.GIB
    return {"parameters": model.num_parameters(), "seconds": taken, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=[base for base in BASES if base != "tiny"])
    parser.add_argument("--layout", default="two-prompt")
    parser.add_argument("--lora", action="store_true", help="train adapters only")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--input", type=int, default=256, help="longest text in tokens")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--source", default="human")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.bfloat16 = args.device == "cuda"
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return
    print(f"{args.batch_size} records of at most {args.input} tokens a step, {args.layout}, {args.device}", flush=True)
    for base in args.bases:
        command = [sys.executable, *sys.argv, "--only", base]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{base:16} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{base:16} {found['parameters'] / 1e6:5.0f} million parameters, {found['seconds']:6.2f} s a step, "
            f"{args.batch_size / found['seconds']:.2f} examples/s, peak {found['peak']:.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""This engine against a plain training loop: examples per second, peak memory, and where the time goes.

    r2d data import pubmedqa ori_pqal.json --test-ids test_ground_truth.json --out runs/pubmedqa
    python benchmarks/training.py runs/pubmedqa [--shape base --batch-size 32]

Both train the same random T5 in Stage 2 at pi = 0.9, with the same data, records per step, precision and device, in
turns within one process. The plain loop is written here after the description of the authors' code: it tokenises
inside the loss, pads to the longest of a random batch, generates up to 50 tokens for the whole batch in training mode,
and runs two forwards whose losses it adds. It is measured once with a model that ends its labels after 3 tokens and
once with one that does not end them. Its explain prompts hold the gold label, so that both read equally long prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LogitsProcessor, T5Config, T5ForConditionalGeneration

from reason2decide.console import set_quiet
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.method.prompts import PREDICT_PREFIX, PromptForm, explain_prefix, join
from reason2decide.model.hub import silence_transformers
from reason2decide.model.prompt_encoder import PromptEncoder
from reason2decide.signals import StopSignals
from reason2decide.training import memory
from reason2decide.training.base import set_dropout
from reason2decide.training.config import Config
from reason2decide.training.config_file import parse_config
from reason2decide.training.features import SplitFeatures, TokenCache
from reason2decide.training.processes import Processes
from reason2decide.training.run_log import RunLog
from reason2decide.training.stage_plan import batch_plan
from reason2decide.training.tiny import train_tokenizer
from reason2decide.training.trainer import RunContext, StageTrainer

SHAPES = {
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},  # to try the program
}
VOCABULARY = 32128  # T5's
PI, ALPHA, MOST_LABEL_TOKENS = 0.9, 0.7, 50


class EndsAfter(LogitsProcessor):
    """Makes a random model end its text after so many tokens, as one that has learnt short labels does."""

    def __init__(self, tokens: int, end: int) -> None:
        self.tokens, self.end = tokens, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wanted = input_ids.shape[1] >= self.tokens  # the start token is one of them
        scores = scores.clone()
        scores[:, self.end] = torch.inf if wanted else -torch.inf
        return scores


class PlainLoop:
    """The method as its description reads, without further thought."""

    def __init__(self, model: Any, tokenizer: Any, records: list[Record], args: argparse.Namespace, ends: int) -> None:
        self.model, self.tokenizer, self.records, self.args = model.train(), tokenizer, records, args
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        self.processor = [EndsAfter(ends, tokenizer.eos_token_id)]
        self.random = random.Random(0)

    def step(self) -> None:
        batch = self.random.sample(self.records, self.args.batch_size)
        with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.bfloat16):
            predict = self._tokens([join(PREDICT_PREFIX, record.text) for record in batch], 512)
            with torch.no_grad():
                generated = self.model.generate(
                    **predict, max_new_tokens=MOST_LABEL_TOKENS, do_sample=False, logits_processor=self.processor
                )
            self.tokenizer.batch_decode(generated, skip_special_tokens=True)
            label_loss = self.model(**predict, labels=self._targets([record.label or "" for record in batch], 50)).loss
            explain = self._tokens([join(explain_prefix(record.label), record.text) for record in batch], 512)
            rationales = self._targets([record.rationales[self.args.source] for record in batch], 256)
            loss = ALPHA * label_loss + (1 - ALPHA) * self.model(**explain, labels=rationales).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _tokens(self, texts: list[str], longest: int) -> Any:
        settings = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        return self.tokenizer(texts, **settings).to(self.args.device)

    def _targets(self, texts: list[str], longest: int) -> torch.Tensor:
        tokens = self._tokens(texts, longest)
        return tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100)


def new_model(args: argparse.Namespace, tokenizer: Any) -> Any:
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = T5Config(vocab_size=VOCABULARY, decoder_start_token_id=tokenizer.pad_token_id, **ids, **SHAPES[args.shape])
    return T5ForConditionalGeneration(config).to(args.device)


def new_engine(
    model: Any, tokenizer: Any, dataset: DatasetFolder, args: argparse.Namespace, folder: Path, **changes: Any
) -> StageTrainer:
    """A trainer of Stage 2 whose schedules have reached their ends, of a model with or without an encoder."""
    config: Config = parse_config(
        {
            "method": "r2d-no-stage1",
            "base": "tiny",
            "dataset": str(dataset.path),
            "rationale_source": args.source,
            "steps": 100_000,
            "batch_size": args.batch_size,
            "learning_rate": 1e-5,
            "warmup_share": 0.0,
            "ramp_share": 0.0,
            "sampling_cap": PI,
            "alpha": ALPHA,
            "lengths": {"input": 512},
            **changes,
        },
        "the benchmark's configuration",
    )
    form = PromptForm(text_first=not model.config.is_encoder_decoder, one_pass=config.one_pass)
    encoder = PromptEncoder(tokenizer, config.lengths, form)
    cache = TokenCache(folder / "tokens", tokenizer, encoder.form)
    train = SplitFeatures(dataset.split("train"), dataset.hashes["train"], dataset.info.labels, encoder, cache)
    train = train.with_source(args.source)
    processes, stage = Processes(), config.stages()[0]
    log = RunLog(folder / "log.jsonl", (), {}, {})
    context = RunContext(config, folder, processes, log, StopSignals(), {}, {}, args.bfloat16)
    return StageTrainer(context, stage, model, train, train, batch_plan(config, stage, train, 1), finished={})


def seconds(step: Callable[[], None], times: int, device: str) -> float:
    started = time.perf_counter()
    for _ in range(times):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(
    args: argparse.Namespace, tokenizer: Any, dataset: DatasetFolder, records: list[Record], folder: Path
) -> None:
    """Both in turns, for a model that ends its labels and one that does not."""
    engine = new_engine(new_model(args, tokenizer), tokenizer, dataset, args, folder)
    for ends in (3, MOST_LABEL_TOKENS + 1):
        plain = PlainLoop(new_model(args, tokenizer), tokenizer, records, args, ends)
        engine.step = 0  # so that both parts see the same batches, long and short
        plain.step(), engine.train_step()
        speeds = defaultdict(list)
        for _ in range(args.rounds):
            for name, step in (("plain", plain.step), ("engine", engine.train_step)):
                taken = seconds(step, args.steps, args.device)
                speeds[name].append(args.steps * args.batch_size / taken)
        whole = [len(values) / sum(1 / value for value in values) for values in (speeds["engine"], speeds["plain"])]
        ratios = [one / other for one, other in zip(speeds["engine"], speeds["plain"], strict=True)]
        what = "ends labels after 3 tokens" if ends == 3 else "does not end labels"
        medians = ", ".join(f"{name} {statistics.median(values):.3f} examples/s" for name, values in speeds.items())
        print(f"model that {what}: {medians}, ratio {statistics.median(ratios):.2f} ", end="")
        print(
            f"({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds), over all {whole[0] / whole[1]:.2f}",
            flush=True,
        )
        del plain


def parts(args: argparse.Namespace, tokenizer: Any, dataset: DatasetFolder, folder: Path) -> None:
    """Seconds of each part of a step, the floor that its arithmetic sets, and what dropout costs."""
    taken: dict[str, float] = defaultdict(float)
    inside: list[str] = []
    trainer = new_engine(new_model(args, tokenizer), tokenizer, dataset, args, folder)

    def timed(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **settings: Any) -> Any:
            if inside:  # the library calls itself again
                return original(*arguments, **settings)
            inside.append(name)
            if args.device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            result = original(*arguments, **settings)
            if args.device == "cuda":
                torch.cuda.synchronize()
            taken[part] += time.perf_counter() - started
            inside.clear()
            return result

        setattr(owner, name, wrapped)

    trainer.train_step()
    own = trainer.objective
    for owner, name, part in (
        (own, "predict_batch", "putting batches together"),
        (own, "explain_batch", "putting batches together"),
        (own, "label_loss", "forward, label"),
        (own.labels, "ask", "conditioning labels"),
        (own, "explained", "forward, rationale"),
        (torch.autograd, "backward", "backward, both"),
        (trainer.optimizer, "step", "optimizer"),
    ):
        timed(owner, name, part)
    whole = seconds(trainer.train_step, args.steps * 2, args.device)
    steps = args.steps * 2
    taken["the rest"] = whole - sum(taken.values())
    for part, value in taken.items():
        print(f"  {part:<26} {value / steps:7.3f} s  {value / whole:5.1%}")
    counted = new_engine(new_model(args, tokenizer), tokenizer, dataset, args, folder)
    counted.step = 1  # a step's batches are a function of its number: these are the steps that were timed
    with FlopCounterMode(display=False) as counter:
        seconds(counted.train_step, steps, args.device)
    flops, ceiling = counter.get_total_flops() / steps, matrix_product_ceiling(args)
    floor = flops / ceiling
    print(f"  a step: {whole / steps:.3f} s; its matrix products: {flops / 1e12:.3f} TFLOP; one large product reaches")
    print(
        f"  {ceiling / 1e12:.3f} TFLOP/s; hence a floor of {floor:.3f} s, a utilisation of {floor * steps / whole:.0%}"
    )
    undropped = new_model(args, tokenizer)
    set_dropout(undropped, 0.0)
    undropped_trainer = new_engine(undropped, tokenizer, dataset, args, folder)
    undropped_trainer.step = trainer.step
    undropped_trainer.train_step(), trainer.train_step()
    ratio = [
        seconds(undropped_trainer.train_step, args.steps, args.device)
        / seconds(trainer.train_step, args.steps, args.device)
        for _ in range(3)
    ]
    print(
        f"  without dropout a step takes {statistics.median(ratio):.2f} of its time "
        f"({min(ratio):.2f} to {max(ratio):.2f}, {len(ratio)} rounds)"
    )


def matrix_product_ceiling(args: argparse.Namespace) -> float:
    """FLOP/s of the model's widest layer over a batch of 512-token texts: the most that arithmetic can reach here."""
    shape, kind = SHAPES[args.shape], torch.bfloat16 if args.bfloat16 else torch.float32
    rows = args.batch_size * 512
    left = torch.randn(rows, shape["d_model"], device=args.device, dtype=kind)
    right = torch.randn(shape["d_model"], shape["d_ff"], device=args.device, dtype=kind)
    best = min(seconds(lambda: left @ right, 10, args.device) / 10 for _ in range(5))
    return 2 * rows * shape["d_model"] * shape["d_ff"] / best


def conditioning(args: argparse.Namespace, tokenizer: Any, dataset: DatasetFolder, folder: Path) -> None:
    """What predicting y^ with and without dropout costs, as shares of one step's time, in turns."""
    trainers = {
        dropout: new_engine(new_model(args, tokenizer), tokenizer, dataset, args, folder, conditioning_dropout=dropout)
        for dropout in (True, False)
    }
    taken = defaultdict(list)
    for trainer in trainers.values():
        trainer.train_step()
    for _ in range(args.rounds):
        for dropout, trainer in trainers.items():
            taken[dropout].append(seconds(trainer.train_step, args.steps, args.device) / args.steps)
    ratios = [off / on for off, on in zip(taken[False], taken[True], strict=True)]
    print(
        f"y^ without dropout (an encoder pass of its own): a step takes {statistics.median(ratios):.2f} times as long"
    )
    print(f"  ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)")


def peak_of(args: argparse.Namespace, kind: str) -> int:
    """Peak memory of one of the two in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="steps of each in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", default="human")
    parser.add_argument("--parts", nargs="+", default=["compare", "memory", "parts", "conditioning"])
    parser.add_argument("--only", choices=["plain", "engine"], help="a few steps of one, for its peak memory")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.bfloat16 = args.device == "cuda"
    silence_transformers()
    set_quiet(True)
    dataset = DatasetFolder.open(args.dataset)
    records = list(dataset.split("train"))
    tokenizer = train_tokenizer(words(records), VOCABULARY - 256)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.only:
            model = new_model(args, tokenizer)
            if args.only == "plain":
                step = PlainLoop(model, tokenizer, records, args, MOST_LABEL_TOKENS + 1).step
            else:
                step = new_engine(model, tokenizer, dataset, args, folder).train_step
            seconds(step, 5, args.device)
            print(json.dumps({"peak": memory.peak_bytes(torch.device(args.device))}))
            return
        print(f"t5-{args.shape} shape, {args.batch_size} records a step, {args.device}, torch {torch.__version__}")
        if "compare" in args.parts:
            compare(args, tokenizer, dataset, records, folder)
        if "memory" in args.parts:
            peaks = {kind: peak_of(args, kind) / memory.GIB for kind in ("plain", "engine")}
            print("peak memory of a process: " + ", ".join(f"{kind} {peak:.2f} GiB" for kind, peak in peaks.items()))
        if "parts" in args.parts:
            print("where the engine's time goes")
            parts(args, tokenizer, dataset, folder)
        if "conditioning" in args.parts:
            conditioning(args, tokenizer, dataset, folder)


def words(records: list[Record]) -> Iterator[str]:
    for record in records:
        yield from (record.text, record.label or "", *record.rationales.values())


if __name__ == "__main__":
    main()

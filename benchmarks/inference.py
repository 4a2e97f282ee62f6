"""The engines against the plain way: label distributions, labels with rationales, memory, size, start-up, and limits.

    python benchmarks/inference.py --folder runs/inference [--shape small] [--parts labels batch-1 batch-8 process]
                                   [--weights float32 int8]
    python benchmarks/inference.py --folder runs/inference --device cuda --parts labels batch-1 batch-8

A random T5 (v1.0 shape, vocabulary 32128) is built and exported once into the folder. Texts have 256 tokens, the eight
labels four, rationales 64: the end token is made impossible, equally for all. The plain way is `generate` of
transformers in float32, as the authors' inference does: once for the label, once more for the rationale, each with the
encoder; for a distribution over labels, which `generate` does not give, one forward per label, all eight in a batch.
With `--one-pass` every engine is measured again as a model trained in one pass runs: the rationale follows the label,
and the text is read once for both.
All take turns in one process, the first round is not counted; figures are medians and ranges. In the part `process`
each engine runs in a process of its own (Linux); its ms per token are medians and quartiles over one rationale. On a
GPU the torch engine in bfloat16 stands against the plain way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reason2decide.model.prompt_encoder import TokenPrompt

SHAPES = {
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},  # to try the program
}
VOCABULARY = 32128  # T5's
TEXT, LABEL, RATIONALE, LABELS = 256, 4, 64, 8
ROUNDS = {"labels": 9, "batch-1": 5, "batch-8": 3}
PARTS = (*ROUNDS, "process")
TORCH = ("bfloat16",)
ONE_PASS = " one-pass"  # ends the name of an engine that reads the text once
EXPORTED = ("float32", "int8-decoder", "int8-blocks", "int8")
END = 1


class Tokenizer:
    """As much of T5's tokenizer as an export and an engine ask for."""

    pad_token_id, eos_token_id, all_special_ids = 0, END, (0, END, 2)


class Plain:
    """transformers, as its documentation shows it."""

    def __init__(self, folder: Path, device: str) -> None:
        import torch
        from transformers import T5ForConditionalGeneration

        self.torch, self.device, self.times = torch, device, list[float]()
        self.model = T5ForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32).to(device).eval()

    def distribution(self, prompt: list[int], labels: list[tuple[int, ...]]) -> np.ndarray:
        ids = self.torch.tensor([prompt] * len(labels), device=self.device)
        target = self.torch.tensor(labels, device=self.device)
        with self.torch.no_grad():
            log_probs = self.model(input_ids=ids, labels=target).logits.log_softmax(-1)
        found: np.ndarray = log_probs.gather(-1, target[..., None]).sum((1, 2)).cpu().numpy()
        return found

    def write(self, prompts: list[list[int]], tokens: int) -> None:
        ids = self.torch.tensor(prompts, device=self.device)
        self.model.generate(
            input_ids=ids,
            attention_mask=self.torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            logits_processor=[self._tick],
        ).cpu()

    def _tick(self, ids: Any, scores: Any) -> Any:
        self.times.append(time.perf_counter())
        return scores

    def decide(self, prompts: list[list[int]], labels: list[tuple[int, ...]]) -> None:
        self.write(prompts, LABEL)


class Ours:
    """An engine behind the protocol, for two prompts or for one."""

    def __init__(self, engine: Any, *, one_pass: bool) -> None:
        self.engine, self.one_pass, self.times = engine, one_pass, list[float]()
        self.asked: list[TokenPrompt] = []
        if hasattr(engine, "_read"):
            read = engine._read

            def timed(*arguments: Any) -> Any:
                self.times.append(time.perf_counter())
                return read(*arguments)

            engine._read = timed

    def distribution(self, prompt: list[int], labels: list[tuple[int, ...]]) -> np.ndarray:
        return np.asarray(self.engine.score_labels([TokenPrompt(prompt)], [labels])[0])

    def write(self, prompts: list[list[int]], tokens: int) -> None:
        given = [replace(own, lead=(3, 4, END)) for own in self.asked] if self.one_pass else map(TokenPrompt, prompts)
        self.engine.generate(list(given), tokens)

    def decide(self, prompts: list[list[int]], labels: list[tuple[int, ...]]) -> None:
        self.engine.forget()  # the texts of the round before
        self.asked = [TokenPrompt(prompt, shared=self.one_pass) for prompt in prompts]
        self.engine.score_labels(self.asked, [labels] * len(prompts))


def engine(name: str, folder: Path, device: str = "cpu") -> Plain | Ours:
    """An engine by name, its end token impossible."""
    if name == "plain":
        return Plain(folder, device)
    one_pass, name = name.endswith(ONE_PASS), name.removesuffix(ONE_PASS)
    if name in TORCH:
        from reason2decide.model.engines.torch import TorchEngine

        torch_engine = TorchEngine(Plain(folder, device).model.bfloat16(), Tokenizer())
        torch_engine._end = None
        return Ours(torch_engine, one_pass=one_pass)
    from reason2decide.model.engines.onnx import OnnxEngine

    engine = OnnxEngine(folder / name, threads=2)
    engine.file = replace(engine.file, end=-1)
    return Ours(engine, one_pass=one_pass)


def build(folder: Path, shape: str) -> None:
    """The random model and its exports, each unless it is there."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from reason2decide.export.graphs import export_graphs

    if not (folder / "model").is_dir():
        torch.manual_seed(0)
        config = T5Config(vocab_size=VOCABULARY, **SHAPES[shape], decoder_start_token_id=0)
        T5ForConditionalGeneration(config).save_pretrained(folder / "model")
    model = Plain(folder, "cpu").model
    for weights in EXPORTED:
        if not (folder / weights / "engine.json").is_file():
            (folder / weights).mkdir(exist_ok=True)
            started = time.perf_counter()
            export_graphs(model, Tokenizer(), folder / weights, weights)
            print(f"exported {weights} in {time.perf_counter() - started:.0f} s", flush=True)


def examples(batch: int) -> tuple[list[list[int]], list[list[int]], list[tuple[int, ...]]]:
    """Prompts for labels, prompts for rationales, and labels without a token in common but the last."""
    random = np.random.default_rng(0)
    asked, explained = random.integers(3, VOCABULARY - 200, (2, batch, TEXT)).tolist()
    firsts = random.permutation(np.arange(3, VOCABULARY - 200))[: LABELS * (LABEL - 1)].reshape(LABELS, -1)
    return asked, explained, [(*own, END) for own in firsts.tolist()]


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(part: str, engines: dict[str, Plain | Ours]) -> None:
    """One part: every engine in turn, round by round, and their ratio to the first."""
    asked, explained, labels = examples(8 if part == "batch-8" else 1)
    taken: dict[str, list[float]] = {name: [] for name in engines}

    def work(own: Plain | Ours) -> None:
        if part == "labels":
            own.distribution(asked[0], labels)
        else:
            own.decide(asked, labels)
            own.write(explained, RATIONALE)

    for _ in range(ROUNDS[part] + 1):
        for name, own in engines.items():
            taken[name].append(seconds(partial(work, own)))
    counted = {name: rounds[1:] for name, rounds in taken.items()}
    plain = counted["plain"]
    for name, rounds in counted.items():
        median, best = statistics.median(rounds), min(rounds)
        print(
            f"{part:8} {name:22} {1000 * median:7.0f} ms ({1000 * best:.0f} to {1000 * max(rounds):.0f}), "
            f"{statistics.median(plain) / median:.2f} x plain; of the fastest rounds {min(plain) / best:.2f} x",
            flush=True,
        )


def most_memory() -> float:
    """The most memory this process ever held, MiB (Linux; `getrusage` would count what its parent held)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def in_own_process(name: str, folder: Path) -> None:
    """Start one engine, use it, and print as JSON what it took."""
    started = time.perf_counter()
    own = engine(name, folder)
    found: dict[str, Any] = {"ready": time.perf_counter() - started, "loaded": most_memory()}
    asked, explained, labels = examples(8)
    found["first"] = seconds(lambda: own.distribution(asked[0], labels))
    for batch in (1, 8):
        own.times.clear()
        own.write(explained[:batch], RATIONALE)
        found[f"token {batch}"] = quartiles(np.diff(own.times)[1:])
    print(json.dumps({**found, "peak": most_memory()}))


def quartiles(taken: np.ndarray) -> list[float]:
    """Median and quartiles, in ms."""
    return [1000 * float(value) for value in np.quantile(taken, (0.5, 0.25, 0.75))]


def report_process(name: str, folder: Path, bandwidth: float) -> None:
    command = [sys.executable, __file__, "--folder", str(folder), "--engine", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    disk = sum(path.stat().st_size for path in (folder / ("model" if name == "plain" else name)).iterdir())
    one, eight = ("{:.1f} ms ({:.1f} to {:.1f})".format(*found[f"token {batch}"]) for batch in (1, 8))
    text = (
        f"process  {name:14} ready {found['ready']:.2f} s, first labels {found['first']:.2f} s, memory loaded "
        f"{found['loaded']:.0f} MiB, peak {found['peak']:.0f} MiB, disk {disk / 1e6:.0f} MB, a token {one}, "
        f"of batch 8 {eight}"
    )
    if name != "plain":
        limit = 1000 * bytes_per_token(folder / name) / bandwidth
        text += f", limit by memory {limit:.1f} ms: {100 * limit / found['token 1'][0]:.0f} % of it reached"
    print(text, flush=True)


def bytes_per_token(folder: Path) -> int:
    """What writing one token of one text must read: the decoder's matrices, the text's keys and values."""
    import onnx

    graph = onnx.load(folder / "decoder.onnx").graph
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    weights: int = sum(len(constant.raw_data) for constant in graph.initializer if constant.name not in looked_up)
    shape = json.loads((folder / "engine.json").read_text("utf-8"))
    return weights + 4 * 2 * TEXT * int(shape["layers"] * shape["heads"] * shape["width"])


def read_bandwidth() -> float:
    """Bytes a second that two threads read from memory: the best of ten dot products of large arrays."""
    arrays = [np.ones(2**27, np.float32) for _ in range(2)]  # 512 MiB each: beyond any cache
    with ThreadPoolExecutor(2) as pool:
        best = min(seconds(lambda: list(pool.map(lambda own: np.dot(own, own), arrays))) for _ in range(10))
    return sum(own.nbytes for own in arrays) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--weights", nargs="+", choices=EXPORTED, default=EXPORTED, help="exports to measure")
    parser.add_argument("--one-pass", action="store_true", help="measure each engine with one prompt too")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        in_own_process(args.engine, args.folder)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    build(args.folder, args.shape)
    names = ("plain", *(args.weights if args.device == "cpu" else TORCH))
    if args.one_pass:
        names = ("plain", *(own for name in names[1:] for own in (name, name + ONE_PASS)))
    if timed := [part for part in ROUNDS if part in args.parts]:
        engines = {name: engine(name, args.folder, args.device) for name in names}
        for part in timed:
            compare(part, engines)
        del engines
    if "process" in args.parts:
        bandwidth = read_bandwidth()
        print(f"memory reads at {bandwidth / 1e9:.1f} GB/s", flush=True)
        for name in (name for name in names if not name.endswith(ONE_PASS)):
            report_process(name, args.folder, bandwidth)


if __name__ == "__main__":
    main()

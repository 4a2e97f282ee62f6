"""What intervals cost, and whether they keep their promise.

    python benchmarks/intervals.py [--records 100000 --labels 20 --resamples 10000] [--simulations 1000]

Cost: every metric of decisions and probabilities, on made-up predictions, in one process; seconds and peak memory.
Coverage: how often the 95 % interval of accuracy and macro-F1 holds the value of the population that the records were
drawn from, at 200 records of 3 labels, by both methods; and of accuracy over 60 patients of 5 calls each, whole
patients resampled.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import NotComputed
from reason2decide.evaluation.metrics import METRICS, Accuracy, Examples, MacroF1
from reason2decide.evaluation.statistics import bootstrap, bootstrap_all, interval


def made_up(records: int, labels: int) -> Examples:
    rng = np.random.default_rng(0)
    names = tuple(f"label {i}" for i in range(labels))
    p = rng.dirichlet(np.full(labels, 0.3), records).round(6)
    p[:, 0] += 1 - p.sum(1)
    gold = [names[rng.choice(labels, p=np.abs(row) / np.abs(row).sum())] for row in p]
    return Examples(
        [Record(str(i), "text", label) for i, label in enumerate(gold)],
        [
            Prediction(str(i), names[int(row.argmax())], dict(zip(names, row.tolist(), strict=True)))
            for i, row in enumerate(p)
        ],
        LabelSet(names, ordinal=True, urgent="last"),
    )


def cost(records: int, labels: int, resamples: int) -> None:
    examples = made_up(records, labels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    counted = []
    for metric in METRICS:
        try:
            counted.append((metric.name, metric.statistics(examples), metric.aggregate))
        except NotComputed:
            continue
    middle = time.perf_counter()
    draws = bootstrap_all([own[1:] for own in counted], resamples=resamples)
    drawn = time.perf_counter()
    for (_, own, aggregate), values in zip(counted, draws, strict=True):
        interval("bca", values, own, aggregate)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{records:,} records, {labels} labels, {resamples:,} resamples: {', '.join(own[0] for own in counted)}")
    print(
        f"  counting {middle - started:.1f} s, resampling {drawn - middle:.1f} s, BCa {ended - drawn:.1f} s; "
        f"peak memory {peak / 2**20:.2f} GiB, {before / 2**20:.2f} of it the examples"
    )


def coverage(simulations: int) -> None:
    rng = np.random.default_rng(1)
    names = ("a", "b", "c")
    joint = np.array([[0.40, 0.06, 0.04], [0.05, 0.20, 0.05], [0.02, 0.04, 0.14]])  # gold down, predicted across
    hits, gold, predicted = np.diag(joint), joint.sum(1), joint.sum(0)
    truth = {"accuracy": hits.sum(), "macro_f1": (2 * hits / (gold + predicted)).mean()}
    held = {(metric, method): 0 for metric in truth for method in ("percentile", "bca")}
    held_groups = dict.fromkeys(("percentile", "bca"), 0)
    for simulation in range(simulations):
        cells = rng.choice(9, size=200, p=joint.ravel())
        examples = Examples(
            [Record(str(i), "t", names[cell // 3]) for i, cell in enumerate(cells)],
            [Prediction(str(i), names[cell % 3]) for i, cell in enumerate(cells)],
            LabelSet(names),
        )
        for metric in (Accuracy(), MacroF1()):
            own = metric.statistics(examples)
            values = bootstrap(own, metric.aggregate, resamples=2000, seed=simulation)
            for method in ("percentile", "bca"):
                low, high = interval(method, values, own, metric.aggregate)
                held[metric.name, method] += low <= truth[metric.name] <= high
        # Each patient has a rate of their own, beta(4, 1): 0.8 on average, calls of one patient alike.
        right = rng.random((60, 5)) < rng.beta(4, 1, (60, 1))
        calls = Examples(
            [Record(str(i), "t", "a") for i in range(300)],
            [Prediction(str(i), "a" if own else "b") for i, own in enumerate(right.ravel())],
            LabelSet(names),
        )
        own, group_of = Accuracy().statistics(calls), np.repeat(np.arange(60), 5)
        values = bootstrap(own, Accuracy().aggregate, group_of=group_of, resamples=2000, seed=simulation)
        for method in ("percentile", "bca"):
            low, high = interval(method, values, own, Accuracy().aggregate, group_of=group_of)
            held_groups[method] += low <= 0.8 <= high
    for (metric, method), count in held.items():
        print(f"  {metric}, {method}: {count / simulations:.1%} of {simulations} intervals hold the true value")
    for method, count in held_groups.items():
        print(f"  accuracy over patients, {method}: {count / simulations:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--simulations", type=int, default=1000)
    args = parser.parse_args()
    cost(args.records, args.labels, args.resamples)
    coverage(args.simulations)


if __name__ == "__main__":
    main()

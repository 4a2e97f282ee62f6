"""How long the metrics of rationales that need no model take, and the simulators behind some of them.

    python benchmarks/rationale_metrics.py [REPEATS]

On synthetic calls: 10,000 rationales for each metric, ROUGE-L against the package rouge-score in the same round, and
simulators learnt from 20,000 records whose texts are five notes long (about 170 words). Seconds, median and range.

Then what the metrics say of rationales known to be good, terse, or about another patient: 4,000 training calls,
1,000 test calls; every prediction has the gold label.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.data.sources.synthetic_calls.rules import load_rules
from reason2decide.evaluation.asking import probe_simulators
from reason2decide.evaluation.metrics import METRICS, Examples
from reason2decide.evaluation.metrics.contradiction import CitedContradicted
from reason2decide.evaluation.metrics.rouge import RougeL
from reason2decide.evaluation.metrics.simulation import Las
from reason2decide.evaluation.metrics.support import Support
from reason2decide.evaluation.metrics.synthetic_truth import CitedTrue
from reason2decide.evaluation.probes import Probe
from reason2decide.evaluation.readers import Simulators

WHAT = (
    "simulated_consistency",
    "simulated_consistency_masked",
    "simulated_consistency_no_verdict",
    "rq",
    "las",
    "support",
    "cited_contradicted",
    "cited_true",
    "cited_false",
    "deciding_omitted",
)


def readings() -> None:
    """Print a row of metrics for each kind of rationale."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = synthesize_calls(Path(folder) / "data", train=4_000, validation=1)
        train, test = list(dataset.split("train")), list(dataset.split("test"))
    simulators, urgency = Simulators.fit(train, dataset.info.labels, "llm"), load_rules().rationale["urgency"]

    def under_right_verdict(record: Record, other: Record) -> str:
        verdicts = [urgency[dataset.info.labels.values.index(str(one.label))] for one in (other, record)]
        return other.rationales["llm"].replace(*verdicts)

    same_label = {r.id: next(o for o in [*test[i + 1 :], *test[:i]] if o.label == r.label) for i, r in enumerate(test)}
    others = dict(zip((record.id for record in test), [*test[1:], test[0]], strict=True))
    kinds: dict[str, Callable[[Record], str | None]] = {
        "gold, llm": lambda record: record.rationales["llm"],
        "gold, nurse_refined": lambda record: record.rationales.get("nurse_refined"),
        "gold, nurse": lambda record: record.rationales.get("nurse"),
        "another patient's facts, the right verdict": lambda record: under_right_verdict(record, others[record.id]),
        "another patient's of the same label": lambda record: same_label[record.id].rationales["llm"],
    }
    print("| rationales | " + " | ".join(f"`{name}`" for name in WHAT) + " |\n|" + "---|" * (len(WHAT) + 1))
    for name, rationale_of in kinds.items():
        predictions = [Prediction(record.id, str(record.label), None, rationale_of(record)) for record in test]
        probes = probe_simulators(simulators, test, predictions, [Probe(record.id) for record in test])
        examples = Examples(test, predictions, dataset.info.labels, "llm", probes)
        values = {
            metric.name: float(metric.aggregate(metric.statistics(examples).total()))
            for metric in METRICS
            if metric.name in WHAT
        }
        print(f"| {name} | " + " | ".join(f"{values[metric]:.3f}" for metric in WHAT) + " |", flush=True)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as folder:
        dataset = synthesize_calls(Path(folder) / "data", train=20_000, validation=1, test=10_000)
        train, test = list(dataset.split("train")), list(dataset.split("test"))
    long = [
        replace(record, text=" ".join(train[(i + k * 997) % len(train)].text for k in range(5)))
        for i, record in enumerate(train)
    ]
    others = [*test[1:], test[0]]
    predictions = [Prediction(r.id, str(r.label), None, o.rationales["llm"]) for r, o in zip(test, others, strict=True)]
    probes = [Probe(record.id) for record in test]
    simulators = Simulators.fit(train, dataset.info.labels, "llm")
    examples = Examples(
        test, predictions, dataset.info.labels, "llm", probe_simulators(simulators, test, predictions, probes)
    )
    scorer = RougeScorer(["rougeL"])
    pairs = [(r.rationales["llm"], p.rationale or "") for r, p in zip(test, predictions, strict=True)]
    jobs: dict[str, Callable[[], object]] = {
        "rouge_l, 10,000 rationales": lambda: RougeL().statistics(examples),
        "rouge-score, 10,000 rationales": lambda: [scorer.score(*pair) for pair in pairs],
        "support, 10,000": lambda: Support().statistics(examples),
        "cited_true, 10,000": lambda: CitedTrue().statistics(examples),
        "cited_contradicted, 10,000": lambda: CitedContradicted().statistics(examples),
        "las, 10,000": lambda: Las().statistics(examples),
        "simulators learn, 20,000 short": lambda: Simulators.fit(train, dataset.info.labels, "llm"),
        "simulators learn, 20,000 long": lambda: Simulators.fit(long, dataset.info.labels, "llm"),
        "simulators read, 10,000": lambda: probe_simulators(simulators, test, predictions, probes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    for name, own in seconds.items():
        print(f"{name:<32} {statistics.median(own):7.2f} ({min(own):.2f} to {max(own):.2f})")
    readings()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()

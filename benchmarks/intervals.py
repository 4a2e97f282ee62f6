"""What intervals and p values cost, and whether they keep their promise.

    python benchmarks/intervals.py cost [--records 100000 --labels 20 --resamples 10000]
    python benchmarks/intervals.py coverage [--simulations 300]
    python benchmarks/intervals.py rare [--simulations 400]
    python benchmarks/intervals.py tests [--simulations 1000]
    python benchmarks/intervals.py validation [--simulations 300]

cost: every metric of decisions and probabilities, on made-up predictions, in one process; seconds and peak memory.

coverage: how often the 95 % interval of each metric of a report holds the metric's value in the population from which
the records were drawn, by the number of records and the share of the rarest of three labels, by both methods; and where
records come in groups of five that are alike, whole groups resampled. The population is made up: confidences that are
true, rationales that share words with the gold ones, answers of readers.

rare: the same for macro-F1 alone, by the expected number of gold records of the rarest label and the recall of that
label.

tests: how often each p value is below 0.05 for two systems of which neither is better: records alone, and in groups of
five that are alike.

validation: how often the deferral threshold lets more than one decision in ten be wrong, and how many labels prediction
sets miss, by the number of validation records, for models whose probabilities are true.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import NotComputed
from reason2decide.evaluation.comparison import System, compare
from reason2decide.evaluation.metrics import METRICS, Examples, Metric, SufficientStatistics
from reason2decide.evaluation.metrics.calibration import ConformalCoverage, ConformalSetSize, Deferred, SelectiveError
from reason2decide.evaluation.metrics.decisions import MacroF1
from reason2decide.evaluation.probes import Probe
from reason2decide.evaluation.results import Results
from reason2decide.evaluation.statistics import bootstrap, bootstrap_all, interval
from reason2decide.model.calibration import conformal_cutoff, deferral_threshold, prediction_set

LABELS = LabelSet(("home", "doctor", "ambulance"), ordinal=True, urgent="last")
POPULATION = 30_000
GROUP = 5
SHARES = {"1/3": (1 / 3, 1 / 3, 1 / 3), "10 %": (0.55, 0.35, 0.10), "2 %": (0.60, 0.38, 0.02)}
TESTED = {"accuracy", "macro_f1", "under_triage", "calibration_error", "bleu", "simulated_consistency_no_verdict"}
WORDS = tuple(f"word{i}" for i in range(60))


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
    counted = [(metric.name, counts, metric.aggregate) for metric, counts in computed(METRICS, examples)]
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


def computed(metrics: Sequence[Metric], examples: Examples) -> Iterator[tuple[Metric, SufficientStatistics]]:
    for metric in metrics:
        try:
            yield metric, metric.statistics(examples)
        except NotComputed:
            continue


def population(shares: Sequence[float], *, grouped: bool = False, seed: int = 0, gold_seed: int = 0) -> Examples:
    """Records and the answers of one system; systems of other seeds and one `gold_seed` are equally good on the same.

    With `grouped`, the records of a group have one label and the system is equally sure of them.
    """
    truth, rng = np.random.default_rng(gold_seed), np.random.default_rng([seed, 1])
    units = POPULATION // GROUP if grouped else POPULATION
    spread = np.repeat(np.arange(units), POPULATION // units)
    gold = truth.choice(3, units, p=shares)[spread]
    easy = truth.normal(1.2, 1.0, units)[spread]  # how plain the record is, for every system
    own = rng.normal(0, 1.2, units)[spread]
    noise = rng.normal(0, 0.2 if grouped else 0.7, (POPULATION, 3))
    logits = np.log(shares) + np.eye(3)[gold] * (easy + own)[:, None] + noise
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    if not grouped:  # true confidences: the gold label is drawn from them
        gold = (rng.random((POPULATION, 1)) > p.cumsum(1)).sum(1).clip(0, 2) if seed == 0 else gold
    names, decided = LABELS.values, p.argmax(1)
    words = truth.choice(WORDS, (POPULATION, 12))
    kept = rng.random((POPULATION, 12)) < np.where(decided == gold, 0.8, 0.5)[:, None]
    other = rng.choice(WORDS, (POPULATION, 12))
    readers = {
        name: names_of(np.where(rng.random(POPULATION) < share, decided, rng.integers(3, size=POPULATION)))
        for name, share in (
            ("text", 0.4),
            ("rationale", 0.8),
            ("masked_rationale", 0.6),
            ("reasons", 0.5),
            ("both", 0.8),
        )
    }
    swapped = (decided + 1) % 3
    follows = names_of(np.where(rng.random(POPULATION) < 0.4, swapped, decided))
    without = p[np.arange(POPULATION), decided]
    records, predictions, probes = [], [], []
    for i in range(POPULATION):
        reason = " ".join(np.where(kept[i], words[i], other[i]))
        text = " ".join(words[i][:8])
        records.append(Record(str(i), text, names[gold[i]], {"gold": " ".join(words[i])}))
        probabilities = dict(zip(names, p[i].tolist(), strict=True))
        predictions.append(Prediction(str(i), names[decided[i]], probabilities, reason))
        probes.append(
            Probe(
                str(i),
                readers["rationale"][i],
                readers["masked_rationale"][i],
                readers["reasons"][i],
                names[swapped[i]],
                " ".join(other[i]),
                float(without[i] * rng.random()),
                float(without[i]),
                simulated={name: read[i] for name, read in readers.items()}
                | {"swapped_rationale": follows[i], "swapped_reasons": follows[i]},
            )
        )
    return Examples(records, predictions, LABELS, "gold", probes)


def names_of(indices: np.ndarray) -> list[str]:
    return [LABELS.values[i] for i in indices]


def report_metrics() -> list[Metric]:
    special = {
        metric.name: metric
        for metric in (SelectiveError(0.6), Deferred(0.6), ConformalCoverage(0.2), ConformalSetSize(0.2))
    }
    return [special.get(metric.name, metric) for metric in METRICS if metric.has_interval]


def sampled(statistics: Mapping[str, SufficientStatistics], mask: np.ndarray) -> dict[str, SufficientStatistics]:
    return {name: counts.subset(mask) for name, counts in statistics.items()}


def coverage(simulations: int, resamples: int) -> None:
    columns: dict[str, dict[str, str]] = {}
    for share, shares in SHARES.items():
        for grouped, sizes in ((False, (50, 200, 1000)), (True, (20, 60, 200))):
            if grouped and share != "10 %":
                continue
            pairs = list(computed(report_metrics(), population(shares, grouped=grouped)))
            for size in sizes:
                name = f"{size} groups of {GROUP}" if grouped else f"{size}, {share}"
                columns[name] = covered(pairs, size, grouped, simulations, resamples)
                print(f"# {name}", flush=True)
    metrics = [metric.name for metric in report_metrics() if any(metric.name in found for found in columns.values())]
    print("| metric | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for metric in metrics:
        print(f"| `{metric}` | " + " | ".join(found.get(metric, "–") for found in columns.values()) + " |")


def covered(
    pairs: Sequence[tuple[Metric, SufficientStatistics]], size: int, grouped: bool, simulations: int, resamples: int
) -> dict[str, str]:
    """By metric, the share of intervals that hold the population's value, percentile / BCa."""
    truth = {metric.name: float(metric.aggregate(counts.total())) for metric, counts in pairs}
    held = {metric.name: np.zeros(2) for metric, _ in pairs}
    counted = dict.fromkeys(held, 0)
    rng, groups = np.random.default_rng(1), np.arange(POPULATION) // GROUP
    for simulation in range(simulations):
        units = POPULATION // GROUP if grouped else POPULATION
        chosen = np.zeros(units, bool)
        chosen[rng.choice(units, size, replace=False)] = True
        parts = [(metric, counts.subset(chosen[groups] if grouped else chosen)) for metric, counts in pairs]
        parts = [(metric, part) for metric, part in parts if len(part)]
        group_of = groups if grouped else None
        draws = bootstrap_all(
            [(part, metric.resampled(part.total())) for metric, part in parts],
            group_of=group_of,
            resamples=resamples,
            seed=simulation,
        )
        for (metric, part), values in zip(parts, draws, strict=True):
            counted[metric.name] += 1
            for column, method in enumerate(("percentile", "bca")):
                low, high = interval(method, values, part, metric.aggregate, group_of=group_of)
                held[metric.name][column] += low - 1e-9 <= truth[metric.name] <= high + 1e-9
    return {
        name: " / ".join(f"{100 * share / counted[name]:.0f}" for share in shares_held)
        for name, shares_held in held.items()
    }


def tests(simulations: int, resamples: int) -> None:
    """Type I errors. McNemar's test is shown with groups although the comparison leaves it out there."""
    from reason2decide.evaluation.comparison import _mcnemar, paired

    for grouped in (False, True):
        found = [population(SHARES["10 %"], grouped=grouped, seed=seed, gold_seed=7) for seed in (1, 2)]
        metrics = [metric for metric in report_metrics() if metric.name in TESTED]
        statistics = [{metric.name: counts for metric, counts in computed(metrics, examples)} for examples in found]
        rng, groups = np.random.default_rng(2), np.arange(POPULATION) // GROUP
        below: dict[str, list[bool]] = {}
        for simulation in range(simulations):
            units, size = (POPULATION // GROUP, 60) if grouped else (POPULATION, 200)
            chosen = np.zeros(units, bool)
            chosen[rng.choice(units, size, replace=False)] = True
            mask = chosen[groups] if grouped else chosen
            systems = [
                System(name, (EMPTY,), (sampled(own, mask),), groups if grouped else None)
                for name, own in zip(("one", "other"), statistics, strict=True)
            ]
            comparison = compare(systems, "one", resamples=resamples, seed=simulation)
            for change in comparison.differences:
                below.setdefault(f"`{change.metric}`, bootstrap", []).append(change.p_bootstrap < 0.05)
                below.setdefault(f"`{change.metric}`, randomization", []).append(change.p_randomization < 0.05)
            mcnemar = _mcnemar(paired(*(system.statistics[0]["accuracy"] for system in systems)))
            below.setdefault("`accuracy`, McNemar", []).append(mcnemar < 0.05)
            any_primary = any(change.p_holm is not None and change.p_holm < 0.05 for change in comparison.differences)
            below.setdefault(f"any of {len(comparison.primary)} primary metrics, Holm", []).append(any_primary)
        print(f"\n{'60 groups of 5' if grouped else '200 records'}\n| p value | below 0.05 |\n|---|---|")
        for name, values in below.items():
            print(f"| {name} | {100 * np.mean(values):.1f} % |")


def rare(simulations: int, resamples: int) -> None:
    recalls, rng, metric = (0.2, 0.5, 0.8), np.random.default_rng(0), MacroF1()
    print(
        "| gold records of the rarest label | "
        + " | ".join(f"recall {recall}" for recall in recalls)
        + " |\n|---|---|---|---|"
    )
    for expected in (2, 5, 10, 20, 40, 80):
        records, cells = max(200, 10 * expected), []
        share = expected / records
        for recall in recalls:
            joint = (1 - share) * np.array([[0.55, 0.15, 0], [0.1, 0.2, 0], [0, 0, 0]])
            joint[2] = share * np.array([(1 - recall) / 2, (1 - recall) / 2, recall])
            missed = share * (1 - recall)  # as many false alarms as misses
            joint[:2, 2] += missed * np.array([0.7, 0.3])
            joint[[0, 1], [0, 1]] -= missed * np.array([0.7, 0.3])
            truth = (2 * np.diag(joint) / (joint.sum(0) + joint.sum(1))).mean()
            held = np.zeros(2)
            for simulation in range(simulations):
                drawn = rng.choice(9, records, p=joint.ravel())
                examples = Examples(
                    [Record(str(i), "", LABELS.values[cell // 3]) for i, cell in enumerate(drawn)],
                    [Prediction(str(i), LABELS.values[cell % 3]) for i, cell in enumerate(drawn)],
                    LABELS,
                )
                counts = metric.statistics(examples)
                values = bootstrap(counts, metric.resampled(counts.total()), resamples=resamples, seed=simulation)
                for column, method in enumerate(("percentile", "bca")):
                    low, high = interval(method, values, counts, metric.aggregate)
                    held[column] += low <= truth <= high
            cells.append(" / ".join(f"{100 * share / simulations:.0f}" for share in held))
        print(f"| {expected} of {records} | " + " | ".join(cells) + " |", flush=True)


def validation(simulations: int) -> None:
    print("| model | validation records | threshold shown | error rate exceeded | kept | best possible | sets miss |")
    print("|---|---|---|---|---|---|---|")
    for name, shape in (("strong", (6, 1.2)), ("medium", (3, 1.5)), ("weak", (2, 2))):
        rng = np.random.default_rng(0)
        population = np.sort(0.2 + 0.8 * rng.beta(*shape, 400_000))[::-1]  # each right with this probability
        risk = np.cumsum(1 - population) / np.arange(1, len(population) + 1)
        best = np.searchsorted(risk, 0.1) / len(population)
        for records in (200, 500, 2000):
            exceeded, kept, missed = 0, [], []
            for _ in range(simulations):
                confidence = rng.choice(population, records)
                right = rng.random(records) < confidence
                threshold = deferral_threshold(confidence, right, 0.1)
                if threshold is not None:
                    above = population >= threshold
                    kept.append(above.mean())
                    exceeded += (1 - population[above]).mean() > 0.1
                # Two labels, in steps of a tenth: many records have one probability.
                stepped = (confidence * 10).round() / 10
                gold = np.where(rng.random(records) < stepped, stepped, 1 - stepped)
                cutoff, whole = conformal_cutoff(gold, 0.1), (population[::400] * 10).round() / 10
                sets = [prediction_set({"a": p, "b": 1 - p}, cutoff) for p in whole]
                missed.append(
                    np.mean([(1 - p) * ("b" not in s) + p * ("a" not in s) for p, s in zip(whole, sets, strict=True)])
                )
            print(
                f"| {name} | {records} | {len(kept) / simulations:.0%} | {exceeded / simulations:.0%} | "
                f"{np.mean(kept) if kept else 0:.0%} | {best:.0%} | {np.mean(missed):.1%} |",
                flush=True,
            )


EMPTY = Results("system", {}, {}, (), (), (), "", "made up", "0" * 64, "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "coverage", "rare", "tests", "validation"))
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--resamples", type=int, default=None)
    parser.add_argument("--simulations", type=int, default=300)
    args = parser.parse_args()
    if args.what == "cost":
        cost(args.records, args.labels, args.resamples or 10_000)
    elif args.what == "coverage":
        coverage(args.simulations, args.resamples or 1000)
    elif args.what == "rare":
        rare(args.simulations, args.resamples or 500)
    elif args.what == "validation":
        validation(args.simulations)
    else:
        tests(args.simulations, args.resamples or 300)


if __name__ == "__main__":
    main()

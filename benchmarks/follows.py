"""Does the written reason argue for the decision made? Of all calls, and of those decided wrong.

    r2d compare experiments/follows.toml --out runs/follows --jobs 2 --set training.dataset=runs/calls
    python benchmarks/follows.py runs/calls runs/follows/cells/*/results [--rows benchmarks/follows.jsonl]
        [--against r2d]

A row per system, its seeds together as mean ± standard deviation. The experiment takes a day: `--rows` adds what was
measured to a file of rows, one for each system and seed, and prints the table of all of them. `--against` adds the
differences from one system over training runs, with Welch's 95 % intervals; p values are Holm-corrected over the table.

A reason is read by the simulators of the dataset, with its verdict and without, and exactly: where its weighed facts go
(`weighed_consistency`). *Swap* is the share of reasons for the model's second choice that are read as that choice.
Then how true the reasons are (`docs/evaluation.md`), macro-F1, under-triage, calibration error, and the drop of the
decision's probability when what a reason cites is deleted.

Where each record has its own choices, a reason is read as the only choice that it names; *another* is the share of
reasons that name another choice than the decided one, and that alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from scipy.stats import ttest_ind

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import NO_ANSWER, Prediction, read_predictions
from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls.rules import load_rules
from reason2decide.data.sources.synthetic_calls.weighing import level_argued
from reason2decide.evaluation.probes import Probe, read_probes
from reason2decide.evaluation.readers import NamedChoices, Simulators
from reason2decide.evaluation.results import read_results
from reason2decide.evaluation.statistics import holm

COMPARED = ("macro_f1", "consistent, by weights", "swap, by weights", "cited_false", "deciding_omitted")
METRICS = ("macro_f1", "under_triage", "calibration_error", "deletion_drop", "cited_false", "deciding_omitted")
COMPARED_OWN = ("accuracy", "consistent", "where wrong", "swap")
METRICS_OWN = ("accuracy", "bleu")
Read = Callable[[Sequence[Record], Sequence[str]], Sequence[str]]  # the label read from each record's rationale


def readings(dataset: DatasetFolder) -> dict[str, Read]:
    """How reasons are read, by what a column's name ends in."""
    if dataset.info.labels.is_open:
        named = NamedChoices()
        return {"": lambda records, texts: [own["swapped_rationale"] for own in named.simulate_swapped(records, texts)]}
    simulators = Simulators.fit(dataset.split("train"), dataset.info.labels, "llm")
    rules = load_rules()

    def weights_lead_to(_: Sequence[Record], texts: Sequence[str]) -> list[str]:
        levels = [level_argued(text, rules) for text in texts]
        return ["nowhere" if level is None else rules.labels[level] for level in levels]

    return {
        "": lambda _, texts: simulators.read_rationales(texts),
        ", no verdict": lambda _, texts: simulators.read_reasons(texts),
        ", by weights": weights_lead_to,
    }


def shares(
    given: Iterable[Prediction], probes: Sequence[Probe], records: Mapping[str, Record], readings: Mapping[str, Read]
) -> dict[str, float]:
    """What is read from the reasons of predictions, and from those for swapped labels."""
    predictions = [own for own in given if (own.rationale or "").strip()]
    swapped = [probe for probe in probes if probe.swapped_label and (probe.swapped_rationale or "").strip()]
    found: dict[str, float] = {}
    for what, read in readings.items():
        if not predictions:
            continue
        labels = read([records[own.id] for own in predictions], [own.rationale or "" for own in predictions])
        pairs = list(zip(labels, predictions, strict=True))
        agrees = [label == own.predicted_label for label, own in pairs]
        wrong = [label == own.predicted_label for label, own in pairs if own.predicted_label != records[own.id].label]
        found[f"consistent{what}"] = sum(agrees) / len(agrees)
        found[f"where wrong{what}"] = sum(wrong) / max(1, len(wrong))
        if NO_ANSWER in labels:
            another = [label not in (own.predicted_label, NO_ANSWER) for label, own in pairs]
            found[f"another{what}"] = sum(another) / len(another)
        if swapped:
            labels = read([records[own.id] for own in swapped], [probe.swapped_rationale or "" for probe in swapped])
            follows = [label == probe.swapped_label for label, probe in zip(labels, swapped, strict=True)]
            found[f"swap{what}"] = sum(follows) / len(follows)
    return found


def cell(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, without the latter for one seed."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def measured(dataset: DatasetFolder, folders: Sequence[Path]) -> dict[tuple[str, int], dict[str, float]]:
    """(system, seed) -> figures of results folders, which are named .../SYSTEM-seed-N/results."""
    records = {record.id: record for record in dataset.split("test")}
    reads, metrics = readings(dataset), METRICS_OWN if dataset.info.labels.is_open else METRICS
    rows = {}
    if dataset.info.labels.is_open:  # what own choices can reach
        gold = [Prediction(own.id, str(own.label), None, own.rationales.get("llm")) for own in records.values()]
        found = shares(gold, [], records, reads)
        rows["gold rationales", 0] = {key: round(found[key], 4) for key in ("consistent", "another")}
    for folder in folders:
        name, _, seed = folder.parent.name.partition("-seed-")
        results = read_results(folder)
        values = {key: results.metrics[key].value for key in metrics if key in results.metrics}
        predictions, probes = read_predictions(folder / "predictions.jsonl"), folder / "probes.jsonl"
        found = {**shares(predictions, read_probes(probes) if probes.exists() else [], records, reads), **values}
        rows[name, int(seed or 0)] = {key: round(value, 4) for key, value in found.items() if value is not None}
    return rows


def print_differences(
    systems: Mapping[str, Mapping[str, Sequence[float]]], reference: str, compared: Sequence[str]
) -> None:
    """Each system less the reference, a training run counting as one observation."""
    tests = {
        (name, key): ttest_ind(own[key], systems[reference][key], equal_var=False)
        for name, own in systems.items()
        for key in compared
        if name != reference and min(len(own.get(key, ())), len(systems[reference].get(key, ()))) > 1
    }
    p_values = dict(zip(tests, holm([float(test.pvalue) for test in tests.values()]), strict=True))
    print(f"\n| less {reference} | " + " | ".join(compared) + " |\n|" + "---|" * (len(compared) + 1))
    for name, own in systems.items():
        told = []
        for key in compared:
            if (name, key) in tests:
                low, high = tests[name, key].confidence_interval()
                gap = statistics.mean(own[key]) - statistics.mean(systems[reference][key])
                told.append(f"{gap:.3f} [{low:.3f}, {high:.3f}], p {p_values[name, key]:.2g}")
            else:
                told.append("")
        if name != reference:
            print(f"| {name} | " + " | ".join(told) + " |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--against", help="a system, from which the others' differences are printed")
    told = parser.parse_args()
    rows: dict[tuple[str, int], dict[str, float]] = {}
    if told.rows is not None and told.rows.exists():
        for line in told.rows.read_text("utf-8").splitlines():
            own = json.loads(line)
            rows[own.pop("system"), own.pop("seed")] = own
    dataset = DatasetFolder.open(told.dataset)
    if told.results:
        rows |= measured(dataset, told.results)
    if told.rows is not None:
        lines = [json.dumps({"system": name, "seed": seed, **own}) for (name, seed), own in sorted(rows.items())]
        told.rows.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    systems: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (name, _), own in rows.items():
        for key, value in own.items():
            systems[name][key].append(value)
    columns = list(dict.fromkeys(key for own in systems.values() for key in own))
    print("| system | seeds | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 2))
    for name, own in systems.items():
        seeds = max(map(len, own.values()))
        print(f"| {name} | {seeds} | " + " | ".join(cell(own.get(key, [])) for key in columns) + " |")
    if told.against is not None:
        print_differences(systems, told.against, COMPARED_OWN if dataset.info.labels.is_open else COMPARED)


if __name__ == "__main__":
    main()

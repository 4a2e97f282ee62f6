"""The model card: what a reader must know about a model, then the 31 source attributes of HTI-1.

Each attribute is filled from the manifest and the results, then from the user's answers, and is "Not assessed" if none
of them covers it. What was recorded or measured is always shown, and an answer is marked as stated, so that the card
claims as measured only what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from reason2decide.data.words import escaped
from reason2decide.evaluation.slices import LENGTH
from reason2decide.method.methods import METHODS
from reason2decide.report.source_attributes import KEYS, SOURCE_ATTRIBUTES, SourceAttribute

if TYPE_CHECKING:
    from reason2decide.evaluation.metrics import Metric
    from reason2decide.evaluation.results import CalibrationResults, MetricValue, Results, Slice
    from reason2decide.model.manifest import Manifest

Fill = Callable[["Manifest", "Results | None"], str]
Standing = Literal["none", "test", "seen", "other"]

# Cards are published, but counts of patients below 11 are not: the cell size suppression policy of the US Centers for
# Medicare and Medicaid Services. If a column has only one such group, its count still follows from the total.
SMALLEST_CELL = 11
# ours: if these differ between groups of patients, some groups are harmed
FAIRNESS = ("accuracy", "macro_f1", "under_triage", "over_triage", "calibration_error", "deferred")


def model_card(manifest: Manifest, results: Results | None = None, answers: Mapping[str, str] = {}) -> str:
    """The card as Markdown.

    Args:
        results: of this very model. Those on its own dataset's test split give the validity "in test data of the same
            source". Those on a split that training used are not a test, and are not shown. All others are listed under
            the external attributes, with the reservation that only a person can tell where the data come from.
        answers: by the `key` of `SOURCE_ATTRIBUTES`, as `read_answers` gives them.
    """
    assert set(answers) <= set(KEYS)
    parts = [
        _head(manifest),
        "## Source attributes",
        "The 31 source attributes of 45 CFR 170.315(b)(11)(iv)(B) (HTI-1), in short form; the regulation's wording "
        "prevails. Figures and facts come from training and evaluation; what is only stated is marked as such. "
        "This card is not a certification.",
    ]
    for group, attributes in groupby(SOURCE_ATTRIBUTES, key=lambda attribute: attribute.group):
        parts.append(f"### {group}")
        for item in attributes:
            fill = _FILLS.get(item.key)
            found = fill(manifest, results) if fill else ""
            parts += [f"**{item.number}. {item.attribute}** (`{item.key}`)", found, _rest(item, found, answers)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rest(attribute: SourceAttribute, found: str, answers: Mapping[str, str]) -> str:
    """A person's answer for an attribute, or that it is missing, unless what was found is the whole of it."""
    if attribute.key in answers:
        return f"Stated, not measured: {escaped(answers[attribute.key])}"
    if found and attribute.computed == "whole":
        return ""
    return f"Not assessed{' beyond this' if found else ''}: to be filled by {attribute.filled_by}."


def _head(manifest: Manifest) -> str:
    """What a reader must know before using the model, from the manifest only."""
    name = escaped(str(manifest.dataset["name"]))
    sources = ", ".join(f"{stage}: {source}" for stage, source in manifest.rationale_sources.items()) or "none"
    best = "".join(
        f"\n- {escaped(stage)}: best {escaped(entry['selection'])} {entry['best_value']:.4f} on validation, "
        f"at step {entry['best_step']}"
        for stage, entry in manifest.training.items()
    )
    return f"""# {name}: {manifest.method} from {escaped(manifest.base)}

A language model that decides between fixed labels{"" if manifest.explain == "none" else " and writes a reason"}.

- Method: {manifest.method} ({escaped(METHODS[manifest.method].summary)})
- Labels: {_labels(manifest)}{_order(manifest)}
- Rationale sources: {escaped(sources)}
- Trained on: {name}, {escaped(manifest.created)}{best}

## Use
    r2d predict BUNDLE calls.jsonl --out predictions.jsonl
    r2d evaluate BUNDLE DATASET --split test --out results

## Limits
The model repeats what is in its training data, including mistakes and gaps. Its rationale is text that fits its
decision; it does not prove that the decision is right. A qualified person must verify every output before it affects
care. Texts longer than {manifest.lengths.input} tokens are cut at the end."""


def _labels(manifest: Manifest) -> str:
    return escaped(", ".join(manifest.labels.values)) or "given by each record"


def _order(manifest: Manifest) -> str:
    if not manifest.labels.ordinal:
        return ""
    return f" (ordinal{f', the {manifest.labels.urgent} is the most urgent' if manifest.labels.urgent else ''})"


# ---- the data behind the results


def _standing(manifest: Manifest, results: Results | None) -> Standing:
    """Whether results are on the model's own test split, on a split that training used, or on other data."""
    if results is None:
        return "none"
    splits = [split for split, digest in manifest.dataset["sha256"].items() if digest == results.dataset_sha256]
    return "other" if not splits else "test" if splits == ["test"] else "seen"


def _if(standing: Standing, say: Callable[[Results], str]) -> Fill:
    """A fill that only results of this standing provide."""
    return lambda manifest, results: say(results) if results and _standing(manifest, results) == standing else ""


def _data(results: Results) -> str:
    return (
        f"Data: {escaped(results.dataset)}, split {escaped(results.split)}, SHA-256 {escaped(results.dataset_sha256)}."
    )


def _external_data(results: Results) -> str:
    return (
        f"{_data(results)} The model was not trained on this file. Whether its records come from another source, and "
        "whether any of them was in the training data, was not assessed."
    )


# ---- what is known from training and evaluation


def _output_value(manifest: Manifest, _: Results | None) -> str:
    rationale = {
        "none": "It writes no rationale.",
        "unconditioned": "It also writes a rationale, from the text alone.",
        "conditioned": "It then writes a rationale, from the text and the chosen label.",
    }[manifest.explain]
    return f"One label, with a probability for each possible label. Labels: {_labels(manifest)}. {rationale}"


def _output_type(manifest: Manifest, _: Results | None) -> str:
    rationale = "" if manifest.explain == "none" else ", and generated text (the rationale)"
    return f"Classification{_order(manifest)}{rationale}."


def _cautioned_uses(manifest: Manifest, results: Results | None) -> str:
    untested = "No results on test data are given here, so be cautious in every task, situation and population."
    where = {
        "none": untested,
        "seen": untested,
        "test": "The results given here are on its own dataset's test split: be cautious wherever data differ.",
        "other": "Be cautious wherever data differ from those of training and of the results given here.",
    }[_standing(manifest, results)]
    return f"{where} Do not use it without a qualified person who verifies every output."


def _known_limits(manifest: Manifest, results: Results | None) -> str:
    lines = [
        "It always chooses one of the labels, even if none fits.",
        f"Texts longer than {manifest.lengths.input} tokens are cut at the end.",
    ]
    if manifest.explain != "none":
        lines.append("A rationale is text that fits the decision; it does not prove that the decision is right.")
    if results and _standing(manifest, results) != "seen":
        missed = results.metrics.get("under_triage")
        if missed and missed.value is not None:
            value, interval = _value_and_interval("under_triage", missed)
            lines.append(f"Under-triage was measured: {value} (95 % interval {interval}, n = {missed.n}).")
        lines += [f"Found in evaluation: {escaped(warning)}." for warning in results.warnings]
        counted = {label: scores for label, scores in results.per_label.items() if scores["support"] >= SMALLEST_CELL}
        if counted:
            lowest = min(counted, key=lambda label: counted[label]["recall"])
            recall, support = counted[lowest]["recall"], counted[lowest]["support"]
            lines.append(f"The label with the lowest recall: {escaped(lowest)}, {recall:.3f} of {support} records.")
    return _bullets(lines)


def _training_data(manifest: Manifest, _: Results | None) -> str:
    digests = [f"{escaped(split)}: SHA-256 {escaped(digest)}" for split, digest in manifest.dataset["sha256"].items()]
    return f"Dataset {escaped(str(manifest.dataset['name']))}, with these splits:\n\n{_bullets(digests)}"


# Ours: what names of columns tell of the variables of attribute 12, in English and the languages of data we have seen.
VARIABLES_BY_NAME = {
    "sex": re.compile(r"sex|gender|cinsiyet|geschlecht|sexo", re.IGNORECASE),
    "date of birth": re.compile(r"\bage\b|birth|\bdob\b|\byaş|alter\b|edad", re.IGNORECASE),
    "race, ethnicity": re.compile(r"\brace\b|ethni", re.IGNORECASE),
    "language": re.compile(r"language", re.IGNORECASE),
}


def _input_variables(manifest: Manifest, _: Results | None) -> str:
    recipe = manifest.recipe
    if recipe is None or not recipe.joins:
        of = f" of the column {escaped(recipe.text[0])}" if recipe is not None and recipe.text else ""
        return (
            f"The model reads free text{of} as a whole. What a text says of these variables is read with the rest; how "
            "often texts do was not assessed."
        )
    named = {
        column: [name for name, pattern in VARIABLES_BY_NAME.items() if pattern.search(column)]
        for column in recipe.text
    }
    used = [f"{escaped(column)} ({', '.join(names)})" for column, names in named.items() if names]
    return (
        f"The text is made of these columns, each of which is an input feature: {escaped(', '.join(recipe.text))}. "
        + (f"By their names, these hold variables of this list: {'; '.join(used)}. " if used else "")
        + "Whether the others hold any of them was not assessed."
    )


def _updates(manifest: Manifest, _: Results | None) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return (
        f"Trained {escaped(manifest.created)} (versions: {escaped(versions)}). Its weights do not change in use; "
        "an update is a new bundle."
    )


def _validity(results: Results) -> str:
    computed = {name: value for name, value in results.metrics.items() if value.value is not None}
    rows = [(_heading(name), *_value_and_interval(name, value), str(value.n)) for name, value in computed.items()]
    parts = [
        f"{_data(results)} System: {escaped(results.system)}.",
        _table(("Measure", "Value", "95 % interval", "n"), rows),
    ]
    if results.calibration:
        parts.append(_calibration(results.calibration, computed))
    absent = [_title(name) for name in results.metrics if name not in computed]
    if absent:
        parts.append(f"Not computed: {', '.join(absent)}.")
    if results.notes:
        parts.append(f"Notes of the evaluation:\n\n{_bullets([escaped(note) for note in results.notes])}")
    return "\n\n".join([*parts, f"Signature: {escaped(results.signature)}"])


def _calibration(calibration: CalibrationResults, metrics: Mapping[str, MetricValue]) -> str:
    changes = [
        f"; {_title(name)} {_number(name, before)} before, {_value_and_interval(name, metrics[name])[0]} after"
        for name, before in calibration.before.items()
        if name in metrics
    ]
    threshold = calibration.threshold
    rate = f"an error rate of {calibration.error_rate:g} among the rest"
    return (
        f"Probabilities were calibrated on validation: temperature {calibration.temperature:.3f}{''.join(changes)}. "
        + (
            f"Validation shows no threshold that keeps {rate} with 95 % confidence, so every case is left to a person."
            if threshold is None
            else f"Decisions with a probability below {threshold:.3f} are left to a person; validation shows with 95 % "
            f"confidence that this keeps {rate}."
        )
    )


def _patient_columns(results: Results) -> dict[str, Sequence[Slice]]:
    """The columns that results were sliced by, without the length of the text, which is not a patient attribute."""
    return {column: slices for column, slices in results.slices.items() if column != LENGTH}


def _representativeness(results: Results) -> str:
    lines = [
        f"{escaped(column)}: "
        + ", ".join(
            f"{escaped(part.value)} {part.n if part.n >= SMALLEST_CELL else f'fewer than {SMALLEST_CELL}'}"
            for part in slices
        )
        for column, slices in _patient_columns(results).items()
    ]
    return f"{_data(results)} Records by column:\n\n{_bullets(lines)}" if lines else ""


def _fairness(results: Results) -> str:
    parts = [part for column in _patient_columns(results) for part in _by_column(results, column)]
    return "\n\n".join([f"{_data(results)} 95 % intervals in brackets.", *parts]) if parts else ""


def _by_column(results: Results, column: str) -> Iterator[str]:
    slices = results.slices[column]
    shown = {part.value: part for part in slices if part.n >= SMALLEST_CELL}
    names = [name for name in FAIRNESS if any(_has(part, name) for part in shown.values())]
    if names:
        cells = {
            value: [_figure(name, part.metrics[name]) if _has(part, name) else "not computed" for name in names]
            for value, part in shown.items()
        }
        rows = [(escaped(value), *cells[value], str(part.n)) for value, part in shown.items()]
        yield _table((escaped(column), *map(_heading, names), "n"), rows)
    gaps = {name: gap for name, gap in results.gaps.get(column, {}).items() if name in names}
    lines = [
        f"{_title(name)} by {escaped(column)}: largest gap {_number(name, gap['gap'])}, lowest for "
        f"{escaped(gap['least'])}, highest for {escaped(gap['most'])}"
        for name, gap in gaps.items()
        if gap["least"] != gap["most"] and {gap["least"], gap["most"]} <= shown.keys()
    ]
    if len(shown) < len(slices):
        hidden = len(slices) - len(shown)
        lines.append(f"{escaped(column)}: groups of fewer than {SMALLEST_CELL} records, not shown here: {hidden}")
    if lines:
        yield _bullets(lines)


def _has(part: Slice, name: str) -> bool:
    return name in part.metrics and part.metrics[name].value is not None


_FILLS: dict[str, Fill] = {
    "output_value": _output_value,
    "output_type": _output_type,
    "cautioned_uses": _cautioned_uses,
    "known_limits": _known_limits,
    "training_criteria": _training_data,
    "input_variables": _input_variables,
    "training_representativeness": _if("test", _representativeness),
    "external_data": _if("other", _external_data),
    "external_representativeness": _if("other", _representativeness),
    "test_validity": _if("test", _validity),
    "test_fairness": _if("test", _fairness),
    "external_validity": _if("other", _validity),
    "external_fairness": _if("other", _fairness),
    "updates": _updates,
}


# ---- Markdown


def _heading(name: str) -> str:
    metric = _metric(name)
    return (
        f"{metric.title} ({'higher' if metric.best > metric.worst else 'lower'} is better)" if metric else escaped(name)
    )


def _title(name: str) -> str:
    metric = _metric(name)
    return metric.title if metric else escaped(name)


def _figure(name: str, measured: MetricValue) -> str:
    value, interval = _value_and_interval(name, measured)
    return f"{value} ({interval})"


def _value_and_interval(name: str, measured: MetricValue) -> tuple[str, str]:
    assert measured.value is not None
    if measured.low is None or measured.high is None:
        return _number(name, measured.value), "no interval"
    return _number(name, measured.value), f"{_number(name, measured.low)} to {_number(name, measured.high)}"


def _number(name: str, value: float) -> str:
    metric = _metric(name)
    return f"{value:.1f}" if metric and metric.best == 100 else f"{value:.3f}"


def _metric(name: str) -> Metric | None:
    """The metric of this name; None if this version does not know it."""
    from reason2decide.evaluation.metrics import METRICS  # here, since saving and loading bundles needs no metrics

    return next((metric for metric in METRICS if metric.name == name), None)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))

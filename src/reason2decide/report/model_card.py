"""The model card: what a reader must know of a model, then the 31 source attributes of HTI-1.

Each attribute is filled from the manifest and the results where these tell it, from the user's own answers where those
do, and is "Not assessed" otherwise. What was recorded or measured always stands, and an answer is marked as stated: a
card claims nothing that nobody measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from reason2decide.data.words import escaped
from reason2decide.evaluation.slices import LENGTH
from reason2decide.method.methods import METHODS
from reason2decide.report.source_attributes import KEYS, SOURCE_ATTRIBUTES, SourceAttribute, read_answers

if TYPE_CHECKING:
    from reason2decide.evaluation.metrics import Metric
    from reason2decide.evaluation.results import CalibrationResults, MetricValue, Results, Slice
    from reason2decide.model.manifest import Manifest

__all__ = ["SOURCE_ATTRIBUTES", "SourceAttribute", "escaped", "model_card", "read_answers"]

Fill = Callable[["Manifest", "Results | None"], str]
Standing = Literal["none", "test", "seen", "other"]

# Cards are published, counts of patients below 11 are not: the cell size suppression policy of the US Centers for
# Medicare and Medicaid Services. Where a column has one such group, its count still follows from the total.
SMALLEST_CELL = 11
# ours: where these differ between groups of patients, some of them are harmed
FAIRNESS = ("accuracy", "macro_f1", "under_triage", "over_triage", "ece", "deferred")


def model_card(manifest: Manifest, results: Results | None = None, answers: Mapping[str, str] = {}) -> str:
    """The card as Markdown.

    Args:
        results: of this very model. Those of its own dataset's test split are the validity "in test data of the same
            source". Those of a split that training used are no test, and are not shown. All others stand under the
            external attributes, with the reservation that only a person can tell where data come from.
        answers: by the `key` of `SOURCE_ATTRIBUTES`, as `read_answers` gives them.
    """
    assert set(answers) <= set(KEYS)
    parts = [
        _head(manifest),
        "## Source attributes",
        "The 31 source attributes of 45 CFR 170.315(b)(11)(iv)(B) (HTI-1), in short words: where they differ, those of "
        "the regulation hold. Figures and facts come from training and evaluation; what is only stated is marked so. "
        "This card is no certification.",
    ]
    for group, attributes in groupby(SOURCE_ATTRIBUTES, key=lambda own: own.group):
        parts.append(f"### {group}")
        for own in attributes:
            fill = _FILLS.get(own.key)
            found = fill(manifest, results) if fill else ""
            parts += [f"**{own.number}. {own.attribute}** (`{own.key}`)", found, _rest(own, found, answers)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rest(attribute: SourceAttribute, found: str, answers: Mapping[str, str]) -> str:
    """What a person says to an attribute, or that nobody has, where what was found is not the whole of it."""
    if attribute.key in answers:
        return f"Stated, not measured: {escaped(answers[attribute.key])}"
    if found and attribute.computed == "whole":
        return ""
    return f"Not assessed{' beyond this' if found else ''}: to be filled by {attribute.filled_by}."


def _head(manifest: Manifest) -> str:
    """What a reader must know before using the model, from the manifest alone."""
    name = escaped(str(manifest.dataset["name"]))
    sources = ", ".join(f"{stage}: {source}" for stage, source in manifest.rationale_sources.items()) or "none"
    best = "".join(
        f"\n- {escaped(stage)}: best {escaped(entry['selection'])} {entry['best_value']:.4f} on validation, "
        f"at step {entry['best_step']}"
        for stage, entry in manifest.training.items()
    )
    return f"""# {name}: {manifest.method} from {escaped(manifest.base)}

A sequence-to-sequence model that decides{"" if manifest.explain == "none" else " and writes the reason why"}.

- Method: {manifest.method} ({escaped(METHODS[manifest.method].summary)})
- Labels: {_labels(manifest)}{_order(manifest)}
- Rationale sources: {escaped(sources)}
- Trained on: {name}, {escaped(manifest.created)}{best}

## Use
    r2d predict BUNDLE calls.jsonl --out predictions.jsonl
    r2d evaluate BUNDLE DATASET --split test --out results

## Limits
The model repeats what its training data holds, mistakes and gaps included. Its rationale is text that fits its
decision; it is no proof that the decision is right. A qualified person must verify every output before it touches care.
Texts longer than {manifest.lengths.input} tokens are cut at their end."""


def _labels(manifest: Manifest) -> str:
    return escaped(", ".join(manifest.labels.values)) or "given by each record"


def _order(manifest: Manifest) -> str:
    if not manifest.labels.ordinal:
        return ""
    return f" (ordinal{f', the {manifest.labels.urgent} is the most urgent' if manifest.labels.urgent else ''})"


# ---- what the results are of


def _standing(manifest: Manifest, results: Results | None) -> Standing:
    """What results are to this model: of its dataset's test split, of one that training used, or of other data."""
    if results is None:
        return "none"
    splits = [split for split, digest in manifest.dataset["sha256"].items() if digest == results.dataset_sha256]
    return "other" if not splits else "test" if splits == ["test"] else "seen"


def _if(standing: Standing, say: Callable[[Results], str]) -> Fill:
    """A fill that only results of this standing give."""
    return lambda manifest, results: say(results) if results and _standing(manifest, results) == standing else ""


def _data(results: Results) -> str:
    return (
        f"Data: {escaped(results.dataset)}, split {escaped(results.split)}, SHA-256 {escaped(results.dataset_sha256)}."
    )


def _external_data(results: Results) -> str:
    return (
        f"{_data(results)} This file is none that the model was trained on. Whether its records come from another "
        "source, and none of them was in the training data, was not assessed."
    )


# ---- what training and evaluation tell


def _output_value(manifest: Manifest, _: Results | None) -> str:
    rationale = {
        "none": "It writes no rationale.",
        "unconditioned": "Beside it stands a rationale, written from the text alone.",
        "conditioned": "A rationale is then written, from the text and the label decided on.",
    }[manifest.explain]
    return f"One label, with a probability for each that could be chosen. Labels: {_labels(manifest)}. {rationale}"


def _output_type(manifest: Manifest, _: Results | None) -> str:
    rationale = "" if manifest.explain == "none" else ", and generated text (the rationale)"
    return f"Classification{_order(manifest)}{rationale}."


def _cautioned_uses(manifest: Manifest, results: Results | None) -> str:
    untested = "No results on test data are given here, so caution is due in every task, situation and population."
    where = {
        "none": untested,
        "seen": untested,
        "test": "The results given here are of its own dataset's test split: caution is due wherever data differ.",
        "other": "Caution is due wherever data differ from those of training and of the results given here.",
    }[_standing(manifest, results)]
    return f"{where} Not to be used without a qualified person who verifies every output."


def _known_limits(manifest: Manifest, results: Results | None) -> str:
    lines = [
        "It always decides for one of the labels, also where none fits.",
        f"Texts longer than {manifest.lengths.input} tokens are cut at their end.",
    ]
    if manifest.explain != "none":
        lines.append("A rationale is text that fits the decision; it is no proof that the decision is right.")
    if results and _standing(manifest, results) != "seen":
        missed = results.metrics.get("under_triage")
        if missed and missed.value is not None:
            value, interval = _value_and_interval("under_triage", missed)
            lines.append(f"Under-triage was measured: {value} (95 % interval {interval}, n = {missed.n}).")
        counted = {label: own for label, own in results.per_label.items() if own["support"] >= SMALLEST_CELL}
        if counted:
            label = min(counted, key=lambda own: counted[own]["recall"])
            recall, support = counted[label]["recall"], counted[label]["support"]
            lines.append(f"The label with the least recall: {escaped(label)}, {recall:.3f} of {support} records.")
    return _bullets(lines)


def _training_data(manifest: Manifest, _: Results | None) -> str:
    digests = [f"{escaped(split)}: SHA-256 {escaped(own)}" for split, own in manifest.dataset["sha256"].items()]
    return f"Dataset {escaped(str(manifest.dataset['name']))}, with these splits:\n\n{_bullets(digests)}"


def _input_variables(*_: object) -> str:
    return (
        "None of them is an input feature of its own: the model reads the text, and the choices of a record that "
        "brings its own. What a text says of them is read with the rest."
    )


def _updates(manifest: Manifest, _: Results | None) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return (
        f"Trained {escaped(manifest.created)} (versions: {escaped(versions)}). Its weights do not change in use; an "
        "update is a new bundle."
    )


def _validity(results: Results) -> str:
    computed = {name: own for name, own in results.metrics.items() if own.value is not None}
    rows = [(_heading(name), *_value_and_interval(name, own), str(own.n)) for name, own in computed.items()]
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


def _calibration(own: CalibrationResults, metrics: Mapping[str, MetricValue]) -> str:
    changes = [
        f"; {_title(name)} {_number(name, before)} before, {_value_and_interval(name, metrics[name])[0]} after"
        for name, before in own.before.items()
        if name in metrics
    ]
    deferred = "every case" if own.threshold is None else f"decisions under a probability of {own.threshold:.3f}"
    return (
        f"Probabilities were calibrated on validation: temperature {own.temperature:.3f}{''.join(changes)}. To keep "
        f"an error rate of {own.error_rate:g} among the rest, validation says to defer {deferred} to a person."
    )


def _patient_columns(results: Results) -> dict[str, Sequence[Slice]]:
    """The columns that results were sliced by, without the length of the text: that tells of no patient."""
    return {column: slices for column, slices in results.slices.items() if column != LENGTH}


def _representativeness(results: Results) -> str:
    lines = [
        f"{escaped(column)}: "
        + ", ".join(
            f"{escaped(own.value)} {own.n if own.n >= SMALLEST_CELL else f'fewer than {SMALLEST_CELL}'}"
            for own in slices
        )
        for column, slices in _patient_columns(results).items()
    ]
    return f"{_data(results)} Its records by column:\n\n{_bullets(lines)}" if lines else ""


def _fairness(results: Results) -> str:
    parts = [part for column in _patient_columns(results) for part in _by_column(results, column)]
    return "\n\n".join([f"{_data(results)} In brackets: 95 % intervals.", *parts]) if parts else ""


def _by_column(results: Results, column: str) -> Iterator[str]:
    slices = results.slices[column]
    shown = {own.value: own for own in slices if own.n >= SMALLEST_CELL}
    names = [name for name in FAIRNESS if any(_has(own, name) for own in shown.values())]
    if names:
        cells = {
            value: [_figure(name, own.metrics[name]) if _has(own, name) else "not computed" for name in names]
            for value, own in shown.items()
        }
        rows = [(escaped(value), *cells[value], str(own.n)) for value, own in shown.items()]
        yield _table((escaped(column), *map(_heading, names), "n"), rows)
    gaps = {name: gap for name, gap in results.gaps.get(column, {}).items() if name in names}
    lines = [
        f"{_title(name)} by {escaped(column)}: largest gap {_number(name, gap['gap'])}, least for "
        f"{escaped(gap['least'])}, most for {escaped(gap['most'])}"
        for name, gap in gaps.items()
        if gap["least"] != gap["most"] and {gap["least"], gap["most"]} <= shown.keys()
    ]
    if len(shown) < len(slices):
        hidden = len(slices) - len(shown)
        lines.append(f"{escaped(column)}: of fewer than {SMALLEST_CELL} records, and not shown here: {hidden}")
    if lines:
        yield _bullets(lines)


def _has(own: Slice, name: str) -> bool:
    return name in own.metrics and own.metrics[name].value is not None


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
    own = _metric(name)
    return f"{own.title} ({'higher' if own.best > own.worst else 'lower'} is better)" if own else escaped(name)


def _title(name: str) -> str:
    own = _metric(name)
    return own.title if own else escaped(name)


def _figure(name: str, own: MetricValue) -> str:
    value, interval = _value_and_interval(name, own)
    return f"{value} ({interval})"


def _value_and_interval(name: str, own: MetricValue) -> tuple[str, str]:
    assert own.value is not None and own.low is not None and own.high is not None
    return _number(name, own.value), f"{_number(name, own.low)} to {_number(name, own.high)}"


def _number(name: str, value: float) -> str:
    own = _metric(name)
    return f"{value:.1f}" if own and own.best == 100 else f"{value:.3f}"


def _metric(name: str) -> Metric | None:
    """The metric of this name; None for those of results from elsewhere."""
    from reason2decide.evaluation.metrics import METRICS  # here, since bundles are saved and loaded without metrics

    return next((own for own in METRICS if own.name == name), None)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))

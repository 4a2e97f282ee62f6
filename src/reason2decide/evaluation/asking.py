"""Ask the model and the simulators what the rationale metrics need beyond the predictions."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reason2decide.console import ProgressBar
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.data.sampling import draw, id_hash
from reason2decide.data.verdicts import Verdicts
from reason2decide.data.words import mask_label_words, words_of
from reason2decide.evaluation.deletions import deletion_of
from reason2decide.evaluation.probes import Insertion, Probe, answer_hash
from reason2decide.evaluation.readers import RationaleReader
from reason2decide.evaluation.settings import PROBED_RECORDS
from reason2decide.method.prompts import body

if TYPE_CHECKING:
    from reason2decide.model.predictor import Predictor

AT_ONCE = 256  # ours: records sorted by length together, so that batches have little padding
# Ours: adjectives and adverbs that fit anywhere in a note and change none of its facts. The test asks whether one
# changes the decision; Atanasova et al. 2023 insert random adjectives and adverbs for that.
INSERTED_WORDS = (
    "apparently", "reportedly", "occasionally", "usually", "generally", "presumably", "notably", "possibly",
    "currently", "previously", "somewhat", "gradually", "steadily", "repeatedly", "noticeably", "suddenly",
    "unchanged", "ordinary", "typical", "unusual", "persistent", "intermittent", "noticeable", "reported",
)  # fmt: skip


def probe_model(
    predictor: Predictor,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    seed: int = 0,
    *,
    limit: int = PROBED_RECORDS,
    insertions: int = 0,
    verdicts: Verdicts | None = None,
) -> list[Probe]:
    """Ask a model about the rationales it wrote; `predictions` are its own, in the order of `records`.

    For every record: its label for the rationale alone, for the masked rationale, and for the rationale without its
    verdict. For at most `limit` records, those with the lowest hashes of their ids: its rationale for its second
    choice, if the method conditions on a label; the probability of its decision after sentences of the text are deleted
    (`deletions.py`); and its label and rationale after each of `insertions` words is inserted before a word of the
    text. The words are those of `INSERTED_WORDS` that occur in neither text nor rationale. A hash of (seed, record id)
    draws words and places, the latter within the part of a long text that the model reads. A method that writes no
    rationales is asked nothing.

    Args:
        verdicts: of the dataset's rationales; without them, nothing is asked about rationales without a verdict.
    """
    probes = [Probe(prediction.id, answer_hash(prediction)) for prediction in predictions]
    if not predictor.explains:
        return probes
    explained = [i for i, prediction in enumerate(predictions) if (prediction.rationale or "").strip()]
    chosen = sorted(heapq.nsmallest(limit, range(len(records)), key=lambda i: id_hash(records[i].id)))
    conditioned = predictor.bundle.manifest.explain == "conditioned"
    readings = 2 if verdicts is None else 3
    questions = readings * len(explained) + (2 + conditioned + 2 * insertions) * len(chosen)
    with ProgressBar("asking the model", questions, "questions") as bar:
        model = _Model(predictor, bar)
        cases = [(i, records[i], predictions[i]) for i in chosen]
        for answers_by_record in (
            _read_alone(model, [(i, records[i], predictions[i]) for i in explained], verdicts),
            _swap(model, cases) if conditioned else {},
            _delete(model, cases, seed),
            _insert(model, cases, seed, insertions),
        ):
            for i, answers in answers_by_record.items():
                probes[i] = replace(probes[i], **answers)
    return probes


def probe_simulators(
    simulators: RationaleReader, records: Sequence[Record], predictions: Sequence[Prediction], probes: Sequence[Probe]
) -> list[Probe]:
    """Add to the probes what the simulators read from texts, rationales, and rationales for swapped labels.

    Raises:
        NotComputed: as `RationaleReader.simulate`.
    """
    simulated = simulators.simulate(records, predictions)
    swapped = [i for i, probe in enumerate(probes) if (probe.swapped_rationale or "").strip()]
    rationales = [probes[i].swapped_rationale or "" for i in swapped]
    for i, read in zip(swapped, simulators.simulate_swapped([records[i] for i in swapped], rationales), strict=True):
        simulated[i] |= read
    return [replace(probe, simulated=answers) for probe, answers in zip(probes, simulated, strict=True)]


Case = tuple[int, Record, Prediction]  # first the position among all records
Answers = dict[int, dict[str, Any]]  # fields of `Probe` by position


class _Model:
    """A predictor that advances a progress bar with each question."""

    def __init__(self, predictor: Predictor, bar: ProgressBar) -> None:
        self.predictor, self.bar = predictor, bar

    def distributions(self, records: Sequence[Record]) -> list[dict[str, float]]:
        """Its probabilities for each record."""
        distributions: list[dict[str, float]] = []
        for begin in range(0, len(records), AT_ONCE):
            part = self.predictor.distributions(records[begin : begin + AT_ONCE])
            distributions += part
            self.bar.advance(len(part))
        return distributions

    def labels(self, records: Sequence[Record]) -> list[str]:
        """Its decision on each record."""
        return [max(found, key=found.__getitem__) for found in self.distributions(records)]

    def rationales(self, records: Sequence[Record], labels: Sequence[str]) -> list[str]:
        """Its rationale for each record and label."""
        rationales: list[str] = []
        for begin in range(0, len(records), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            rationales += self.predictor.rationales(records[part], labels[part])
            self.bar.advance(len(rationales) - begin)
        return rationales


def _read_alone(model: _Model, cases: Sequence[Case], verdicts: Verdicts | None) -> Answers:
    alone = [replace(record, text=prediction.rationale or "") for _, record, prediction in cases]
    read = {
        "label_from_rationale": alone,
        "label_from_masked_rationale": [
            replace(record, text=mask_label_words(record.text, model.predictor.choices(record))) for record in alone
        ],
    }
    if verdicts is not None:
        read["label_from_reasons"] = [replace(record, text=verdicts.reasons(record.text)) for record in alone]
    answers: Answers = {i: {} for i, _, _ in cases}
    for question, records in read.items():
        for (i, _, _), label in zip(cases, model.labels(records), strict=True):
            answers[i][question] = label
    return answers


def _swap(model: _Model, cases: Sequence[Case]) -> Answers:
    labels = []
    for _, _, prediction in cases:
        assert prediction.probabilities is not None, "a predictor's own predictions have probabilities"
        others = {label: p for label, p in prediction.probabilities.items() if label != prediction.predicted_label}
        labels.append(max(others, key=others.__getitem__))
    rationales = model.rationales([record for _, record, _ in cases], labels)
    return {
        i: {"swapped_label": label, "swapped_rationale": rationale}
        for (i, _, _), label, rationale in zip(cases, labels, rationales, strict=True)
    }


def _delete(model: _Model, cases: Sequence[Case], seed: int) -> Answers:
    deletions = [(i, record, prediction, deletion_of(record, prediction, seed)) for i, record, prediction in cases]
    asked = [(i, record, prediction.predicted_label, texts) for i, record, prediction, texts in deletions if texts]
    without = [
        model.distributions([replace(record, text=texts[part]) for _, record, _, texts in asked]) for part in (0, 1)
    ]
    return {
        i: {"p_without_cited": cited[label], "p_without_others": others[label]}
        for (i, _, label, _), cited, others in zip(asked, *without, strict=True)
    }


def _insert(model: _Model, cases: Sequence[Case], seed: int, insertions: int) -> Answers:
    changed: list[tuple[int, str, Record]] = []
    for i, record, prediction in cases:
        share_read = _share_read(model.predictor, record)
        for number, word in enumerate(_words_to_insert(record, prediction, seed, insertions)):
            at = _place(record, share_read, seed, number)
            changed.append((i, word, replace(record, text=f"{record.text[:at]}{word} {record.text[at:]}")))
    records = [record for _, _, record in changed]
    labels = model.labels(records)
    answers: Answers = {}
    for (i, word, _), label, rationale in zip(changed, labels, model.rationales(records, labels), strict=True):
        answers.setdefault(i, {"insertions": ()})["insertions"] += (Insertion(word, label, rationale),)
    return answers


def _words_to_insert(record: Record, prediction: Prediction, seed: int, count: int) -> list[str]:
    """Words that neither text nor rationale has, so that a later mention can only come from the insertion."""
    known = {*words_of(record.text), *words_of(prediction.rationale or "")}
    free = [word for word in INSERTED_WORDS if word not in known] or list(INSERTED_WORDS)
    return sorted(free, key=lambda word: draw(seed, f"word {word}", record.id))[:count]


def _place(record: Record, share_read: float, seed: int, number: int) -> int:
    """The start of a word of the text, drawn from those that the model reads."""
    starts = [word.start() for word in re.finditer(r"\S+", record.text)]
    within = max(1, int(len(starts) * share_read))
    return starts[int(draw(seed, f"place {number}", record.id) * within)]


def _share_read(predictor: Predictor, record: Record) -> float:
    """The share of a text's tokens that fit the model's prompt."""
    encoder = predictor.bundle.encoder
    tokens = len(encoder.text_ids([body(record.text, record.choices)])[0])
    return min(1.0, encoder.room(predict=True) / max(1, tokens))

"""Ask the model and the simulators what the rationale metrics need beyond the predictions."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reason2decide.console import ProgressBar
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.data.words import mask_label_words, words_of
from reason2decide.evaluation.probes import Probe
from reason2decide.evaluation.readers import Simulators, id_hash
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
) -> list[Probe]:
    """Ask a model about the rationales it wrote; `predictions` are its own, in the order of `records`.

    For every record: its label for the rationale alone, and for the masked rationale. For at most `limit` records,
    those with the lowest hashes of their ids: its rationale for its second choice, if the method conditions on a label;
    and its label and rationale after one of `INSERTED_WORDS` that occurs in neither text nor rationale is inserted
    before a word of the text. A hash of (seed, record id) draws the word and the place, the latter within the part of a
    long text that the model reads. A method that writes no rationales is asked nothing.
    """
    probes = [Probe(record.id) for record in records]
    if not predictor.explains:
        return probes
    explained = [i for i, prediction in enumerate(predictions) if (prediction.rationale or "").strip()]
    chosen = sorted(heapq.nsmallest(limit, range(len(records)), key=lambda i: id_hash(records[i].id)))
    conditioned = predictor.bundle.manifest.explain == "conditioned"
    questions = 2 * len(explained) + (3 if conditioned else 2) * len(chosen)
    with ProgressBar("asking the model", questions, "questions") as bar:
        model = _Model(predictor, bar)
        found = _read_alone(model, [(i, records[i], predictions[i]) for i in explained])
        for i, answers in found.items():
            probes[i] = replace(probes[i], **answers)
        cases = [(i, records[i], predictions[i]) for i in chosen]
        for answers_by_record in (_swap(model, cases) if conditioned else {}, _insert(model, cases, seed)):
            for i, answers in answers_by_record.items():
                probes[i] = replace(probes[i], **answers)
    return probes


def probe_simulators(
    simulators: Simulators, records: Sequence[Record], predictions: Sequence[Prediction], probes: Sequence[Probe]
) -> list[Probe]:
    """Add to the probes what the simulators read from texts, rationales, and rationales for swapped labels.

    Raises:
        NotComputed: as `Simulators.simulate`.
    """
    simulated = simulators.simulate(records, predictions)
    swapped = [i for i, probe in enumerate(probes) if (probe.swapped_rationale or "").strip()]
    read = simulators.read_rationales([probes[i].swapped_rationale or "" for i in swapped])
    for i, label in zip(swapped, read, strict=True):
        simulated[i]["swapped_rationale"] = label
    return [replace(probe, simulated=answers) for probe, answers in zip(probes, simulated, strict=True)]


Case = tuple[int, Record, Prediction]  # first the position among all records
Answers = dict[int, dict[str, Any]]  # fields of `Probe` by position


class _Model:
    """A predictor that advances a progress bar with each question."""

    def __init__(self, predictor: Predictor, bar: ProgressBar) -> None:
        self.predictor, self.bar = predictor, bar

    def labels(self, records: Sequence[Record]) -> list[str]:
        """Its decision on each record."""
        labels: list[str] = []
        for begin in range(0, len(records), AT_ONCE):
            part = self.predictor.distributions(records[begin : begin + AT_ONCE])
            labels += [max(distribution, key=distribution.__getitem__) for distribution in part]
            self.bar.advance(len(part))
        return labels

    def rationales(self, records: Sequence[Record], labels: Sequence[str]) -> list[str]:
        """Its rationale for each record and label."""
        rationales: list[str] = []
        for begin in range(0, len(records), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            rationales += self.predictor.rationales(records[part], labels[part])
            self.bar.advance(len(rationales) - begin)
        return rationales


def _read_alone(model: _Model, cases: Sequence[Case]) -> Answers:
    alone = [replace(record, text=prediction.rationale or "") for _, record, prediction in cases]
    masked = [replace(record, text=mask_label_words(record.text, model.predictor.choices(record))) for record in alone]
    return {
        i: {"label_from_rationale": label, "label_from_masked_rationale": from_masked}
        for (i, _, _), label, from_masked in zip(cases, model.labels(alone), model.labels(masked), strict=True)
    }


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


def _insert(model: _Model, cases: Sequence[Case], seed: int) -> Answers:
    words = [_word_to_insert(record, prediction, seed) for _, record, prediction in cases]
    changed = []
    for (_, record, _), word in zip(cases, words, strict=True):
        at = _place(record, _share_read(model.predictor, record), seed)
        changed.append(replace(record, text=f"{record.text[:at]}{word} {record.text[at:]}"))
    labels = model.labels(changed)
    return {
        i: {"inserted_word": word, "label_after_insertion": label, "rationale_after_insertion": rationale}
        for (i, _, _), word, label, rationale in zip(
            cases, words, labels, model.rationales(changed, labels), strict=True
        )
    }


def _word_to_insert(record: Record, prediction: Prediction, seed: int) -> str:
    """A word that neither text nor rationale has, so that a later mention can only come from the insertion."""
    known = {*words_of(record.text), *words_of(prediction.rationale or "")}
    free = [word for word in INSERTED_WORDS if word not in known] or INSERTED_WORDS
    return free[int(_draw(seed, "word", record.id) * len(free))]


def _place(record: Record, share_read: float, seed: int) -> int:
    """The start of a word of the text, drawn from those that the model reads."""
    starts = [word.start() for word in re.finditer(r"\S+", record.text)]
    within = max(1, int(len(starts) * share_read))
    return starts[int(_draw(seed, "place", record.id) * within)]


def _share_read(predictor: Predictor, record: Record) -> float:
    """The share of a text's tokens that fit the model's prompt."""
    encoder = predictor.bundle.encoder
    tokens = len(encoder.text_ids([body(record.text, record.choices)])[0])
    return min(1.0, encoder.room(predict=True) / max(1, tokens))


def _draw(seed: int, what: str, record_id: str) -> float:
    """A number in [0, 1) that depends only on the arguments."""
    digest = hashlib.blake2b(f"{seed}/{what}/{record_id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56

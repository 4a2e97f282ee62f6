"""Probing a model: each question is what the predictor itself answers, and what is asked depends on ids alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from toy import run

from reason2decide.data.records import LabelSet
from reason2decide.data.sampling import id_hash
from reason2decide.data.verdicts import Verdicts
from reason2decide.data.words import mask_label_words, words_of
from reason2decide.evaluation.asking import INSERTED_WORDS, probe_model, probe_simulators
from reason2decide.evaluation.deletions import deletion_of
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.metrics.counterfactual import SwapChange, SwapFollows
from reason2decide.evaluation.metrics.self_consistency import Consistency, Sufficiency
from reason2decide.evaluation.metrics.simulation import Las, SimulatedSufficiency
from reason2decide.evaluation.probes import Probe, read_probes, write_probes
from reason2decide.evaluation.readers import Simulators
from reason2decide.model.predictor import Predictor

VERDICTS = Verdicts(LabelSet(("home care", "see a doctor", "call an ambulance")), [("label",)])
ASK: dict[str, Any] = {"insertions": 2, "verdicts": VERDICTS}


@pytest.fixture(scope="module")
def predictor(dataset, tmp_path_factory):
    return Predictor.load(run(dataset, tmp_path_factory.mktemp("run") / "r2d", steps=8))


@pytest.fixture(scope="module")
def records(dataset):
    return list(dataset.split("test"))


@pytest.fixture(scope="module")
def predictions(predictor, records):
    # The model learns nothing in a few steps: rationales of our own, one of them missing.
    made = list(predictor.predict(records))
    written = ["", *(f"The label {record.label} and a rash." for record in records[1:])]
    return [replace(prediction, rationale=text) for prediction, text in zip(made, written, strict=True)]


@pytest.fixture(scope="module")
def probes(predictor, records, predictions):
    return probe_model(predictor, records, predictions, seed=3, insertions=2, verdicts=VERDICTS)


def decided(predictor, record):
    own = predictor.distributions([record])[0]
    return max(own, key=own.__getitem__)


def test_the_model_reads_its_rationales_alone_and_masked(predictor, records, predictions, probes):
    assert [probe.id for probe in probes] == [record.id for record in records]
    assert probes[0].label_from_rationale is probes[0].label_from_masked_rationale is None
    assert probes[0].label_from_reasons is None
    for record, prediction, probe in list(zip(records, predictions, probes, strict=True))[1:]:
        alone = replace(record, text=prediction.rationale)
        masked = replace(record, text=mask_label_words(prediction.rationale, predictor.bundle.manifest.labels.values))
        assert "___" in masked.text and str(record.label) not in masked.text
        assert probe.label_from_rationale == decided(predictor, alone)
        assert probe.label_from_masked_rationale == decided(predictor, masked)
        reasons = replace(record, text=VERDICTS.reasons(prediction.rationale))
        assert probe.label_from_reasons == decided(predictor, reasons)


def test_the_second_choice_gets_its_own_rationale(predictor, records, predictions, probes):
    for record, prediction, probe in zip(records, predictions, probes, strict=True):
        ranked = sorted(prediction.probabilities, key=prediction.probabilities.__getitem__)
        assert ranked[-1] == prediction.predicted_label and probe.swapped_label == ranked[-2]
        assert probe.swapped_rationale == predictor.rationales([record], [probe.swapped_label])[0]


@pytest.fixture
def asked(predictor, monkeypatch):
    """The records that the model decided on last, by id."""
    seen, distributions = {}, predictor.distributions

    def remember(records):
        seen.update({record.id: record for record in records})
        return distributions(records)

    monkeypatch.setattr(predictor, "distributions", remember)
    return seen


def test_new_words_are_inserted_before_words_of_the_text(predictor, records, predictions, probes, asked):
    assert probe_model(predictor, records, predictions, seed=3, **ASK) == probes
    places = set()
    for record, prediction, probe in zip(records, predictions, probes, strict=True):
        assert len({insertion.word for insertion in probe.insertions}) == 2
        insertion, changed = probe.insertions[-1], asked[record.id]
        assert insertion.word in INSERTED_WORDS
        assert insertion.word not in words_of(record.text) + words_of(prediction.rationale)
        before, after = changed.text.split(f"{insertion.word} ")
        assert before + after == record.text and after and before[-1:] in ("", " ")
        places.add(len(before.split()))
        assert insertion.label == decided(predictor, changed)
        assert insertion.rationale == predictor.rationales([changed], [insertion.label])[0]
    assert len(places) > 3 and len({probe.insertions[0].word for probe in probes}) > 3


def test_the_decision_is_asked_again_without_what_the_rationale_cites(predictor, records, predictions):
    records = [replace(record, text=f"{record.text}. Lives with a cat. Drinks much tea.") for record in records]
    citing = [replace(prediction, rationale="Drinks tea.") for prediction in predictions]
    probes = probe_model(predictor, records, citing, seed=3)
    asked = 0
    for record, prediction, probe in zip(records, citing, probes, strict=True):
        texts = deletion_of(record, prediction, seed=3)
        assert (texts is None) == (probe.p_without_cited is None) == (probe.p_without_others is None)
        if texts is not None:
            asked += 1
            for text, p in zip(texts, (probe.p_without_cited, probe.p_without_others), strict=True):
                found = predictor.distributions([replace(record, text=text)])[0]
                assert p == pytest.approx(found[prediction.predicted_label], abs=1e-5)
    assert asked > 3


def test_seed_and_id_alone_decide_what_is_inserted(predictor, records, predictions, probes):
    assert probe_model(predictor, records[::-1], predictions[::-1], seed=3, **ASK) == probes[::-1]
    other = probe_model(predictor, records, predictions, seed=4, **ASK)
    assert [[i.word for i in p.insertions] for p in other] != [[i.word for i in p.insertions] for p in probes]
    assert [p.label_from_rationale for p in other] == [p.label_from_rationale for p in probes]


def test_rationales_are_written_anew_for_a_limited_number_of_records(predictor, records, predictions, probes):
    some = probe_model(predictor, records, predictions, seed=3, limit=4, **ASK)
    lowest = {record.id for record in sorted(records, key=lambda record: id_hash(record.id))[:4]}
    for probe, whole in zip(some, probes, strict=True):
        only_read = Probe(
            whole.id,
            about=whole.about,
            label_from_rationale=whole.label_from_rationale,
            label_from_masked_rationale=whole.label_from_masked_rationale,
            label_from_reasons=whole.label_from_reasons,
        )
        assert probe == (whole if probe.id in lowest else only_read)


def test_long_texts_get_their_word_where_the_model_reads(predictor, records, predictions, asked):
    long = [replace(record, text=f"{record.text} {'and some more ' * 200}") for record in records]
    encoder = predictor.bundle.encoder
    places = []
    for record, probe in zip(long, probe_model(predictor, long, predictions, insertions=1), strict=True):
        before = asked[record.id].text.split(f"{probe.insertions[0].word} ")[0]
        places.append(len(encoder.text_ids([before])[0]))
    assert len(encoder.text_ids([long[0].text])[0]) > 5 * encoder.room(predict=True)
    assert encoder.room(predict=True) / 3 < max(places) <= encoder.room(predict=True)


@pytest.mark.parametrize(("method", "answers"), [("sft", False), ("dss", True)])
def test_a_method_is_asked_only_what_it_can_answer(dataset, records, tmp_path, method, answers):
    predictor = Predictor.load(run(dataset, tmp_path / "run", method=method, steps=2))
    made = [replace(prediction, rationale="a rash") for prediction in predictor.predict(records)]
    probes = probe_model(predictor, records, made, **ASK)
    assert all(probe.swapped_label is probe.swapped_rationale is None for probe in probes)
    assert all(bool(probe.insertions) == (probe.label_from_rationale is not None) == answers for probe in probes)


def test_simulators_fill_in_what_they_read_and_files_keep_it(dataset, records, predictions, probes, tmp_path):
    simulators = Simulators.fit(dataset.split("train"), dataset.info.labels, "llm")
    swapped = [replace(probe, swapped_rationale="The chest pain decides.") for probe in probes]
    full = probe_simulators(simulators, records, predictions, [replace(swapped[0], swapped_rationale=""), *swapped[1:]])
    assert set(full[0].simulated) == {"text"}
    for record, probe, before in list(zip(records, full, swapped, strict=True))[1:]:
        read = {"text", "rationale", "masked_rationale", "reasons", "both", "swapped_rationale", "swapped_reasons"}
        assert set(probe.simulated) == read
        assert probe.simulated["text"] == record.label
        assert probe.simulated["swapped_rationale"] == "call an ambulance"
        assert replace(probe, simulated={}) == before
    write_probes(tmp_path / "probes.jsonl", full)
    assert read_probes(tmp_path / "probes.jsonl") == full
    found = Examples(records, predictions, dataset.info.labels, "llm", full)
    for metric in (Consistency(), Sufficiency(), SimulatedSufficiency(), Las(), SwapChange(), SwapFollows()):
        statistics = metric.statistics(found)
        low, high = sorted((metric.worst, metric.best))
        assert low <= float(metric.aggregate(statistics.total())) <= high


def test_importing_needs_neither_torch_nor_scikit_learn():
    heavy = "{'torch', 'sklearn', 'transformers'}"
    code = f"import sys, reason2decide.evaluation.asking; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

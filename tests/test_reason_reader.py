"""The reader of reasons: its phrases and weights by hand, what it flags, and that its file quotes nothing."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import TEXT, triage_bundle

import reason2decide as r2d
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.errors import BundleError, NotComputed
from reason2decide.model.calibration import Calibration
from reason2decide.model.manifest import read_manifest, write_manifest
from reason2decide.model.phrase_reader import BUCKETS, PhraseReader, buckets, phrases
from reason2decide.model.reason_reader import FILE, Lessons, ReasonReader

LABELS = LabelSet(("home", "doctor", "ambulance"))
VERDICTS = {"home": "Rest at home then.", "doctor": "Someone must see it.", "ambulance": "A crew comes now."}
FACTS = {"home": "The rash is mild.", "doctor": "The fever lasts.", "ambulance": "The chest hurts badly."}


def record(i: int) -> Record:
    label = LABELS.values[i % 3]
    return Record(f"r{i}", f"note {i}: {FACTS[label]}", label, {"nurse": f"{FACTS[label]} {VERDICTS[label]}"})


RECORDS = [record(i) for i in range(60)]


def reader() -> ReasonReader:
    return ReasonReader.fit(Lessons.of(RECORDS, LABELS, "nurse"), LABELS, "nurse")


def test_phrases_by_hand() -> None:
    assert list(phrases(["No chest pain!", "Pain"])) == [
        *("0 no", "0 no chest", "0 no chest pain", "0 chest", "0 chest pain", "0 pain"),
        "1 pain",
    ]
    assert buckets(["pain pain"]).tolist() == sorted({crc32(text) % BUCKETS for text in (b"0 pain", b"0 pain pain")})
    assert buckets([""]).tolist() == []


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_any_text_has_hashes(parts: list[str]) -> None:
    found = buckets(parts)
    assert (np.diff(found) > 0).all() and ((found >= 0) & (found < BUCKETS)).all()


def test_probabilities_by_hand() -> None:
    """Weights 1 and 2 of two phrases for b, bias 0.5 for a: softmax(0.5, 3)."""
    weights = np.zeros((2, BUCKETS), np.float32)
    weights[1, buckets(["pain"])] = 1.0
    weights[1, buckets(["chest"])] = 2.0
    own = PhraseReader(("a", "b"), weights, np.array([0.5, 0.0], np.float32))
    assert own.probabilities([["pain chest"]])[0, 1] == pytest.approx(1 / (1 + math.exp(0.5 - 3)))
    assert own.read([["pain"], ["nothing"]]) == ["b", "a"] and own.read([]) == []


def test_two_labels_are_read_like_three() -> None:
    texts = [["good"], ["bad"]] * 10
    own = PhraseReader.fit(texts, ["yes", "no"] * 10, [1.0] * 20)
    assert own.labels == ("no", "yes") and own.weights.shape == (2, BUCKETS)
    assert own.read([["good"], ["bad"]]) == ["yes", "no"]


def test_facts_and_verdict_must_both_argue_for_the_label() -> None:
    own = reader()
    mixed = f"{FACTS['home']} {VERDICTS['ambulance']}"
    both = f"{FACTS['ambulance']} {VERDICTS['ambulance']}"
    found = own.supports([both, mixed, mixed, both], ["ambulance", "ambulance", "home", "elsewhere"])
    assert found[0] > 0.9 and max(found[1:]) < 0.5 and found[3] == 0.0
    assert own.supports([], []).tolist() == []


def test_contrasts_weigh_as_much_as_the_gold_rationale_beside_them() -> None:
    argued = replace(RECORDS[0], contrasts={"nurse": {"doctor": "It may last.", "ambulance": "It may get worse."}})
    lessons = Lessons.of([argued, *RECORDS[1:]], LABELS, "nurse")
    gold, others = len(RECORDS), slice(len(RECORDS), None)
    assert list(lessons.labels[others]) == ["doctor", "ambulance"] and list(lessons.importance[others]) == [0.5, 0.5]
    assert list(lessons.importance[:gold]) == [1.0] * gold


def test_its_file_gives_the_same_reader_and_quotes_no_fact() -> None:
    own = reader()
    content = json.dumps(own.to_json())
    again = ReasonReader.from_json(json.loads(content))
    reasons = [record.rationales["nurse"] for record in RECORDS[:6]]
    labels = [str(record.label) for record in RECORDS[:6]]
    assert again.supports(reasons, labels).tolist() == own.supports(reasons, labels).tolist()
    assert not {"rash", "fever", "chest", "hurts"} & set(re.findall(r"\w+", content.casefold()))


def test_what_cannot_be_learnt_from() -> None:
    with pytest.raises(NotComputed, match="no rationale of source 'nurse' in training has a word"):
        silent = [replace(own, rationales={"nurse": "..."}) for own in RECORDS]
        ReasonReader.fit(Lessons.of(silent, LABELS, "nurse"), LABELS, "nurse")
    with pytest.raises(NotComputed, match="at least two"):
        Lessons.of(RECORDS[::3], LABELS, "nurse")
    with pytest.raises(NotComputed, match="label set is open"):
        Lessons.of(RECORDS, LabelSet(()), "nurse")


def test_the_threshold_is_a_rank_of_validation() -> None:
    """9 of the 12 validation records have a gold rationale; of 9 + 1, floor(0.05 * 10) = 0 may be flagged: no cutoff
    above 0. Of 99, five may: the fifth lowest support."""
    calibration = r2d.load(triage_bundle()).predictor.bundle.calibration
    assert len(calibration.reason_supports) == 9 and calibration.support_cutoff() == 0.0
    many = replace(calibration, reason_supports=np.arange(1, 100) / 100)
    assert many.support_cutoff() == 0.05 and many.support_cutoff(0.5) == 0.5
    restored = Calibration.from_json(many.to_json())
    assert restored.reason_supports.tolist() == many.reason_supports.tolist()
    assert replace(calibration, reason_supports=np.zeros(0)).support_cutoff() is None


def test_a_damaged_reader_is_refused_by_name(tmp_path: Path) -> None:
    """With a manifest that fits, as somebody's own tool would write it: what is in the file is still checked."""
    folder = tmp_path / "bundle"
    shutil.copytree(triage_bundle(), folder)
    assert r2d.load(folder).decide(TEXT).reason_support is not None
    manifest = read_manifest(folder)
    (folder / FILE).write_text('{"whole": {"labels": ["a"], "bias": [0], "weights": ""}}')
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=r"reason_reader.json is not what training writes"):
        r2d.load(folder)
    (folder / FILE).unlink()
    write_manifest(folder, manifest)
    assert r2d.load(folder).decide(TEXT).reason_support is None


def test_on_synthetic_calls_it_tells_whose_reasons_argue_for_the_label(tmp_path: Path) -> None:
    """Gold reasons pass, those for an adjacent label do not, also where only the verdict agrees."""
    data = synthesize_calls(tmp_path / "d", train=3000, validation=1, test=200)
    own = ReasonReader.fit(Lessons.of(data.split("train"), data.info.labels, "llm"), data.info.labels, "llm")
    calls = list(data.split("test"))
    gold = own.supports([call.rationales["llm"] for call in calls], [str(call.label) for call in calls])
    labels = data.info.labels.values
    next_to = {label: labels[i - 1 if i else 1] for i, label in enumerate(labels)}
    argued = [call.contrasts["llm"][next_to[str(call.label)]] for call in calls]
    other = own.supports(argued, [str(call.label) for call in calls])
    verdict = [text[text.rindex(". ") + 2 :] for text in (call.rationales["llm"].removesuffix(".") for call in calls)]
    swapped = [
        f"{text[: text.removesuffix('.').rindex('. ') + 2]}{end}." for text, end in zip(argued, verdict, strict=True)
    ]
    masked = own.supports(swapped, [str(call.label) for call in calls])
    assert np.median(gold) > 0.9 and np.mean(gold > 0.5) > 0.9
    assert np.mean(other > 0.5) < 0.05 and np.mean(masked > 0.5) < 0.15

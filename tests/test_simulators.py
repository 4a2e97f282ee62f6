"""Simulators: what they learn, that they are a function of the training data alone, and when there are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from reason2decide.data.dataset_folder import DatasetInfo, write_dataset
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sampling import id_hash
from reason2decide.data.verdicts import Verdicts
from reason2decide.data.words import WORD, mask_label_words
from reason2decide.errors import NotComputed
from reason2decide.evaluation.readers import NamedChoices, Simulators
from reason2decide.model import reason_reader
from reason2decide.model.phrase_reader import ITERATIONS, STRENGTH, buckets

LABELS = LabelSet(("home care", "clinic", "hospital"))
CUES = {"home care": "mild rash", "clinic": "high fever", "hospital": "chest pain"}
ADVICE = {"home care": "home care will do", "clinic": "the clinic is best", "hospital": "to hospital at once"}


def record(i, label=None):
    label = label or LABELS.values[i % 3]
    rationale = f"{CUES[label]} decides, {ADVICE[label]}."
    return Record(f"r{i}", f"{20 + i} yo with {CUES[label]} for {i % 5} days", label, {"llm": rationale})


TRAIN = [record(i) for i in range(60)]
TEST = [record(i) for i in range(100, 112)]


def predicted(records, rationales):
    return [Prediction(r.id, str(r.label), None, text) for r, text in zip(records, rationales, strict=True)]


@pytest.fixture(scope="module")
def fitted():
    return Simulators.fit(TRAIN, LABELS, "llm")


def test_each_reader_finds_what_is_written_in_what_it_reads(fitted):
    rationales = [r.rationales["llm"] for r in TEST]
    for r, own in zip(TEST, fitted.simulate(TEST, predicted(TEST, rationales)), strict=True):
        assert own == dict.fromkeys(("text", "rationale", "masked_rationale", "reasons", "both"), r.label)


def test_the_rationale_reader_reads_the_rationale_alone(fitted):
    others = [record(i + 2).rationales["llm"] for i in range(12)]
    for i, own in enumerate(fitted.simulate(TEST, predicted(TEST, others))):
        assert own["text"] == TEST[i].label
        assert own["rationale"] == own["masked_rationale"] == own["reasons"] == record(i + 2).label != TEST[i].label


def test_masking_takes_the_label_words_from_the_reader(fitted):
    # The label's name is all this rationale says: read plainly it decides, masked it says nothing.
    bare = predicted(TEST[:3], [f"{label}!" for label in ("clinic", "hospital", "home care")])
    own = fitted.simulate(TEST[:3], bare)
    assert [reading["rationale"] for reading in own] == ["clinic", "hospital", "home care"]
    assert len({reading["masked_rationale"] for reading in own}) == 1


def test_without_a_rationale_only_the_text_is_read(fitted):
    assert fitted.simulate(TEST[:3], predicted(TEST[:3], [None, "", " \n"])) == [{"text": r.label} for r in TEST[:3]]
    assert fitted.simulate([], []) == []
    assert fitted.read_rationales([]) == []


def test_without_its_verdict_only_the_reasons_are_read(fitted):
    """Another patient's facts under one's own verdict: the whole rationale is believed, its reasons are not."""
    mixed = [f"{CUES[str(record(i + 1).label)]}. {ADVICE[str(record(i).label)]}." for i in range(12)]
    for i, own in enumerate(
        fitted.simulate([record(i) for i in range(12)], predicted([record(i) for i in range(12)], mixed))
    ):
        assert own["reasons"] == record(i + 1).label
    assert fitted.read_reasons(mixed[:3]) == [record(i + 1).label for i in range(3)]


def test_a_word_in_text_and_rationale_are_two_features():
    """Labels that hang on which word stands where: the words of both together are always the same."""
    labels = LabelSet(("yes", "no"))
    words = [("fever", "cough", "yes"), ("cough", "fever", "no")]
    records = [Record(f"r{i}", words[i % 2][0], words[i % 2][2], {"llm": words[i % 2][1]}) for i in range(20)]
    own = Simulators.fit(records, labels, "llm").simulate(records[:2], predicted(records[:2], ["cough", "fever"]))
    assert [reading["both"] for reading in own] == ["yes", "no"]


def test_readers_equal_scikit_learn_put_together_by_hand(fitted):
    verdicts = Verdicts.fit(TRAIN, LABELS, "llm")
    train = {
        "rationale": [r.rationales["llm"] for r in TRAIN],
        "masked_rationale": [mask_label_words(r.rationales["llm"], LABELS.values) for r in TRAIN],
        "reasons": [verdicts.reasons(r.rationales["llm"]) for r in TRAIN],
        "text": [r.text for r in TRAIN],
    }
    # None of them is a tie, which rounding alone would decide.
    vague = [
        "high fever, chest",
        "rash, to hospital at once",
        "pain at once",
        "mild rash, clinic",
        "high fever decides",
        "will do",
    ]
    test = {
        "rationale": vague,
        "masked_rationale": [mask_label_words(text, LABELS.values) for text in vague],
        "reasons": [verdicts.reasons(text) for text in vague],
        "text": [r.text for r in TEST[:6]],
    }
    gold = [r.label for r in TRAIN]

    def features(part):
        words = CountVectorizer(ngram_range=(1, 3), binary=True, token_pattern=WORD.pattern).fit(train[part])
        return words.transform(train[part]).toarray(), words.transform(test[part]).toarray()

    blocks = {part: features(part) for part in train}
    blocks["both"] = tuple(np.hstack(pair) for pair in zip(blocks["text"], blocks["rationale"], strict=True))
    own = fitted.simulate(TEST[:6], predicted(TEST[:6], vague))
    for reader, (seen, unseen) in blocks.items():
        model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=ITERATIONS).fit(seen, gold)
        assert [reading[reader] for reading in own] == model.predict(unseen).tolist(), reader


def test_the_order_of_the_training_file_changes_nothing(fitted):
    vague = predicted(TEST[:4], ["fever and chest", "rash at the clinic?", "pain decides", "mild, at once"])
    again = Simulators.fit(TRAIN[::-1], LABELS, "llm")
    assert again.simulate(TEST[:4], vague) == fitted.simulate(TEST[:4], vague)
    for reader, model in again._readers.items():
        assert (model.weights == fitted._readers[reader].weights).all()


def test_too_many_records_are_cut_to_the_same_ones_in_any_order(monkeypatch):
    monkeypatch.setattr(reason_reader, "MOST_RECORDS", 12)
    few, again = (Simulators.fit(order, LABELS, "llm") for order in (TRAIN, TRAIN[::-1]))
    expected = sorted(TRAIN, key=lambda r: id_hash(r.id))[:12]
    ages = {r.text.split()[0] for r in expected}
    for fitted in (few, again):
        known = np.asarray(fitted._readers["text"].weights.any(axis=0))
        found = {age for age in map(str, range(20, 200)) if known[buckets([age])].all()}
        assert found >= ages and len(found - ages) <= 2  # which share a hash with another phrase


@pytest.mark.parametrize(
    ("records", "labels", "reason"),
    [
        ([Record("r", "t", "A", {"llm": "x"}, choices=("A", "B"))], LabelSet(), "open"),
        ([*TRAIN, Record("r", "t", "A", {"llm": "x"}, choices=("A", "B"))], LABELS, "1 records have choices"),
        ([Record("r", "t", "clinic", {"nurse": "x"})], LABELS, "0 training records have a gold"),
        ([record(0, "clinic"), record(1, "clinic")], LABELS, "with 1 different labels"),
        ([Record("a", "t", "clinic", {"llm": "?"}), Record("b", "t", "hospital", {"llm": "!"})], LABELS,
         "no rationale of source 'llm'"),
    ],
)  # fmt: skip
def test_where_there_is_nothing_to_learn_there_are_no_simulators(records, labels, reason):
    with pytest.raises(NotComputed, match=reason):
        Simulators.fit(records, labels, "llm")


def test_rationales_that_are_labels_leave_nothing_to_read_when_masked():
    records = [Record("a", "x", "clinic", {"llm": "Clinic."}), Record("b", "y", "hospital", {"llm": "Hospital!"})]
    (own,) = Simulators.fit(records, LABELS, "llm").simulate(records[:1], predicted(records[:1], ["clinic"]))
    assert own == {"text": "clinic", "rationale": "clinic", "both": "clinic"}


def test_own_choices_at_use_are_refused(fitted):
    own = [Record("r", "t", "A", choices=("A", "B"))]
    with pytest.raises(NotComputed, match="choices of their own"):
        fitted.simulate(own, [Prediction("r", "A", None, "x")])


# ---- Own choices

PLACES = ("desk", "school desk", "office", "bus station")
AT = Record("q", "Where is the paper?", "desk", choices=PLACES)


@pytest.mark.parametrize(
    ("rationale", "read"),
    [
        ("Paper is written on at desks.", "desk"),
        ("Only a school desk has a drawer for it.", "school desk"),
        ("It waits at the Bus Station.", "bus station"),
        ("A desk, or an office.", ""),
        ("One writes on it.", ""),
        ("A bus goes to the station.", ""),
    ],
)
def test_of_own_choices_the_only_one_named_is_read(rationale, read):
    reader = NamedChoices()
    assert reader.simulate([AT], [Prediction("q", "office", None, rationale)]) == [{"rationale": read}]
    assert reader.simulate_swapped([AT], [rationale]) == [{"swapped_rationale": read}]


def test_without_a_rationale_nothing_is_named():
    assert NamedChoices().simulate([AT, AT], [Prediction("q", "desk"), Prediction("q", "desk", None, " ")]) == [{}, {}]


def test_a_record_without_choices_has_none_to_name():
    with pytest.raises(NotComputed, match="1 records have no choices"):
        NamedChoices().simulate([AT, Record("r", "t", "desk")], [Prediction("q", "desk"), Prediction("r", "desk")])


def test_own_choices_are_read_where_a_reason_names_them(tmp_path, forks):
    """Of the six reasons four name the decision, one another choice, and one names none."""
    places = ("desk", "office", "bus station")
    own = [Record(f"q{i}", f"Where is it, {i}?", places[i % 3], {"llm": "x"}, choices=places) for i in range(18)]
    data = write_dataset(
        tmp_path / "data",
        DatasetInfo("q", "t", LabelSet(), ("llm",)),
        {"train": own[:6], "validation": own[6:12], "test": own[12:]},
    )
    reasons = ["On the desk.", "In offices.", "Bus stations have it.", "In the office.", "Offices do.", "It is there."]
    said = [
        {"id": r.id, "predicted_label": r.label, "rationale": text} for r, text in zip(own[12:], reasons, strict=True)
    ]
    asked = [
        {"id": own[12].id, "swapped_label": "office", "swapped_rationale": "Offices have it."},
        {"id": own[13].id, "swapped_label": "desk", "swapped_rationale": "Offices have it."},
    ]
    for name, rows in (("said", said), ("said.probes", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    ended = forks.run(
        "evaluate", data.path, "--predictions", tmp_path / "said.jsonl", "--out", tmp_path / "out",
        "--rationale-source", "llm",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["metrics"]
    assert metrics["simulated_consistency"]["value"] == pytest.approx(4 / 6)
    assert metrics["swap_follows"]["value"] == pytest.approx(1 / 2)
    assert metrics["simulated_consistency_no_verdict"]["value"] is metrics["rq"]["value"] is None

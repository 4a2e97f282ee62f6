"""Metrics of rationales against hand-derived numbers, scikit-learn, rouge-score and the simulator's own rationales."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import sacrebleu
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rationale_cases import examples, value
from sklearn.metrics import matthews_corrcoef

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.words import MASK, STOP_WORDS, mask_label_words, sentences, stem, words_of
from reason2decide.errors import NotComputed
from reason2decide.evaluation.examples import Examples
from reason2decide.evaluation.metrics.contradiction import CitedContradicted
from reason2decide.evaluation.metrics.counterfactual import (
    DeletionDrop,
    PhiCct,
    SwapChange,
    SwapFollows,
    SwapFollowsNoVerdict,
)
from reason2decide.evaluation.metrics.overlap import Bleu
from reason2decide.evaluation.metrics.rouge import RougeL
from reason2decide.evaluation.metrics.self_consistency import (
    Consistency,
    ConsistencyMasked,
    ConsistencyNoVerdict,
    Sufficiency,
    SufficiencyMasked,
    SufficiencyNoVerdict,
)
from reason2decide.evaluation.metrics.simulation import (
    Las,
    RationaleQuality,
    SimulatedConsistency,
    SimulatedConsistencyMasked,
    SimulatedConsistencyNoVerdict,
    SimulatedSufficiency,
    SimulatedSufficiencyMasked,
    SimulatedSufficiencyNoVerdict,
)
from reason2decide.evaluation.metrics.support import Support, cited_spans, sentence_support
from reason2decide.evaluation.metrics.synthetic_truth import CitedFalse, CitedTrue, DecidingOmitted
from reason2decide.evaluation.probes import Insertion

OWN = (
    Consistency(),
    Sufficiency(),
    ConsistencyMasked(),
    SufficiencyMasked(),
    ConsistencyNoVerdict(),
    SufficiencyNoVerdict(),
)
READ_OUT = (
    SimulatedSufficiency(),
    SimulatedSufficiencyMasked(),
    SimulatedSufficiencyNoVerdict(),
    SimulatedConsistency(),
    SimulatedConsistencyMasked(),
    SimulatedConsistencyNoVerdict(),
)
SIMULATED = (*READ_OUT, RationaleQuality(), Las())
SWAPPED = (SwapChange(), SwapFollows(), SwapFollowsNoVerdict())
TRUTH = (CitedTrue(), CitedFalse(), DecidingOmitted())
METRICS = (RougeL(), *OWN, *SIMULATED, PhiCct(), DeletionDrop(), *SWAPPED, Support(), CitedContradicted(), *TRUTH)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_says_why_its_formula_range_and_source(metric):
    for word in ("Why:", "Formula:", "Range", "Source:"):
        assert word in (type(metric).__doc__ or "")
    assert metric.worst != metric.best
    assert len({other.name for other in METRICS}) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_without_rationales_nothing_is_computed(metric):
    found = examples(("home", "home", None, {}), ("clinic", "home", None, {}))
    records = [replace(r, meta={"present": [], "risks": [], "facts": []}) for r in found.records]
    with pytest.raises(NotComputed, match="no prediction has a rationale"):
        metric.statistics(replace(found, records=records, rationale_source="nurse"))


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        *((metric, "evaluate the bundle itself") for metric in (*OWN, PhiCct(), DeletionDrop(), *SWAPPED)),
        *((metric, "evaluate with the dataset's train split") for metric in SIMULATED),
    ],
    ids=lambda item: getattr(item, "name", ""),
)
def test_what_nobody_was_asked_is_not_computed_and_says_what_to_do(metric, reason):
    found = examples(("home", "home", "because", {}), ("home", "home", "", {}))
    for unasked in (found, replace(found, probes=None)):
        with pytest.raises(NotComputed, match=reason):
            metric.statistics(unasked)


def test_aggregates_of_nothing_are_zero_for_slices_without_examples():
    for metric, width in ((Consistency(), 2), (Las(), 4), (RationaleQuality(), 4), (PhiCct(), 4)):
        assert metric.aggregate(np.zeros((3, width))).tolist() == [0, 0, 0]


# ---------------------------------------------------------------------------------------------- self-consistency


def test_consistency_and_sufficiency_by_hand():
    found = examples(
        ("home", "home", "mild", {"label_from_rationale": "home", "label_from_masked_rationale": "clinic"}),
        ("home", "clinic", "bad", {"label_from_rationale": "clinic", "label_from_masked_rationale": "home"}),
        ("clinic", "home", "odd", {"label_from_rationale": "clinic", "label_from_masked_rationale": "clinic"}),
        ("clinic", "clinic", " ", {}),  # no rationale: nothing can be read out of it
        ("clinic", NO_ANSWER, "odd", {"label_from_rationale": "clinic", "label_from_masked_rationale": NO_ANSWER}),
        ("clinic", "clinic", "not probed", {}),
    )
    assert value(Consistency(), found) == 2 / 5
    assert value(Sufficiency(), found) == 3 / 5
    assert value(ConsistencyMasked(), found) == 0
    assert value(SufficiencyMasked(), found) == 2 / 5
    statistics = Consistency().statistics(found)
    assert statistics.positions.tolist() == [0, 1, 2, 3, 4] and len(statistics.rows) == 2
    assert statistics.notes == (
        "1 of 6 records were not probed and are left out",
        "1 of 5 predictions have no rationale and count as misses",
        "1 of 5 predictions have no answer and count as misses",
    )
    assert not any("no answer" in note for note in Sufficiency().statistics(found).notes)


# ---------------------------------------------------------------------------------------------- simulation


def simulated(gold, predicted, text, both, rationale, masked="home"):
    readings = {"text": text, "both": both, "rationale": rationale, "masked_rationale": masked}
    return (gold, predicted, "because", {"simulated": readings})


SIMULATED_CASES = (
    # gold, predicted; read from text, text and rationale, rationale, masked rationale
    simulated("home", "home", "clinic", "home", "home"),
    simulated("home", "clinic", "home", "home", "clinic"),
    simulated("clinic", "clinic", "home", "clinic", "home", "clinic"),
    simulated("clinic", "home", "home", "clinic", "clinic"),
    ("clinic", "clinic", None, {"simulated": {"text": "clinic"}}),
    simulated("home", NO_ANSWER, "clinic", "home", "home"),
)


def test_simulated_readings_by_hand():
    found = examples(*SIMULATED_CASES)
    assert value(SimulatedSufficiency(), found) == 3 / 6  # the first, the fourth and the last
    assert value(SimulatedConsistency(), found) == 2 / 6  # the first two
    assert value(SimulatedSufficiencyMasked(), found) == 4 / 6  # all but the fourth and the one without a rationale
    assert value(SimulatedConsistencyMasked(), found) == 3 / 6  # the first, the third and the fourth


def test_rq_by_hand():
    # Gains on the gold label: +1, 0, +1, +1, none for the missing rationale, +1.
    assert value(RationaleQuality(), examples(*SIMULATED_CASES)) == pytest.approx(4 / 6)


def test_las_by_hand():
    found = examples(*SIMULATED_CASES)
    # Gains on the predicted label. Leaking (the rationale alone gives it away): the first +1, the second 0.
    # Hiding: the third +1, the fourth -1, the missing rationale 0, no answer 0.
    assert value(Las(), found) == pytest.approx(((1 + 0) / 2 + (1 - 1 + 0 + 0) / 4) / 2)
    notes = Las().statistics(found).notes
    assert "1 of 6 predictions have no rationale and add nothing" in notes
    assert "1 of 6 predictions have no answer and add nothing" in notes


@pytest.mark.parametrize(("reads", "note"), [("home", "every rationale"), ("clinic", "no rationale")])
def test_las_with_one_group_is_its_mean(reads, note):
    found = examples(
        simulated("home", "home", "clinic", "home", reads), simulated("home", "home", "home", "home", reads)
    )
    assert value(Las(), found) == 1 / 2
    assert Las().remarks(Las().statistics(found).total(), found.labels) == (
        f"{note} gives its label away, so the value is the mean of that group alone",
    )


def test_las_aggregates_resamples_with_an_empty_group():
    sums = np.array([[1, 2, -1, 1], [1, 2, 0, 0], [0, 0, -1, 1]], float)
    assert Las().aggregate(sums).tolist() == [(1 / 2 - 1) / 2, 1 / 2, -1]


def test_simulated_metrics_name_their_readers():
    for metric in (*SIMULATED, SwapFollows(), SwapFollowsNoVerdict()):
        assert "logistic-regression" in metric.signature()


# ---------------------------------------------------------------------------------------------- counterfactual


def inserted(changed, mentioned, predicted="home"):
    rationale = "It is Suddenly, worse." if mentioned else "It sudden got worse."
    label = "clinic" if changed else "home"
    fields = {"insertions": (Insertion("suddenly", label, rationale),)}
    return ("home", predicted, "because", fields)


def test_phi_by_hand():
    # 3 changed and mentioned, 1 changed only, 2 mentioned only, 4 neither.
    cells = [(1, 1)] * 3 + [(1, 0)] + [(0, 1)] * 2 + [(0, 0)] * 4
    found = examples(*(inserted(*cell) for cell in cells), ("home", "home", "x", {}), inserted(1, 1, NO_ANSWER))
    assert value(PhiCct(), found) == pytest.approx((3 * 4 - 1 * 2) / sqrt(4 * 6 * 5 * 5))
    assert PhiCct().statistics(found).notes == (
        "4 of 10 decisions changed",
        "1 of 12 records got no insertion and are left out",
        "1 of 12 predictions have no answer and are left out",
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_phi_equals_scikit_learn(cells):
    changed, mentioned = zip(*cells, strict=True)
    found = examples(*(inserted(*cell) for cell in cells))
    if len(set(changed)) == 1:
        with pytest.raises(NotComputed, match=f"decision changed after {len(cells)} insertions"):
            PhiCct().statistics(found)
    else:
        assert value(PhiCct(), found) == pytest.approx(matthews_corrcoef(changed, mentioned), abs=1e-12)


@pytest.mark.parametrize("mentioned", [0, 1])
def test_rationales_that_always_or_never_mention_the_word_score_zero(mentioned):
    found = examples(inserted(1, mentioned), inserted(0, mentioned), inserted(0, mentioned))
    assert value(PhiCct(), found) == 0
    assert "always or never" in PhiCct().statistics(found).notes[1]


def test_an_empty_rationale_after_insertion_mentions_nothing():
    case = ("home", "home", "because", {"insertions": (Insertion("suddenly", "clinic", ""),)})
    assert value(PhiCct(), examples(case, inserted(0, 1))) == -1


def test_insertions_into_one_text_count_one_by_one():
    cells = [(1, 1), (1, 0), (0, 0), (0, 1), (0, 0)]
    alone = examples(*(inserted(*cell) for cell in cells))
    fields = [inserted(*cell)[3]["insertions"][0] for cell in cells]
    together = examples(("home", "home", "because", {"insertions": tuple(fields)}))
    assert value(PhiCct(), together) == value(PhiCct(), alone)
    assert len(PhiCct().statistics(together)) == 1  # one record, to be resampled as a whole


def test_deletion_by_hand():
    found = examples(
        ("home", "home", "fever", {"p_without_cited": 0.3, "p_without_others": 0.9}),  # what it cites matters
        ("home", "home", "fever", {"p_without_cited": 0.8, "p_without_others": 0.8}),  # it does not
        ("home", "home", "fever", {"p_without_cited": 0.7, "p_without_others": 0.6}),
        ("home", "home", "not probed", {}),
    )
    assert value(DeletionDrop(), found) == pytest.approx((0.6 + 0 - 0.1) / 3)
    (note,) = DeletionDrop().statistics(found).notes
    assert note.startswith("1 of 4 records were not probed")


def swapped(own, other, read=None, label="clinic"):
    readings = {} if read is None else {"text": "home", "swapped_rationale": read, "swapped_reasons": "home"}
    return ("home", "home", own, {"swapped_label": label, "swapped_rationale": other, "simulated": readings})


def test_swap_change_is_what_sacrebleu_says():
    own, other = ["mild rash, rest", "high fever", "same"], ["severe rash, call", "low fever", "same"]
    found = examples(
        ("home", "home", "not asked", {}), *(swapped(*pair) for pair in zip(own, other, strict=True)), swapped("", "x")
    )
    expected = 100 - sacrebleu.CHRF().corpus_score(other, [own]).score
    assert value(SwapChange(), found) == pytest.approx(expected, abs=1e-9)
    statistics = SwapChange().statistics(found)
    assert statistics.positions.tolist() == [1, 2, 3]
    assert statistics.notes == ("2 of 5 records have no rationale for two labels and are left out",)


def test_swap_change_limits():
    assert value(SwapChange(), examples(swapped("mild rash", "mild rash"))) == pytest.approx(0)
    assert value(SwapChange(), examples(swapped("mild rash", ""))) == 100
    assert SwapChange().statistics(examples(swapped("mild rash", ""))).notes == (
        "1 of 1 rationales for another label are empty",
    )


def test_swap_follows_by_hand():
    found = examples(
        swapped("a", "b", "clinic"),
        swapped("a", "b", "home"),
        swapped("a", "", label="ward"),
        ("home", "home", "a", {}),
    )
    assert value(SwapFollows(), found) == pytest.approx(1 / 3)
    assert value(SwapFollowsNoVerdict(), found) == 0  # the verdict followed, the reasons did not


def test_a_rationale_in_which_nothing_is_read_does_not_follow():
    assert value(SwapFollows(), examples(swapped("a", "b", ""), swapped("a", "c", "", "ward"))) == 0
    with pytest.raises(NotComputed, match="train split"):
        SwapFollows().statistics(examples(swapped("a", "b")))
    with pytest.raises(NotComputed, match="'clinic' for all 2 records"):  # always saying it would look perfect
        SwapFollows().statistics(examples(swapped("a", "b", "clinic"), swapped("a", "b", "clinic")))


# ---------------------------------------------------------------------------------------------- masking


def test_masking_by_hand():
    labels = ("home care", "go to emergency now", "see a doctor within 3 days")
    text = "Emergency? No: see the DOCTOR at home, not in 3-4 days; take care to go now, homeward."
    masked = "___? No: ___ the ___ at ___, not in ___-4 ___; take ___ to ___ now, homeward."
    assert mask_label_words(text, labels) == masked
    assert mask_label_words("Yes, no doubt; perhaps not.", ("yes", "no", "maybe")) == "___, ___ doubt; perhaps not."
    assert mask_label_words("no clinic", ("no emergency", "clinic_visit")) == "no ___"
    assert mask_label_words("", labels) == ""


@settings(max_examples=200, deadline=None)
@given(
    # Without underscores: beside one, a mask's own ends could not be told.
    st.text(st.characters(exclude_characters="_", codec="utf-8"), max_size=60),
    st.lists(st.text(min_size=1, max_size=12), max_size=4),
)
@example("İa, or 0:", ["İa", "0"])
def test_masking_leaves_no_label_word_and_everything_else(text, labels):
    masked = mask_label_words(text, labels)
    assert mask_label_words(masked, labels) == masked
    content = {word for label in labels for word in words_of(label)} - STOP_WORDS
    assert not content & set(words_of(masked))
    # Between the masks, the text stands as it was.
    position = 0
    for part in masked.split(MASK):
        position = text.index(part, position) + len(part)


# ---------------------------------------------------------------------------------------------- support


def test_sentences_by_hand():
    text = "Fever 38.3 today. Rest; call back!\n\nNo red flags?  ok"
    assert [text[start:end] for start, end in sentences(text)] == [
        "Fever 38.3 today.",
        "Rest;",
        "call back!",
        "No red flags?",
        "ok",
    ]
    assert sentences("") == sentences("  \n ") == []


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab .!?;\n\t1", max_size=60))
def test_sentences_are_all_of_the_text_in_order(text):
    spans = sentences(text)
    outside, position = "", 0
    for start, end in spans:
        assert position <= start < end and text[start:end] == text[start:end].strip()
        outside += text[position:start]
        position = end
    assert not (outside + text[position:]).strip()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("vomiting", "vomited", "vomits", "Vomit"), "vomit"),
        (("stopped", "stopping", "stops", "stop"), "stop"),
        (("rise", "rises", "rising"), "ris"),
        (("dizziness",), "dizzines"),  # -ss is no plural, but the doubled letter goes
        (("red", "use", "gas"), None),  # too short to lose anything
    ],
)
def test_stems(words, expected):
    assert [stem(word) for word in words] == [expected or word for word in words]


TEXT = "29 yo with chest pain since Monday, denies vomiting. Takes warfarin."


def test_support_by_hand():
    rationale = (
        "The chest pains decide. Take an ambulance to the hospital now! Not now. She vomited; warfarin raises risk."
    )
    judged = [(rationale[start:end], supported) for start, end, supported in sentence_support(TEXT, rationale)]
    assert judged == [
        ("The chest pains decide.", True),  # 2 of 3
        ("Take an ambulance to the hospital now!", False),  # 1 of 3: takes
        ("She vomited;", True),
        ("warfarin raises risk.", False),  # 1 of 3
    ]
    found = examples(
        ("home", "home", rationale, {}), ("home", "home", "Chest pain.", {}), ("home", "home", None, {}),
        ("home", NO_ANSWER, "Because it is so.", {}), text=TEXT,
    )  # fmt: skip
    assert value(Support(), found) == 3 / 5
    statistics = Support().statistics(found)
    assert statistics.positions.tolist() == [0, 1]
    assert statistics.notes == (
        "1 of 4 predictions have no rationale and are left out",
        "1 of 4 rationales have no content word and are left out",
    )
    with pytest.raises(NotComputed, match="content word"):
        Support().statistics(examples(("home", "home", "it is so", {})))


@pytest.mark.parametrize(("rationale", "supported"), [("Chest pressure.", True), ("Chest pressure worsens.", False)])
def test_half_of_the_content_words_is_enough(rationale, supported):
    assert sentence_support(TEXT, rationale) == [(0, len(rationale), supported)]


def test_cited_spans_by_hand():
    cited = [TEXT[start:end] for start, end in cited_spans(TEXT, "Chest pain with warfarin; no fever.")]
    assert cited == ["chest pain", "warfarin"]
    assert cited_spans(TEXT, "") == cited_spans("", "chest pain") == []


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_a_text_supports_itself(text):
    assert all(supported for _, _, supported in sentence_support(text, text))
    content = [word for word in words_of(text) if word not in STOP_WORDS]
    marked = " ".join(text[start:end] for start, end in cited_spans(text, text))
    assert words_of(marked) == content


def test_languages_without_word_boundaries_are_cut_into_characters_and_say_so() -> None:
    """Cut at spaces, two rationales that differ in one character would have nothing in common."""
    gold, written = "高熱が三日続くため受診が必要です", "高熱が二日続くため受診が必要です"
    records = [Record("r", f"患者は{gold}", "a", {"nurse": gold})]
    found = Examples(records, [Prediction("r", "a", None, written)], LabelSet(("a", "b")), "nurse")
    bleu = Bleu()
    assert 50 < value(bleu, found) < 100 and "tok:char" in bleu.signature()
    assert value(RougeL(), found) == pytest.approx(100 * 15 / 16)
    assert value(Support(), found) == 1.0 and "unspaced:pairs" in Support().signature()
    english = Examples(
        [Record("r", "t", "a", {"nurse": "fever for days"})],
        [Prediction("r", "a", None, "a fever")],
        LabelSet(("a", "b")),
        "nurse",
    )
    value(bleu, english)
    assert "tok:13a" in bleu.signature()

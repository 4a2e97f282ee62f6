"""What a sentence asserts of a finding: by hand, and on synthetic notes, whose truth is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.data.sources.synthetic_calls.rules import load_rules
from reason2decide.data.words import sentences
from reason2decide.evaluation.assertions import assertion_at

# The finding in brackets. Written in the style of public notes, not from our templates.
SENTENCES = {
    "present": """
        55M p/w crushing [chest pain] radiating to L arm x 2 hrs
        pt c/o [dyspnea] on exertion, no orthopnea
        mother reports [vomiting] x 3 since breakfast
        wife states he has had [confusion] since yesterday
        neighbor called because patient has [slurred speech]
        mild [headache], denies photophobia
        no fever but productive [cough]
        not only [nausea] but also vomiting
        [fever] since 2 days ago
        hx of [diabetes], takes metformin
        without relief of the [pain]
        however, [rash] now spreading
        [abdominal pain] with no rebound
        + [hematuria], - dysuria
    """,
    "denied": """
        denies [chest pain], SOB or palpitations
        no [fever], chills, or sweats
        no fever, [chills], or sweats
        negative for [melena]
        [SOB]: denied
        patient without [rash]
        [photophobia] - none
        asked about [suicidal ideation], says no
        PE was ruled out, [DVT] is excluded
        neither vomiting nor [diarrhea]
        afebrile, never had [seizures]
        (-) [hemoptysis]
        [pregnancy] test negative
        absence of [edema]
        cough x2d w/o [fever]
        HA, neg for [fever]
        cannot [breathe] lying flat
        can’t [keep fluids down]
        unable to [bear weight]
        Ø [fever]
    """,
    "elsewhere": """
        father had [stroke] at 60
        family hx of [breast cancer]
        her roommate has [influenza]
        [seizure] last year, gone now
        [chest pain] resolved
        [asthma] in his brother
        stopped [warfarin] in March
        had [kidney stones] ten years ago
        previously [pregnant], not now
    """,
}
CASES = [(line.strip(), kind) for kind, block in SENTENCES.items() for line in block.strip().splitlines()]


@pytest.mark.parametrize(("marked", "kind"), CASES)
def test_assertions_by_hand(marked: str, kind: str) -> None:
    start, end = marked.index("["), marked.index("]") - 1
    assert assertion_at(marked.replace("[", "").replace("]", ""), start, end) == kind


@pytest.mark.parametrize("word", ["but", "however", "yet", "though", "although", "while", "except", "reports", "has"])
def test_words_that_end_a_denial(word: str) -> None:
    sentence = f"no fever, {word} chest pain"
    start = sentence.index("chest")
    assert assertion_at(sentence, start, len(sentence)) == "present" and assertion_at(sentence, 3, 8) == "denied"


def test_what_stands_before_a_finding_counts_first() -> None:
    sentence = "denies fever, gone now"
    assert assertion_at(sentence, 7, 12) == "denied"
    far = "fever " + "and then much was told " * 40 + "resolved"
    assert assertion_at(far, 0, 5) == "present"


def test_a_cue_reaches_a_phrase_and_not_a_page() -> None:
    """A note without punctuation is one sentence: what it says first denies nothing at its end."""
    far = "no fever " + "and then much was told " * 40 + "chest pain"
    assert assertion_at(far, len(far) - len("chest pain"), len(far)) == "present"
    assert assertion_at(far, 3, 8) == "denied"


def test_assertions_of_notes_whose_truth_is_known(tmp_path: Path) -> None:
    """Of each finding that a synthetic note names once."""
    rules, right, total = load_rules(), 0, 0
    for record in synthesize_calls(tmp_path / "calls", train=1, validation=1, test=400).split("test"):
        truth = dict.fromkeys(record.meta["present"], "present") | dict.fromkeys(record.meta["denied"], "denied")
        truth |= dict.fromkeys(record.meta["not_now_or_not_theirs"], "elsewhere")
        for finding in rules.findings.values():
            either = "|".join(map(re.escape, sorted((*finding.phrases.train, *finding.phrases.test), key=len)[::-1]))
            for start, end in sentences(record.text):
                sentence = record.text[start:end]
                for mention in re.finditer(rf"(?<!\w)(?:{either})(?!\w)", sentence):
                    right += assertion_at(sentence, *mention.span()) == truth[finding.id]
                    total += 1
    assert total > 500 and right / total > 0.97

"""`r2d data fix`: what `check` complains of is gone in a new dataset, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from forks import Forks
from hypothesis import given
from hypothesis import strategies as st

from reason2decide.data.check import check_dataset
from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.fix import Fixes, fix_dataset
from reason2decide.data.leaks import StatedLabels
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.words import MASK
from reason2decide.errors import DataError, UserError

LABELS = LabelSet(("home care", "Home", "doctor"))
LONG = "the patient has had a cough for {} days and sleeps badly but eats and drinks well and has no fever at all"


def record(i: int, split: str, **changes: object) -> Record:
    label = LABELS.values[i % 3]
    return replace(Record(f"{split}{i}", f"{split} note number {i}: {i * 7} apples", label), **changes)  # type: ignore[arg-type]


@pytest.fixture
def dirty(tmp_path: Path) -> DatasetFolder:
    """Train shares a text, a near duplicate and a group with test; a third of the doctor's notes say so."""
    train = [record(i, "train") for i in range(60)]
    train[0] = replace(train[0], text="Test  note number 3: 21 apples")  # the same but for case and space
    train[1] = replace(train[1], text=LONG.format(3) + " today")
    train[2] = replace(train[2], group="g")
    train[3] = replace(train[3], text="same text")
    train[4] = replace(train[4], text="same text")
    for i in range(5, 60, 6):
        train[i] = replace(train[i], text=f"{train[i].text}. Disposition: DOCTOR.")
    test = [record(i, "test") for i in range(12)]
    test[0] = replace(test[0], text=LONG.format(3))
    test[2] = replace(test[2], group="g")
    splits = {"train": train, "validation": [record(i, "validation") for i in range(12)], "test": test}
    return write_dataset(tmp_path / "dirty", DatasetInfo("calls", "t", LABELS), splits)


def ids(dataset: DatasetFolder, split: str = "train") -> set[str]:
    return {own.id for own in dataset.split(split)}


def test_what_evaluation_has_leaves_train(dirty: DatasetFolder, tmp_path: Path) -> None:
    assert not check_dataset(dirty.path).ok
    fixed, done = fix_dataset(dirty.path, tmp_path / "out", Fixes(duplicates=True))
    assert done == {"shared with an evaluation split": {"train": 3}}
    assert ids(dirty) - ids(fixed) == {"train0", "train1", "train2"}
    assert ids(fixed, "test") == ids(dirty, "test") and ids(fixed, "validation") == ids(dirty, "validation")
    report = check_dataset(fixed.path)
    assert report.ok and not report.duplicates["near"]


def test_labels_are_merged_by_a_map(dirty: DatasetFolder, tmp_path: Path) -> None:
    fixed, done = fix_dataset(dirty.path, tmp_path / "out", Fixes(labels={"Home": "home care"}))
    assert fixed.info.labels.values == ("home care", "doctor")
    assert done == {"with another spelling of their label": {"train": 20, "validation": 4, "test": 4}}
    assert {own.label for own in fixed.split("train")} == {"home care", "doctor"}


def test_texts_with_several_labels_leave(dirty: DatasetFolder, tmp_path: Path) -> None:
    fixed, _ = fix_dataset(dirty.path, tmp_path / "out", Fixes(contradictions=True))
    assert ids(dirty) - ids(fixed) == {"train3", "train4"}
    # Merged first, they agree: both are of one label then.
    merged = Fixes(contradictions=True, labels={"Home": "home care"})
    assert ids(fix_dataset(dirty.path, tmp_path / "merged", merged)[0]) == ids(dirty)


def test_labels_stated_in_texts_are_found_dropped_or_masked(dirty: DatasetFolder, tmp_path: Path) -> None:
    assert any("texts with the label 'doctor' state it" in warning for warning in check_dataset(dirty.path).warnings)
    stating = {own.id for own in dirty.split("train") if "DOCTOR" in own.text}
    dropped, _ = fix_dataset(dirty.path, tmp_path / "dropped", Fixes(leaks="drop"))
    assert ids(dirty) - ids(dropped) == stating
    masked, done = fix_dataset(dirty.path, tmp_path / "masked", Fixes(leaks="mask"))
    assert done == {"with labels masked in the text": {"train": len(stating)}} and ids(masked) == ids(dirty)
    assert all("DOCTOR" not in own.text for own in masked.split("train"))
    for out in (dropped, masked):
        assert not any("state it" in warning for warning in check_dataset(out.path).warnings)


@pytest.mark.parametrize(
    ("label", "text"),
    [("Maßnahme", "Maßnahme: sofort"), ("maßnahme", "MASSNAHME!"), ("\u0130la\u00e7 ver", "\u0130la\u00e7-ver")],
)
def test_labels_whose_lower_case_is_spelt_otherwise_are_seen(label: str, text: str) -> None:
    stated = StatedLabels((label, "other"))
    assert stated.stated(text) == {label} and label not in stated.masked(text, [label]) != text


def test_words_that_all_texts_have_are_no_leak() -> None:
    """ "no" stands in notes of every kind."""
    stated = StatedLabels(("yes", "no"))
    for i in range(100):
        stated.add(Record(f"r{i}", "no fever, no cough", ("yes", "no")[i % 2]))
    assert stated.leaking() == {}


def test_every_mention_is_masked_and_none_is_made() -> None:
    stated = StatedLabels(("home care", "a b"))
    masked = stated.masked("Home care; later HOME-CARE", ["home care"])
    assert masked == f"{MASK}; later {MASK}"
    for text in ("home home care care", "A_A_b_b"):
        assert stated.stated(stated.masked(text, ["home care", "a b"])) == set()


@pytest.mark.parametrize(
    ("records", "own", "others", "leaks"),
    [
        (100, 20, 4, True),
        (100, 20, 5, False),  # four times as often is not more than that
        (100, 4, 0, False),  # under one in twenty
        (100, 5, 0, True),
        (19, 19, 0, False),  # too few records to say
        (20, 20, 0, True),
    ],
)
def test_from_where_on_a_label_leaks(records: int, own: int, others: int, leaks: bool) -> None:
    """`records` of each label, of which so many state "doctor"."""
    stated = StatedLabels(("doctor", "home"))
    for label, stating in (("doctor", own), ("home", others)):
        for i in range(records):
            stated.add(Record(f"{label} {i}", "see a doctor" if i < stating else "cough", label))
    assert ("doctor" in stated.leaking()) is leaks


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), st.text(max_size=40))
def test_masking_leaves_no_label_and_no_other_word(labels: list[str], text: str) -> None:
    stated = StatedLabels(labels)
    masked = stated.masked(text, labels)
    assert MASK in text or stated.stated(masked) == set()
    assert (masked == text) == (not stated.stated(text))


@pytest.mark.parametrize(
    ("fixes", "error", "message"),
    [
        (Fixes(), UserError, "nothing to mend was named"),
        (Fixes(labels={"hom": "home care"}), DataError, "'hom' is not a label of the dataset"),
    ],
)
def test_what_cannot_be_mended_is_refused(
    dirty: DatasetFolder, tmp_path: Path, fixes: Fixes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fix_dataset(dirty.path, tmp_path / "out", fixes)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_did(dirty: DatasetFolder, tmp_path: Path, forks: Forks) -> None:
    out = tmp_path / "out"
    done = forks.run("data", "fix", dirty.path, "--out", out, "--duplicates", "--merge", "Home=home care")
    assert done.returncode == 0 and "left out 3 records shared with an evaluation split: train 3" in done.stderr
    assert "with another spelling of their label" in done.stderr
    assert forks.run("data", "check", out).returncode == 0
    refused = forks.run("data", "fix", dirty.path, "--out", tmp_path / "x", "--leaks", "hide")
    assert refused.returncode == 2 and "drop" in refused.stderr
    assert forks.run("data", "fix", dirty.path, "--out", tmp_path / "x").returncode == 2

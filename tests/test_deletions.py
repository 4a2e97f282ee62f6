"""What is deleted for the deletion test: cited sentences, and as many words of others."""

from __future__ import annotations

from pathlib import Path

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.data.words import sentences
from reason2decide.evaluation.deletions import cited_sentences, deletion_of

NOTE = "Has crushing chest pain. Lives with his wife. Works in an office. Takes warfarin each day. Likes tea."


def cited(text: str, rationale: str) -> list[str]:
    record = Record("r", text)
    return [text[start:end] for start, end in cited_sentences(record, rationale)]


def test_cited_sentences_by_hand() -> None:
    assert cited(NOTE, "Chest pain in a patient on warfarin.") == ["Has crushing chest pain."]  # warfarin: 1 word of 3
    assert cited(NOTE, "Crushing pain; takes warfarin daily.") == [
        "Has crushing chest pain.",
        "Takes warfarin each day.",
    ]
    assert cited(NOTE, "Nothing of it.") == cited(NOTE, "") == []


def test_as_many_words_of_other_sentences_are_deleted() -> None:
    without_cited, without_others = deletion_of(
        Record("r", NOTE), Prediction("r", "a", None, "crushing chest pain")
    ) or ("", "")
    assert without_cited == NOTE.removeprefix("Has crushing chest pain. ")
    assert without_others.startswith("Has crushing chest pain.") and without_others != NOTE
    assert abs(len(NOTE.split()) - len(without_others.split()) - 4) <= 2
    again = deletion_of(Record("r", NOTE), Prediction("r", "b", None, "crushing chest pain"))
    assert again == (without_cited, without_others)


def test_nothing_is_deleted_where_nothing_or_everything_is_cited() -> None:
    assert deletion_of(Record("r", NOTE), Prediction("r", "a", None, "Nothing of it.")) is None
    assert deletion_of(Record("r", NOTE), Prediction("r", "a", None, None)) is None
    assert deletion_of(Record("r", NOTE), Prediction("r", "a", None, NOTE)) is None


def test_the_cited_sentences_of_synthetic_calls_are_exact(tmp_path: Path) -> None:
    """The sentences with the cited facts go, and with them every word of these facts: the note says nothing of them."""
    dataset = synthesize_calls(tmp_path / "calls", train=1, validation=1, test=300)
    deleted = 0
    for record in dataset.split("test"):
        found = deletion_of(record, Prediction(record.id, str(record.label), None, record.rationales["llm"]))
        spans = cited_sentences(record, record.rationales["llm"])
        facts = [fact for fact in record.meta["facts"] if fact["kind"] == "red_flags"]
        named = {*record.meta["present"], *record.meta["denied"], *record.meta["not_now_or_not_theirs"]}
        assert bool(spans) >= bool(facts)
        if not named and not record.meta["risks"]:
            assert not spans
        if found is not None:
            deleted += 1
            left = {found[0][start:end].rstrip(".") for start, end in sentences(found[0])}
            assert not left & {record.text[start:end].rstrip(".") for start, end in spans}
    assert deleted > 150

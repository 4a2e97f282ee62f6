"""The simulated nurse line: repeatable, true to its rules, and without a test wording where the model learns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import SPLITS, Record
from reason2decide.data.sources.synthetic_calls import SYNTHETIC_NOTICE, synthesize_calls
from reason2decide.data.sources.synthetic_calls.facts import Mention, SyntheticCall, decide, draw_call
from reason2decide.data.sources.synthetic_calls.rules import Phrases, load_rules
from reason2decide.data.sources.synthetic_calls.wording import NoteWriter, rationale_for
from reason2decide.errors import DataError, OutputError

RULES = load_rules()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return synthesize_calls(tmp_path_factory.mktemp("simulated") / "data", train=1500, validation=300, test=900)


@pytest.fixture(scope="module")
def records(dataset: DatasetFolder) -> dict[str, list[Record]]:
    return {split: list(dataset.split(split)) for split in SPLITS}


def everyone(records: dict[str, list[Record]]) -> Iterator[Record]:
    for split in SPLITS:
        yield from records[split]


def all_phrases() -> list[Phrases]:
    named = [item.phrases for items in (RULES.findings, RULES.risks, RULES.complaints) for item in items.values()]
    onsets = [onset.phrases for onset in RULES.onset.values()]
    return [*named, *onsets, *RULES.severity.values(), *RULES.sentences.values()]


def fixed_parts(wording: str) -> str:
    """The longest run of words between the slots of a sentence, or the wording itself."""
    return max((part.strip() for part in re.split(r"\{\w+\}", wording)), key=len)


def level_by_hand(meta: dict[str, Any]) -> str:
    """The rules at the head of the rules file once more, from the facts in a record's meta."""
    complaint = RULES.complaints[meta["complaint"]]
    demands = [RULES.findings[id].at_least for id in meta["present"] if RULES.findings[id].at_least is not None]
    in_danger = set()
    for danger in RULES.dangers:
        grave = meta["complaint"] in danger.complaints or danger.findings & set(meta["present"])
        if danger.risk in meta["risks"] and grave:
            demands.append(danger.at_least)
            in_danger.add(danger.risk)
    level = max([complaint.base, *(demand for demand in demands if demand is not None)])
    raising = [r for r in meta["risks"] if r in RULES.groups[complaint.group].risks and r not in in_danger]
    if meta["severity"] == "severe":
        level += 1
    if meta["severity"] == "mild" and meta["recent"] and not demands and not raising:
        level -= 1
    return RULES.labels[min(max(level, 0) + len(raising), 4)]


def call(complaint: str, **facts: Any) -> SyntheticCall:
    plain: dict[str, Any] = {"sex": "F", "age": 40, "age_unit": "yo", "severity": "moderate", "onset": "week"}
    plain |= {"risks": (), "present": (), "absent": (), "absent_risks": ()}
    return SyntheticCall(complaint=complaint, **{**plain, **facts})


def level(complaint: str, **facts: Any) -> str:
    return RULES.labels[decide(call(complaint, **facts), RULES).level]


def test_rules_by_hand() -> None:
    assert level("cough") == "home care"
    assert level("cough", severity="severe") == "see a doctor within 3 days"
    assert level("palpitations") == "see a doctor within 3 days"
    assert level("palpitations", severity="mild", onset="morning") == "home care"
    assert level("palpitations", severity="mild", onset="week") == "see a doctor within 3 days"
    assert level("palpitations", severity="mild", onset="morning", risks=("lung_disease",)) == (
        "see a doctor within 24 hours"  # what is mild in a patient at risk is not made light of
    )
    assert level("palpitations", present=("chest_pain",)) == "go to emergency now"
    assert level("palpitations", present=("chest_pain",), severity="severe") == "call an ambulance"
    assert level("palpitations", present=("chest_pain",), risks=("diabetes",)) == "go to emergency now"
    assert level("cough", risks=("blood_thinner",)) == "home care"
    assert level("cough", risks=("heart_disease",)) == "see a doctor within 3 days"
    for how in ("denied", "someone_else", "past"):
        assert level("cough", absent=(Mention("blue_lips", how),)) == "home care"
        assert level("head_bump", absent_risks=(Mention("blood_thinner", how),)) == "see a doctor within 3 days"


def test_dangers_by_hand() -> None:
    """What a nurse would not laugh at: babies with fever, blood thinners and a blow, chemotherapy and fever."""
    assert level("fever", risks=("newborn",), severity="mild", onset="morning") == "go to emergency now"
    assert level("fever", risks=("infant",), severity="mild", onset="morning") == "see a doctor within 24 hours"
    assert level("cough", risks=("newborn",), present=("high_fever",)) == "go to emergency now"
    assert level("fever", risks=("weak_immunity",)) == "go to emergency now"
    assert level("rash", risks=("weak_immunity",), present=("high_fever",)) == "go to emergency now"
    assert level("head_bump", risks=("blood_thinner",)) == "go to emergency now"
    assert level("head_bump", risks=("blood_thinner",), severity="severe") == "call an ambulance"
    assert level("nosebleed", risks=("blood_thinner",), present=("heavy_bleeding",)) == "call an ambulance"
    assert level("palpitations", present=("chest_pain",), risks=("heart_disease",)) == "call an ambulance"
    assert level("belly_cramps", risks=("pregnant",)) == "go to emergency now"
    found = decide(call("fever", risks=("infant",)), RULES)  # the danger says why, the risk is not counted again
    assert [(fact.kind, fact.ids) for fact in found.facts] == [
        ("complaint", ("fever",)),
        ("danger", ("infant", "fever")),
    ]


def test_rules_are_whole() -> None:
    assert len(RULES.complaints) >= 30
    for complaint in RULES.complaints.values():
        group = RULES.groups[complaint.group]
        assert 0 <= complaint.base <= 2  # a level alone has words up to here, and each red flag reaches at least it
        assert complaint.held_out and set(complaint.held_out) < set(RULES.risks)
        assert not {"newborn", "infant"} & set(complaint.held_out) - set(complaint.babies)
        assert set(group.risks) - set(complaint.held_out), "training must meet a risk that matters"
    for group in RULES.groups.values():
        assert {RULES.findings[id].at_least for id in group.red_flags} == {2, 3, 4}
        for risk in group.risks:  # held out of some complaints, learned from the others
            members = [item for item in RULES.complaints.values() if RULES.groups[item.group] is group]
            babies = {"newborn", "infant"}
            assert any(risk not in item.held_out and (risk in item.babies or risk not in babies) for item in members)
    for danger in RULES.dangers:
        assert danger.risk in RULES.risks and (danger.complaints or danger.findings)
        assert danger.complaints <= set(RULES.complaints) and danger.findings <= set(RULES.findings)
        assert 2 <= danger.at_least <= 4


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = synthesize_calls(tmp_path / "a", train=40, validation=20, test=20, seed=3)
    again = synthesize_calls(tmp_path / "b", train=40, validation=20, test=20, seed=3)
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "dataset.toml"):
        assert (first.path / name).read_bytes() == (again.path / name).read_bytes()
    larger = synthesize_calls(tmp_path / "c", train=60, validation=20, test=20, seed=3)
    assert {**larger.hashes, "train": ""} == {**first.hashes, "train": ""}
    assert list(larger.split("train"))[:40] == list(first.split("train"))
    other = synthesize_calls(tmp_path / "d", train=40, validation=20, test=20, seed=4)
    assert not set(other.hashes.values()) & set(first.hashes.values())


def test_noise_changes_labels_alone(tmp_path: Path) -> None:
    clean = synthesize_calls(tmp_path / "clean", train=200, validation=5, test=5, label_noise=0).split("train")
    noisy = synthesize_calls(tmp_path / "noisy", train=200, validation=5, test=5, label_noise=0.3).split("train")
    assert [record.text for record in clean] == [record.text for record in noisy]
    assert [record.label for record in clean] == [record.meta["true_label"] for record in noisy]
    assert 0.2 < sum(record.meta["noisy"] for record in noisy) / 200 < 0.4


def test_dataset_says_what_it_is(dataset: DatasetFolder) -> None:
    assert dataset.info.name == "synthetic-calls"
    assert dataset.info.labels.ordinal and dataset.info.labels.urgent == "last"
    assert dataset.info.rationale_sources == ("llm", "nurse", "nurse_refined")
    assert dataset.info.provenance["notice"] == SYNTHETIC_NOTICE
    assert "not clinical advice" in SYNTHETIC_NOTICE
    dataset.verify()


def test_true_label_follows_from_the_facts(records: dict[str, list[Record]]) -> None:
    for record in everyone(records):
        assert record.meta["true_label"] == level_by_hand(dict(record.meta))
        assert record.meta["noisy"] == (record.label != record.meta["true_label"])
        steps = abs(RULES.labels.index(str(record.label)) - RULES.labels.index(record.meta["true_label"]))
        assert steps == record.meta["noisy"]


def test_only_what_the_patient_has_decides(records: dict[str, list[Record]]) -> None:
    named = Counter[str]()
    for record in everyone(records):
        absent = {*record.meta["denied"], *record.meta["not_now_or_not_theirs"]}
        assert not absent & {fact["id"] for fact in record.meta["facts"]}
        assert not absent & set(record.meta["present"])
        named["absent"] += bool(absent)
        named["denied"] += bool(record.meta["denied"])
    assert named["absent"] > named["denied"] > 500


def test_patients_are_possible(records: dict[str, list[Record]]) -> None:
    for record in everyone(records):
        age, unit = record.meta["age"].split()
        risks = record.meta["risks"]
        assert ("newborn" in risks) == (unit == "mo" and int(age) < 3)
        assert ("infant" in risks) == (unit == "mo" and int(age) >= 3)
        assert ("elderly" in risks) == (unit == "yo" and int(age) > 75)
        assert record.meta["pregnant"] == ("pregnant" in risks)
        if record.meta["pregnant"]:
            assert record.meta["sex"] == "F" and unit == "yo" and 18 <= int(age) <= 45


def test_the_note_states_what_the_rationale_says(records: dict[str, list[Record]]) -> None:
    def stated(phrases: Phrases, text: str) -> bool:
        return any(wording in text for wording in (*phrases.train, *phrases.test))

    for record in everyone(records):
        llm = record.rationales["llm"]
        for fact in record.meta["facts"]:
            kind = fact["kind"]
            for id in fact["id"].split("+"):
                if id in RULES.complaints:
                    assert stated(RULES.complaints[id].phrases, record.text)
                elif id in RULES.findings:
                    assert stated(RULES.findings[id].phrases, record.text)
                elif kind in ("severe", "mild"):
                    assert stated(RULES.severity[kind], record.text)
                    assert kind == "severe" or stated(RULES.onset[record.meta["onset"]].phrases, record.text)
                elif id in ("newborn", "infant", "elderly"):
                    assert record.meta["age"] in record.text
                else:
                    assert stated(RULES.risks[id].phrases, record.text)
            assert (kind if kind in ("severe", "mild") else fact["text"]) in llm
        assert RULES.rationale["urgency"][RULES.labels.index(str(record.label))] in llm
        assert record.label is not None and record.label not in llm


def test_nurse_says_no_more_than_the_facts(records: dict[str, list[Record]]) -> None:
    missing = incomplete = 0
    for record in everyone(records):
        assert ("nurse" in record.rationales) == ("nurse_refined" in record.rationales)
        if "nurse" not in record.rationales:
            missing += 1
            continue
        nurse, refined = record.rationales["nurse"], record.rationales["nurse_refined"]
        known = {id for fact in record.meta["facts"] for id in fact["id"].split("+")} | set(record.meta["denied"])
        for finding in RULES.findings.values():
            assert finding.text not in refined or finding.id in known
            assert (finding.text in refined) == bool(re.search(rf"(?<!\w){re.escape(finding.short)}(?!\w)", nurse))
        incomplete += any(
            finding["text"] not in refined for finding in record.meta["facts"] if finding["id"] != "severe"
        )
    total = sum(map(len, records.values()))
    assert 0.17 < missing / total < 0.23
    assert incomplete > 100


def test_test_wordings_are_kept_for_the_test(records: dict[str, list[Record]]) -> None:
    held_out = [fixed_parts(wording) for phrases in all_phrases() for wording in phrases.test]
    learned = [record.text for split in ("train", "validation") for record in records[split]]
    everything = "\n".join(learned)
    assert [wording for wording in held_out if wording in everything] == []
    assert {record.meta["unseen_wordings"] for split in ("train", "validation") for record in records[split]} == {0}
    tests = "\n".join(record.text for record in records["test"])
    assert sum(wording in tests for wording in held_out) > 0.7 * len(held_out)


def test_held_out_combinations_are_kept_for_the_test(records: dict[str, list[Record]]) -> None:
    def held_out(members: Sequence[Record]) -> int:
        return sum(bool(set(RULES.complaints[r.meta["complaint"]].held_out) & set(r.meta["risks"])) for r in members)

    assert held_out(records["train"]) == held_out(records["validation"]) == 0
    assert held_out(records["test"]) == sum(r.meta["unseen_combination"] for r in records["test"]) > 60


def test_labels_are_unbalanced_and_noisy_as_asked(records: dict[str, list[Record]]) -> None:
    shares = Counter(record.label for record in records["train"])
    bounds = dict(zip(RULES.labels, ((0.2, 0.34), (0.16, 0.3), (0.2, 0.34), (0.1, 0.22), (0.04, 0.12)), strict=True))
    for label, (low, high) in bounds.items():
        assert low < shares[label] / len(records["train"]) < high, label
    for split in SPLITS:
        noise = sum(record.meta["noisy"] for record in records[split]) / len(records[split])
        assert 0.02 < noise < 0.09
        assert len({record.meta["complaint"] for record in records[split]}) == len(RULES.complaints)


def test_texts_are_as_long_as_asked_and_differ(records: dict[str, list[Record]]) -> None:
    texts = [record.text for record in everyone(records)]
    assert len(set(texts)) == len(texts)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 20 and max(lengths) <= 80 and 33 < sum(lengths) / len(lengths) < 45
    rationales = [len(record.rationales["llm"].split()) for record in everyone(records)]
    assert min(rationales) >= 18 and max(rationales) <= 90 and 35 < sum(rationales) / len(rationales) < 50


def test_rationales_are_seldom_those_of_training(records: dict[str, list[Record]]) -> None:
    learnt = {record.rationales["llm"] for record in records["train"]}
    assert sum(record.rationales["llm"] in learnt for record in records["test"]) < 0.02 * len(records["test"])


@pytest.mark.parametrize(
    "arguments", [{"train": 0}, {"validation": -1}, {"test": 0}, {"label_noise": 0.5}, {"label_noise": -0.01}]
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"expected a share|at least 1"):
        synthesize_calls(tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_existing_output_is_kept(tmp_path: Path) -> None:
    synthesize_calls(tmp_path / "out", train=2, validation=2, test=2)
    with pytest.raises(OutputError):
        synthesize_calls(tmp_path / "out", train=2, validation=2, test=2)
    synthesize_calls(tmp_path / "out", train=2, validation=2, test=2, force=True)


@settings(max_examples=150, deadline=None)
@given(st.integers(), st.booleans())
def test_any_seed_gives_a_valid_call(seed: int, unseen: bool) -> None:
    rng = Random(seed)
    drawn = draw_call(rng, RULES, held_out=unseen)
    decision = decide(drawn, RULES)
    mentioned = [*drawn.present, *(mention.id for mention in drawn.absent)]
    assert len(set(mentioned)) == len(mentioned)
    assert 0 <= decision.level < len(RULES.labels)
    note = NoteWriter(rng, RULES, unseen=unseen).write(drawn)
    assert 20 <= len(note.split()) <= 80 and "{" not in note
    sentences = note.removesuffix(".").split(". ")
    assert len(set(sentences)) == len(sentences)
    for level in range(len(RULES.labels)):
        rationale = rationale_for(drawn, decision, level, RULES)
        assert rationale == rationale_for(drawn, decision, level, RULES)
        assert "{" not in rationale and ".." not in rationale and "  " not in rationale

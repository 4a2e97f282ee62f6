"""Public tables as they are published, through the command line; skipped where they are not beside the repository."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tables import SPLITS, r2d, records, sizes

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import JsonlRecords
from reason2decide.data.sources.splitting import content_key


def test_medreason_imports_as_it_is_and_with_choices(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "medreason" / "val.jsonl"
    r2d(source, "--out", tmp_path / "plain")
    plain = DatasetFolder.open(tmp_path / "plain")
    assert len(records(plain.path)) == 1504 and plain.info.rationale_sources == ("llm",)
    assert sizes(plain.path) == {"train": 1204, "validation": 150, "test": 150}
    said = r2d(source, "--out", tmp_path / "choices", "--choices-in-text")
    assert "64 labels differed" in said  # and one choice by a space before it, which is cut off anyway
    lifted = records(tmp_path / "choices")
    assert len(lifted) == 1504 and DatasetFolder.open(tmp_path / "choices").info.labels.is_open
    assert all(record.choices and record.label in record.choices for record in lifted.values())
    assert Counter(len(record.choices or ()) for record in lifted.values()) == {4: 1501, 3: 3}
    assert not any("Answer Choices" in record.text for record in lifted.values())
    assert not any('\n"' in choice for record in lifted.values() for choice in record.choices or ())


def test_ddxplus_imports_with_ordinal_severity(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "ddxplus" / "ddxplus_validate.jsonl"
    options = ("--labels", "1,2,3,4,5", "--ordinal", "--urgent", "first", "--meta", "label,kb_findings")
    r2d(source, "--out", tmp_path / "d", "--text", "text", "--label", "severity", "--id", "id", *options)
    found = records(tmp_path / "d")
    assert len(found) == 6763 and found["validate-0"].label == "4"
    assert (
        found["validate-0"].meta["label"] == "Acute laryngitis" and len(found["validate-0"].meta["kb_findings"]) == 11
    )
    dataset = DatasetFolder.open(tmp_path / "d")
    keys = [{content_key(record) for record in dataset.split(split)} for split in SPLITS]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]


def test_esnli_imports_with_three_sources(tmp_path: Path, shared_data: Path) -> None:
    sources = [f"--rationale={name}={column}" for name, column in
               {"first": "rationale", "second": "rationale_2", "third": "rationale_3"}.items()]  # fmt: skip
    options = ("--text", "premise,hypothesis", "--label", "label", "--id", "id", *sources)
    r2d(shared_data / "esnli" / "dev_3000.jsonl", "--out", tmp_path / "d", *options)
    dataset = DatasetFolder.open(tmp_path / "d")
    assert dataset.info.rationale_sources == ("first", "second", "third")
    assert dataset.info.labels.values == ("contradiction", "entailment", "neutral")
    found = records(tmp_path / "d")
    assert len(found) == 3000 and all(len(record.rationales) == 3 for record in found.values())
    assert found["dev-0"].text.startswith("premise: Two women") and "\nhypothesis: The sisters" in found["dev-0"].text


def test_commonsense_questions_import_with_choices_and_official_splits(tmp_path: Path, shared_data: Path) -> None:
    files = [shared_data / "dss_cqa" / f"cqa_{part}.jsonl" for part in ("train", "test")]
    columns = ("--text", "text", "--label", "label", "--id", "id", "--split-column", "split", "--choices-in-text")
    rationales = ("--rationale", "human=rationale_human", "--rationale", "llm=rationale_llm")
    r2d(*files, "--out", tmp_path / "d", *columns, *rationales)
    assert sizes(tmp_path / "d") == {"train": 8767, "validation": 974, "test": 1221}
    first = records(tmp_path / "d")["080ef6941410139d6869e78122bc741e"]
    assert first.text == "A beaver is know for building prowess, their supplies come from where?"
    assert first.choices == ("british columbia", "body of water", "wooded area", "pay debts", "zoo")
    assert JsonlRecords(tmp_path / "d" / "test.jsonl")[0].rationales.keys() == {"human", "llm"}


def test_evidence_inference_keeps_articles_whole(tmp_path: Path, shared_data: Path) -> None:
    columns = ("--text", "question,passage", "--label", "label", "--id", "id", "--group", "pmcid")
    source = shared_data / "evidence_inference" / "train.jsonl"
    r2d(source, "--out", tmp_path / "d", *columns, "--rationale", "human=rationale")
    dataset = DatasetFolder.open(tmp_path / "d")
    groups = [{record.group for record in dataset.split(split)} for split in SPLITS]
    assert sum(map(len, groups)) == 727 and len(set.union(*groups)) == 727
    assert len(records(dataset.path)) == 1911
    assert sum("human" not in record.rationales for record in records(dataset.path).values()) == 5

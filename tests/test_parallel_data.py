"""Import, check and tokenising by several processes: the same bytes as by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import LABELS, record

from reason2decide import parallel
from reason2decide.data import check
from reason2decide.data.check import check_dataset
from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.records import Record
from reason2decide.data.sources import record_reader, writing
from reason2decide.data.sources.table import import_table
from reason2decide.data.sources.table_records import Columns
from reason2decide.data.unread_characters import UnreadCharacters
from reason2decide.errors import DataError
from reason2decide.model.hub import TokenCounter
from reason2decide.model.prompt_encoder import Lengths, PromptEncoder
from reason2decide.parallel import use_cores
from reason2decide.training import features
from reason2decide.training.features import SplitFeatures, TokenCache
from reason2decide.training.tiny import train_tokenizer

LINES = "id,text,label,reason,part,other\n"
COLUMNS = Columns(
    text=("text",), label="label", id="id", rationales={"nurse": "reason"}, split="part",
    contrasts={"nurse": "other"}, meta=("part",),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _in_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parts of seven records, of which two are enough for other processes."""
    for module in (record_reader, writing, check):
        monkeypatch.setattr(module, "AT_ONCE", 7)
    monkeypatch.setattr(features, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(parallel, "FEW", 14)
    monkeypatch.setattr(record_reader, "FEW", 14)
    yield
    use_cores(1)


def table(path: Path, count: int = 60) -> Path:
    """Rows of which some repeat an id, a text or another spelling, and some cannot be used."""
    with path.open("w") as stream:
        stream.write(LINES)
        for i in range(count):
            own = record(i % 50)
            label = str(own.label).upper() if i == 20 else own.label
            part = ("train", "train", "validation", "test")[i % 4]
            other = json.dumps({next(x for x in LABELS.values if x != own.label): f"perhaps {i}"}).replace('"', '""')
            id_ = "r3" if i in (30, 31) else f"r{i}"
            text = "" if i in (12, 41) else "#N/A" if i == 44 else own.text
            reason = "NA" if i % 9 == 0 else f"because {i}"
            stream.write(f'{id_},"{text}",{label},{reason},{part},"{other}"\n')
            if i == 25:
                stream.write("too,few\n")
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The content of a folder's files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("id_column", ["id", None])
def test_import(tmp_path: Path, id_column: str | None) -> None:
    """Bad rows, repeated ids and texts, notes: all as they stand in the order of the file."""
    file = table(tmp_path / "rows.csv")
    columns = Columns(**{**vars(COLUMNS), "id": id_column})
    found = []
    for workers in (1, 2):
        use_cores(workers)
        imported = import_table([file], tmp_path / "data", columns, skip_bad=True, labels=LABELS, force=True)
        found.append((bytes_of(tmp_path / "data"), imported.notes))
    assert found[0] == found[1]
    files, notes = found[0]
    bad = [json.loads(line) for line in files["skipped.jsonl"].splitlines()]
    assert [row["problem"].split(": ", 1)[1][:20] for row in bad] == (
        [
            "the text is empty; f",
            "2 cells, but the hea",
            "the id 'r3' already ",
            "the id 'r3' already ",
            "the text is empty; f",
        ]
        if id_column
        else ["the text is empty; f", "2 cells, but the hea", "the text is empty; f"]
    )
    assert all("row" in row for row in bad if "cells" not in row["problem"])
    assert any("1 labels differed" in note for note in notes)
    assert any("rationales say only that there is none" in note for note in notes)
    assert any("1 cells of 'text' seem to say that there is nothing" in note for note in notes)


def test_import_refuses_the_same_rows(tmp_path: Path) -> None:
    file, messages = table(tmp_path / "rows.csv"), []
    for workers in (1, 2):
        use_cores(workers)
        with pytest.raises(DataError) as refused:
            import_table([file], tmp_path / "data", COLUMNS)
        messages.append(str(refused.value))
    assert messages[0] == messages[1] and messages[0].startswith("5 rows cannot be used")


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetFolder:
    """Records with all that a check counts: contrasts, masks, stated labels, texts in two splits."""

    def own(i: int) -> Record:
        kept = record(i % 40)
        others = {label: f"It may be {label}. {i}" for label in LABELS.values if label != kept.label}
        text = f"{kept.text} [MASK] \u2603" if i % 11 == 0 else f"{kept.text} {kept.label}" if i % 3 == 0 else kept.text
        return Record(
            f"r{i}", text, kept.label, {"nurse": f"Because of {i}. It is {kept.label}."} if i % 5 else {},
            group=f"g{i % 30}" if i % 7 == 0 else None, contrasts={"nurse": others} if i % 2 else {},
        )  # fmt: skip

    splits = {"train": map(own, range(60)), "validation": map(own, range(60, 80)), "test": map(own, range(80, 100))}
    return write_dataset(tmp_path / "data", DatasetInfo("d", "t", LABELS, ("nurse",)), splits)


def test_check(dataset: DatasetFolder) -> None:
    tokenizer = train_tokenizer(own.text for own in dataset.split("train") if "\u2603" not in own.text)
    reports = []
    for workers in (1, 2):
        use_cores(workers)
        reports.append(
            check_dataset(
                dataset.path, count=TokenCounter(tokenizer), unread=UnreadCharacters(tokenizer), label_limit=3
            ).to_json()
        )
    assert reports[0] == reports[1]
    assert reports[0]["duplicates"]["exact"] and reports[0]["masks"] and reports[0]["contrasts"]
    assert sum(reports[0]["records"].values()) == 100


def test_tokenising(dataset: DatasetFolder, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(own.text for own in dataset.split("train"))
    encoder = PromptEncoder(tokenizer, Lengths(input=30, rationale=6, label=16))
    made = []
    for workers in (1, 2):
        use_cores(workers)
        cache = TokenCache(tmp_path / f"tokens{workers}", tokenizer)
        split = SplitFeatures(dataset.split("train"), dataset.hashes["train"], LABELS, encoder, cache)
        own = split.with_source("nurse", contrasts=True)
        made.append((own.cut_texts, own.cut_rationales))
        assert len(own.texts) == len(own.rationales or ()) == 60 and own.cut_texts.cut and own.cut_rationales.cut
    assert made[0] == made[1]
    files = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "tokens1", tmp_path / "tokens2")
    ]
    assert files[0] == files[1] and len(files[0]) == 15

"""Records, dataset folders and writing that is never half done."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.records import JsonlRecords, LabelSet, Record, parse_record, record_from_json
from reason2decide.errors import DataError, OutputError
from reason2decide.files import new_file, new_folder, sha256_file

YES_NO = DatasetInfo("test", "decide", LabelSet(("yes", "no")))
words = st.text(min_size=1).filter(str.strip)


def write(path: Path, content: bytes) -> JsonlRecords:
    path.write_bytes(content)
    return JsonlRecords(path)


def line(id_: str) -> bytes:
    return json.dumps({"id": id_, "text": f"text of {id_}"}).encode()


@given(
    st.builds(
        Record,
        id=words,
        text=words,
        label=st.none() | st.text(),
        rationales=st.dictionaries(st.text(), words, max_size=3),
        choices=st.none() | st.lists(words, min_size=2, max_size=4, unique=True).map(tuple),
        group=st.none() | st.text(),
        meta=st.dictionaries(st.text(), st.integers() | st.text() | st.booleans(), max_size=3),
    )
)
def test_a_record_survives_json(record: Record) -> None:
    assert parse_record(json.dumps(record.to_json(), ensure_ascii=False), "here") == record
    assert parse_record(json.dumps(record.to_json()).encode(), "here") == record


@settings(max_examples=60)
@given(st.lists(st.sampled_from([None, b"", b"  \t ", b" " * 40, b"\r"]), max_size=12), st.booleans(), st.booleans())
def test_blank_lines_carriage_returns_and_a_missing_last_newline_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes | None], crlf: bool, newline_at_end: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "records.jsonl"
    content = [line(str(number)) if blank is None else blank for number, blank in enumerate(lines, 1)]
    end = b"\r\n" if crlf else b"\n"
    records = write(path, end.join(content) + (end if newline_at_end else b""))
    expected = [str(number) for number, blank in enumerate(lines, 1) if blank is None]
    assert [record.id for record in records] == expected
    assert len(records) == len(expected)
    assert [record.id for record in reversed(records)] == expected[::-1]


def test_errors_name_the_line_with_blank_lines_counted(tmp_path: Path) -> None:
    records = write(
        tmp_path / "r.jsonl", b"\n" + line("a") + b"\n" + b" " * 30 + b"\n\n{not json}\n" + line("b") + b"\n"
    )
    assert records[0].id == "a" and records[2].id == "b"
    with pytest.raises(DataError, match=r"r\.jsonl, line 5: not valid JSON"):
        records[1]


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    for content in (b"", b"\n", b"\r\n\n  \n"):
        assert list(write(tmp_path / "r.jsonl", content)) == []


def test_indexing_and_slicing(tmp_path: Path) -> None:
    records = write(tmp_path / "r.jsonl", b"\n".join(line(str(i)) for i in range(5)))
    assert records[-1].id == "4"
    assert [record.id for record in records[1:3]] == ["1", "2"]
    with pytest.raises(IndexError):
        records[5]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert write(tmp_path / "r.jsonl", b"\xef\xbb\xbf" + line("a") + b"\n")[0].id == "a"


def test_reading_a_large_file_does_not_take_its_size_in_memory(tmp_path: Path) -> None:
    path, count = tmp_path / "large.jsonl", 200_000
    text = "a long note " * 40
    with path.open("w") as stream:
        for number in range(count):
            stream.write(f'{{"id": "{number}", "text": "{text}"}}\n')
    assert path.stat().st_size > 90_000_000
    tracemalloc.start()
    records = JsonlRecords(path)
    assert len(records) == count
    assert [records[i].id for i in range(0, count, 1000)] == [str(i) for i in range(0, count, 1000)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15_000_000  # the index of line starts and numbers, 16 bytes a record, and copies of it


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a JSON object"),
        ({"text": "t"}, "'id' to be a string, got nothing"),
        ({"id": "1", "text": 3}, "'text' to be a string, got int"),
        ({"id": "1", "text": " \n"}, "empty text"),
        ({"id": " ", "text": "t"}, "the id is empty"),
        ({"id": "1", "text": "t", "lable": "yes"}, "unknown key 'lable'"),
        ({"id": "1", "text": "t", "label": 4}, "'label' to be a string"),
        ({"id": "1", "text": "t", "rationales": {"llm": 3}}, "source -> text"),
        ({"id": "1", "text": "t", "choices": ["a"]}, "needs at least 2 labels, got 1"),
        ({"id": "1", "text": "t", "choices": ["a", "a"]}, "more than once"),
        ({"id": "1", "text": "half \ud83d"}, "an unpaired surrogate"),
        ({"id": "1", "text": "t", "meta": {"note": "\udc00"}}, "an unpaired surrogate"),
    ],
)
def test_a_bad_record_is_named(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        record_from_json(value, "x.jsonl, line 3")
    assert str(caught.value).startswith("x.jsonl, line 3: ")


def test_label_sets() -> None:
    for values in (("a",), ("a", "a"), ("a", " ")):
        with pytest.raises(DataError):
            LabelSet(values)
    with pytest.raises(DataError, match="not ordinal"):
        LabelSet(("a", "b"), urgent="first")
    assert LabelSet().is_open


def records_of(*ids: str) -> list[Record]:
    return [Record(id_, f"text of {id_}", "yes") for id_ in ids]


def test_a_dataset_is_read_as_written(tmp_path: Path) -> None:
    info = DatasetInfo("n", "t", LabelSet(("a", "b"), True, "last"), ("llm",), {"seed": 3, "files": [{"name": "f"}]})
    record = Record("1", "x\u2028y\x85é", "a", {"llm": "because"}, group="g", meta={"k": [1]})
    written = write_dataset(tmp_path / "d", info, {"train": [record], "test": [Record("2", "t", "b")]})
    opened = DatasetFolder.open(tmp_path / "d")
    assert opened == written and opened.info == info
    assert list(opened.split("train")) == [record]
    opened.verify()
    with pytest.raises(DataError, match="no split 'validation'; it has train, test"):
        opened.split("validation")
    with (tmp_path / "d" / "test.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(DataError, match="changed after import"):
        opened.verify()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": records_of("1", "1")}, "occurs twice"),
        ({"train": records_of("1"), "test": []}, "'test' got no records"),
        ({"train": [Record("1", "t", "perhaps")]}, "not in its set"),
        ({"train": [Record("1", "t")]}, "no label"),
    ],
)
def test_nothing_is_left_of_a_dataset_that_failed(tmp_path: Path, splits: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "d", YES_NO, splits)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_kept_until_the_new_one_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "d"
    write_dataset(out, YES_NO, {"train": records_of("old")})
    with pytest.raises(OutputError, match="--force"):
        write_dataset(out, YES_NO, {"train": records_of("new")})
    with pytest.raises(DataError):
        write_dataset(out, YES_NO, {"train": records_of("new", "new")}, force=True)
    assert DatasetFolder.open(out).split("train")[0].id == "old"
    write_dataset(out, YES_NO, {"train": records_of("new")}, force=True)
    assert DatasetFolder.open(out).split("train")[0].id == "new"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ValueError])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, error: type[BaseException] | OSError) -> None:
    expected = type(error) if isinstance(error, OSError) else error
    with pytest.raises(expected), new_folder(tmp_path / "d", "marker") as folder:
        (folder / "part").write_text("half")
        raise error
    with pytest.raises(type(error) if isinstance(error, OSError) else error), new_file(tmp_path / "f") as file:
        file.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_outputs_below_a_file_or_onto_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot create"), new_folder(tmp_path / "file" / "d", "marker"):
        pass
    with pytest.raises(OutputError, match="is a folder"), new_file(tmp_path, force=True):
        pass
    with new_file(tmp_path / "file", force=True) as partial:
        partial.write_text("y")
        assert (tmp_path / "file").read_text() == "x"
    assert (tmp_path / "file").read_text() == "y"


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no dataset.toml"),
        ("name = ", "not valid TOML"),
        ('name = "n"', "lacks or misuses the key 'labels'"),
        ('[labels]\nvalues = ["a"]\nordinal = false', "at least 2 labels"),
    ],
)
def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "dataset.toml").write_text(content)
    with pytest.raises(DataError, match=message):
        DatasetFolder.open(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        DatasetFolder.open(tmp_path / "absent")

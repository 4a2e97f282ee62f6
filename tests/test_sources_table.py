"""Splitting, choices and the table importer, through the command line where the user meets it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import starmap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import SPLITS, r2d, records, sizes

from reason2decide.data.cases import Cases
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.defaults import SHARES
from reason2decide.data.recipe import InputRecipe
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sources.splitting import Member, content_key, parse_shares, split_records
from reason2decide.data.sources.writing import spooled, write_import
from reason2decide.errors import DataError, UserError


def table(path: Path, rows: list[list[str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(delimiter.join(row) + "\n" for row in rows).encode(encoding))
    return path


def cases(count: int = 30) -> list[list[str]]:
    return [["text", "label"], *([f"case {i}", "yes" if i % 3 else "no"] for i in range(count))]


# Splitting


@pytest.mark.parametrize("seed", range(30))
def test_a_split_keeps_groups_whole_and_depends_on_seed_and_ids_only(seed: int) -> None:
    chance = random.Random(seed)
    drawn = [Member(f"id{i}", chance.choice("aab"), f"g{chance.randrange(20, 80)}") for i in range(200)]
    assigned = split_records(drawn, SHARES, seed)
    assert set(assigned) == {one.id for one in drawn}
    places = {(one.group, assigned[one.id]) for one in drawn}
    assert len(places) == len({one.group for one in drawn})
    shuffled = chance.sample(drawn, len(drawn))
    assert split_records(shuffled, SHARES, seed) == assigned
    renamed = [one._replace(group=f"other {one.group}") for one in drawn]
    assert split_records(renamed, SHARES, seed) == assigned


@settings(max_examples=50)
@given(st.lists(st.integers(10, 120), min_size=2, max_size=6), st.integers(0, 99))
def test_a_split_is_stratified(counts: list[int], seed: int) -> None:
    drawn = [Member(f"{label}-{i}", str(label), f"{label}-{i}") for label, n in enumerate(counts) for i in range(n)]
    assigned = split_records(drawn, SHARES, seed)
    for split, share in SHARES.items():
        ids = [id_ for id_, name in assigned.items() if name == split]
        assert abs(len(ids) - share * len(drawn)) <= 2
        for label, n in enumerate(counts):
            assert abs(sum(id_.startswith(f"{label}-") for id_ in ids) - share * n) <= 2.5


def test_labels_that_occur_once_are_spread_by_the_shares() -> None:
    assigned = split_records([Member(str(i), str(i), str(i)) for i in range(1000)], SHARES, 0)
    assert Counter(assigned.values()) == {"train": 800, "validation": 100, "test": 100}


def test_another_seed_gives_another_split() -> None:
    drawn = [Member(str(i), str(i % 2), str(i)) for i in range(100)]
    assert split_records(drawn, SHARES, 0) != split_records(drawn, SHARES, 1)


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match="got none of the 4 records"):
        split_records([Member(str(i), "a", str(i)) for i in range(4)], SHARES, 0)


@pytest.mark.parametrize("shares", ["0.8,0.1", "0.8,0.1,0.2", "0.9,0.1,0", "a,b,c", "nan,1,1", ""])
def test_shares_must_be_three_that_sum_to_one(shares: str) -> None:
    with pytest.raises(UserError, match="sum to 1"):
        parse_shares(shares)


def test_content_is_the_same_but_for_case_and_space() -> None:
    assert content_key(Record("1", "A  cough\n")) == content_key(Record("2", "a cough"))
    assert content_key(Record("1", "Which?", choices=("a", "b"))) != content_key(Record("2", "Which?"))


# Importing


def test_formats_give_the_same_records(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"q": f"is {i}, or\nnot?", "s": i % 3, "why": f"{i}" if i % 2 else None} for i in range(40)]
    quoted = [["q", "s", "why"], *([f'"{row["q"]}"', str(row["s"]), str(row["why"] or "")] for row in rows)]
    table(tmp_path / "in.csv", quoted)
    table(tmp_path / "in.tsv", quoted, "\t")
    table(tmp_path / "semicolon.CSV", quoted, ";")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    options = ("--text", "q", "--label", "s", "--rationale", "nurse=why")
    for name, more in {
        "in.csv": (),
        "in.tsv": (),
        "semicolon.CSV": ("--delimiter", ";"),
        "in.jsonl": (),
        "in.parquet": (),
    }.items():
        r2d(tmp_path / name, "--out", tmp_path / f"out-{name}", *options, *more)
        assert records(tmp_path / f"out-{name}") == records(tmp_path / "out-in.csv")
    dataset = DatasetFolder.open(tmp_path / "out-in.csv")
    assert dataset.info.labels.values == ("0", "1", "2")
    assert dataset.info.rationale_sources == ("nurse",)
    assert sum("nurse" in record.rationales for record in records(dataset.path).values()) == 20
    assert sizes(dataset.path) == {"train": 32, "validation": 4, "test": 4}


def test_ids_and_splits_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = cases()
    table(tmp_path / "a.csv", [*rows, rows[1]])
    table(tmp_path / "b.csv", [rows[0], rows[1], *rows[:0:-1]])
    for name in "ab":
        r2d(tmp_path / f"{name}.csv", "--out", tmp_path / name, "--text", "text", "--label", "label")
    for split in SPLITS:
        assert (tmp_path / "a" / f"{split}.jsonl").read_bytes() == (tmp_path / "b" / f"{split}.jsonl").read_bytes()
    twice = [id_ for id_ in records(tmp_path / "a") if id_.endswith("-2")]
    assert len(twice) == 1 and len(records(tmp_path / "a")) == 31


def test_equal_texts_and_groups_stay_in_one_split(tmp_path: Path) -> None:
    rows = [["text", "label", "patient"], *([f"case {i // 4}", f"{i % 2}", f"p{i % 30}"] for i in range(120))]
    table(tmp_path / "in.csv", rows)
    r2d(tmp_path / "in.csv", "--out", tmp_path / "texts", "--text", "text", "--label", "label")
    r2d(tmp_path / "in.csv", "--out", tmp_path / "groups", "--text", "text", "--label", "label", "--group", "patient")
    for name in ("texts", "groups"):
        dataset = DatasetFolder.open(tmp_path / name)
        units = {s: {r.group or r.text for r in dataset.split(s)} for s in SPLITS}
        assert sum(map(len, units.values())) == len(set.union(*units.values())) == 30


def test_text_columns_are_joined_with_their_names_and_meta_is_kept(tmp_path: Path) -> None:
    rows = [
        {"id": i, "q": f"q{i}", "c": " ctx " if i % 2 else "", "ok": i % 2 == 0, "x": {"n": i}, "y": 1}
        for i in range(30)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    r2d(tmp_path / "in.jsonl", "--out", tmp_path / "d", "--text", "q,c", "--label", "ok", "--id", "id", "--meta", "x")
    found = records(tmp_path / "d")
    assert found["3"] == Record("3", "q: q3\nc: ctx", "false", meta={"x": {"n": 3}})
    assert found["4"].text == "q: q4" and found["4"].label == "true"


def test_a_declared_order_is_kept(tmp_path: Path) -> None:
    table(tmp_path / "in.csv", cases())
    options = ("--text", "text", "--label", "label", "--labels", "yes, no", "--ordinal", "--urgent", "first")
    said = r2d(tmp_path / "in.csv", "--out", tmp_path / "d", *options, "--name", "calls", "--seed", 3)
    info = DatasetFolder.open(tmp_path / "d").info
    assert (info.name, info.labels.values, info.labels.ordinal, info.labels.urgent) == (
        "calls",
        ("yes", "no"),
        True,
        "first",
    )
    assert info.provenance["seed"] == 3 and info.provenance["files"][0]["name"] == "in.csv"
    assert "train 24, validation 3, test 3" in said and "yes, no (ordinal, the first the most urgent)" in said


def test_choices_come_from_a_column(tmp_path: Path) -> None:
    rows = [{"t": f"{i}", "l": "B" if i % 2 else "a ", "c": ["a", "b."] if i % 3 else "a|b."} for i in range(30)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    r2d(tmp_path / "in.jsonl", "--out", tmp_path / "d", "--text", "t", "--label", "l", "--choices", "c")
    assert DatasetFolder.open(tmp_path / "d").info.labels.is_open
    assert {(r.label, r.choices) for r in records(tmp_path / "d").values()} == {("a", ("a", "b.")), ("b.", ("a", "b."))}


def test_splits_come_from_a_column(tmp_path: Path) -> None:
    for names, expected in [
        (("train", "dev", "Test"), {"train": 10, "validation": 10, "test": 10}),
        (("train", "train", "test"), {"train": 18, "validation": 2, "test": 10}),
    ]:
        rows = [[*row, names[i % 3] if i >= 0 else "part"] for i, row in enumerate(cases(), -1)]
        table(tmp_path / "in.csv", rows)
        options = ("--text", "text", "--label", "label", "--split-column", "part", "--force")
        said = r2d(tmp_path / "in.csv", "--out", tmp_path / "d", *options)
        assert sizes(tmp_path / "d") == expected
        assert ("a tenth of train became validation" in said) == (expected["validation"] == 2)


@pytest.mark.parametrize(
    ("encoding", "text"), [("cp1252", "naïve – œdema"), ("cp1254", "ağrı, ateş, İğne"), ("utf-16", "ağrı")]
)
def test_other_encodings_are_read_when_named_and_asked_for_when_not(tmp_path: Path, encoding: str, text: str) -> None:
    table(
        tmp_path / "in.csv", [["text", "label"], *([f'"{text} {i}"', f"{i % 2}"] for i in range(30))], encoding=encoding
    )
    options = (tmp_path / "in.csv", "--out", tmp_path / "d", "--text", "text", "--label", "label")
    message = r2d(*options, ok=False)
    assert "is not utf-8" in message and "--encoding" in message and "cp1254" in message
    r2d(*options, "--encoding", encoding)
    assert f"{text} 7" in {record.text for record in records(tmp_path / "d").values()}


def test_a_bad_first_object_is_as_bad_as_any(tmp_path: Path) -> None:
    good = [json.dumps({"text": f"case {i}", "label": "yes" if i % 3 else "no", "where": "a"}) for i in range(30)]
    lacking = json.dumps({"label": "yes"})
    for i, first in enumerate(("not json", lacking)):
        for lines in ([first, *good], [good[0], first, *good[1:]]):
            file = tmp_path / f"{i} {lines.index(first)}.jsonl"
            file.write_text("\n".join(lines))
            out = tmp_path / f"out {file.stem}"
            r2d(file, "--text", "text", "--label", "label", "--meta", "where", "--skip-bad", "--out", out)
            assert sum(sizes(out).values()) == 30
    many = tmp_path / "many.jsonl"
    many.write_text("\n".join(good * 60))  # more rows than are read before giving up
    for wrong in (file, many):
        for options in (("--text", "note", "--label", "label"), ("--text", "text", "--label", "lable")):
            said = r2d(wrong, *options, "--out", tmp_path / "x", ok=False)
            assert f"{wrong} has no column '{'note' if 'note' in options else 'lable'}'" in said
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(json.dumps({"text": f"other {i}"}) for i in range(5)))
    said = r2d(many, other, "--text", "text", "--label", "label", "--out", tmp_path / "x", ok=False)
    assert f"{other} has no column 'label'" in said


def test_an_id_that_is_blank_takes_no_other_rows_id(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("id,text\n ,first\n2,second\n")
    bad: list[DataError] = []
    found = list(Cases(tmp_path / "cases.csv").records(bad.append))
    assert [own.id for own in found] == ["line 2", "2"] and not bad


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    table(tmp_path / "in.csv", cases(), encoding="utf-8-sig")
    r2d(tmp_path / "in.csv", "--out", tmp_path / "d", "--text", "text", "--label", "label")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", "", "is empty"),
        (b"\n\n", "", "is empty"),
        (b"text,label\n", "", "no records"),
        (b"note,label\na,b\n", "", "no column 'text'; it has 'note', 'label'"),
        (b"text;label\na;b\n", "--delimiter ,", "if the delimiter is ';', give --delimiter"),
        (b"text,label\na,b\n" + b"[" * 100_000, "--choices-in-text", "no choices in the text"),
        (b'text,label,c\na,yes,"' + b"[" * 100_000 + b'"\n', "--choices c", "expected a list of strings"),
        (b"text,label\na,yes\n  ,no\n", "", r"row 2 \(line 3\): the text is empty"),
        (b"text,label\na,yes\nb,\n", "", r"row 2 \(line 3\): the label is empty"),
        (b"text,label\na,yes\nb,no,maybe\n", "", r"row 2 \(line 3\): 3 cells, but the header has 2"),
        (b'text,label\na,yes\n"b,no\n', "", r"row 2 .*check the quotation marks"),
        (b"text,text,label\na,b,yes\n", "", "two columns named 'text'"),
        (b"text,label\na,yes\nb,yes\nc,yes\n", "", "all 3 records have the label 'yes'"),
        (b"text,label\na,yes\nb,no\nc,yes\n", "", "split 'validation' got none|split 'test' got none"),
        (b"text,label,n\na,yes,1\nb,no,1\n", "--id n", r"row 2 .*the id '1' already occurs in .*row 1"),
        (b"text,label,n\na,yes,1\nb,no,\n", "--id n", r"row 2 .*the id is empty"),
        (
            b"text,label\na,yes\nb,perhaps\n",
            "--labels yes,no",
            r"row 2 .*'perhaps' is not in the declared set 'yes', 'no'",
        ),
        (b"text,label\na,yes\n", "--labels yes,yes", "more than once"),
        (b"text,label\na,yes\n", "--labels yes,no --urgent first", "not ordinal"),
        (b"text,label\na,yes\n", "--labels yes,no --ordinal --urgent top", "expected first or last"),
        (b"text,label\na,yes\n", "--ordinal", "--labels"),
        (b"text,label\na,yes\n", "--rationale llm=why", "no column 'why'; it has 'text', 'label'"),
        (b"text,label\na,yes\n", "--rationale why", "expected SOURCE=COL"),
        (b"text,label\na,yes\n", "--rationale a=text --rationale a=label", "names 'a' twice"),
        (b"text,label\na,yes\n", "--meta age", "no column 'age'"),
        (b"text,label\na,yes\n", "--choices-in-text", r"row 1 .*no choices in the text"),
        (b"text,label,c\na,yes,x|y\n", "--choices c", r"row 1 .*'yes' is not one of the choices 'x', 'y'"),
        (b'text,label,c\na,yes,"[1]"\n', "--choices c", r"expected a list of strings"),
        (b"text,label,c\na,yes,yes\n", "--choices c", r"row 1 .*at least 2 labels"),
        (b"text,label,c\na,yes,x|y\n", "--choices c --labels yes,no", "give one of the two"),
        (b"text,label,p\na,yes,train\nb,no,holdout\n", "--split-column p", r"contains 'holdout' \(1\); expected train"),
        (b"text,label,p\na,yes,test\nb,no,dev\n", "--split-column p", "no record in train"),
        (b"text,label,p\na,yes,train\n", "--split-column p --split 0.8,0.1,0.1", "give one of the two"),
        (b"text,label\na,yes\n", "--split 0.8,0.1,0.2", "sum to 1"),
        (b"text,label\na,yes\n", "--delimiter ;;", "unknown delimiter ';;'"),
        (b"text,label\na,yes\n", "--encoding klingon", "unknown encoding 'klingon'"),
        (b"text,label\na,yes\n", "--encoding base64", "unknown encoding 'base64'"),
    ],
)
def test_bad_tables_are_named_and_leave_nothing(tmp_path: Path, content: bytes, options: str, message: str) -> None:
    (tmp_path / "in.csv").write_bytes(content)
    arguments = (tmp_path / "in.csv", "--out", tmp_path / "d", "--text", "text", "--label", "label", *options.split())
    said = r2d(*arguments, ok=False)
    with pytest.raises(UserError, match=message):
        raise UserError(said)
    assert [item.name for item in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", b'{"text": "a", "label": "b"}\n\n{"text": \n', "line 3: not valid JSON"),
        ("in.jsonl", b'{"text": "a", "label": "b"}\n[1]\n', "line 2: expected a JSON object, got list"),
        ("in.jsonl", b'{"text": "a", "label": ' + b"[" * 100_000, "line 1: not usable JSON: it is nested too deep"),
        ("in.jsonl", b'{"text": "a", "label": ' + b"1" * 5000 + b"}", "a number has too many digits"),
        ("in.json", b'{"text": "a", "label": "b"}\n[\n', "line 2: not valid JSON"),
        ("in.json", b'[{"text": "a", "label": "b"}, 3]', "item 2: expected a JSON object, got int"),
        (
            "in.json",
            b'[{"text": "a"}, ',
            "is not valid JSON (Expecting value at column 17); expected a list of objects",
        ),
        ("in.jsonl", b'{"text": "a", "label": null}\n', "line 1: the label is empty"),
        ("in.jsonl", b'{"text": "a", "label": "b"}\n{"text": "a"}\n', "line 2: the label is empty"),
        ("in.jsonl", b'{"text": {"a": 1}, "label": "b"}\n', "line 1: 'text' contains a dict; expected text"),
        ("in.jsonl", b'{"text": "\\ud83d", "label": "b"}\n', "an unpaired surrogate"),
        ("in.parquet", b"not parquet", "is not a Parquet file"),
        ("in.xlsx", b"PK", "extension '.xlsx'; expected .csv, .tsv, .json, .jsonl or .parquet"),
    ],
)
def test_other_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in r2d(tmp_path / name, "--out", tmp_path / "d", "--text", "text", "--label", "label", ok=False)
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_paths_and_options_that_cannot_be_used(tmp_path: Path) -> None:
    columns = ("--text", "text", "--label", "label")
    assert "there is no file" in r2d(tmp_path / "absent.csv", "--out", tmp_path / "d", *columns, ok=False)
    assert "is a folder" in r2d(tmp_path, "--out", tmp_path / "d", *columns, ok=False)
    source = table(tmp_path / "in.csv", cases())
    assert "needs --text and --label" in r2d(source, "--out", tmp_path / "d", "--text", "text", ok=False)
    assert "lacks the default columns" in r2d(source, "--out", tmp_path / "d", ok=False)
    r2d(source, "--out", tmp_path / "d", *columns)
    assert "--force" in r2d(source, "--out", tmp_path / "d", *columns, ok=False)
    assert "cannot create" in r2d(source, "--out", source / "d", *columns, ok=False)


def test_the_command_exits_with_two_and_without_a_traceback(tmp_path: Path) -> None:
    source = table(tmp_path / "in.csv", [["text", "label"], ["a", "yes"], ["", "no"]])
    program = [sys.executable, "-c", "from reason2decide.cli import main; main()", "data", "import", "table"]
    arguments = [str(source), "--out", str(tmp_path / "d"), "--text", "text", "--label", "label"]
    run = subprocess.run([*program, *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and "row 2" in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_import_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def rows() -> Iterator[tuple[str, Record]]:
        yield "row 1", Record("1", "a", "yes")
        raise error

    def label_set(found: Collection[str]) -> LabelSet:
        return LabelSet(tuple(found))

    with pytest.raises(type(error)):
        write_import(
            tmp_path / "d",
            starmap(spooled, rows()),
            lambda _: {},
            name="n",
            task="t",
            labels=label_set,
            provenance={},
            recipe=InputRecipe(),
        )
    assert list(tmp_path.iterdir()) == []

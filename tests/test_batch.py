"""Folders of parts: each row once, in order, the same bytes however computed; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from batches import bytes_of, exported, failures, predictions, rows, write_folder
from forks import Forks
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import triage_bundle

from reason2decide.batch import Decider
from reason2decide.batch.input import BatchInput, InputFile
from reason2decide.batch.job import part_folder, read_job
from reason2decide.batch.run import decide_batch
from reason2decide.batch.settings import BatchSettings
from reason2decide.batch.storage import Patience, lies_in
from reason2decide.batch.workers import PROCESS, visible_gpu, workers_for
from reason2decide.data.cases import Cases
from reason2decide.data.predictions import Undecided
from reason2decide.data.records import Record
from reason2decide.data.repeated_ids import RepeatedIds
from reason2decide.errors import DataError
from reason2decide.files import locked
from reason2decide.model.predictor import Predictor

PARTS = ("--rows-per-part", "7", "--workers", "2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> tuple[Path, Path]:
    """A folder of sixty cases, and its parts of seven rows."""
    home = tmp_path_factory.mktemp("batch")
    cases, out = write_folder(home / "cases"), home / "out"
    done = forks.run("predict", exported(), cases, "--out", out, *PARTS)
    assert done.returncode == 0, done.stderr
    assert "60 rows read = 60 decided + 0 failed, in 9 parts" in done.stderr
    return cases, out


def record_of(row: dict[str, str]) -> Record:
    """A row as a record."""
    return Record(row["id"], row["text"])


# ---- What the parts hold


def test_parts_hold_each_row_once_in_the_order_of_the_input(whole: tuple[Path, Path]) -> None:
    _, out = whole
    assert [prediction.id for prediction in predictions(out)] == [row["id"] for row in rows(0, 60)]
    counts = [pyarrow.parquet.read_metadata(path).num_rows for path in sorted(out.glob("part-*"))]
    assert counts == [7] * 8 + [4]
    manifest = json.loads((out / "manifest.json").read_text())
    assert {file["name"]: file["rows"] for file in manifest["files"]} == {
        "a.csv": 20,
        "b/rows.jsonl": 20,
        "c.parquet": 20,
    }
    assert manifest["summary"]["rows"] == manifest["summary"]["decided"] == 60
    assert [part["decided"] for part in manifest["summary"]["parts"]] == counts


def test_a_row_is_decided_as_in_a_single_file(whole: tuple[Path, Path]) -> None:
    _, out = whole
    records = [record_of(row) for row in rows(0, 60)]
    alone = list(Predictor.load(exported()).predict(records))
    assert [(own.predicted_label, own.rationale) for own in predictions(out)] == [
        (own.predicted_label, own.rationale) for own in alone
    ]
    # Texts are scored alone by this engine, so that probabilities are the same to the last bit.
    assert [own.probabilities for own in predictions(out)] == [own.probabilities for own in alone]


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    whole: tuple[Path, Path], forks: Forks, tmp_path: Path
) -> None:
    cases, out = whole
    one = forks.run("predict", exported(), cases, "--out", tmp_path / "one", "--rows-per-part", "7", "--workers", "1")
    assert one.returncode == 0, one.stderr
    assert bytes_of(tmp_path / "one") == bytes_of(out)


def test_json_lines_hold_the_same(whole: tuple[Path, Path], forks: Forks, tmp_path: Path) -> None:
    cases, out = whole
    assert (
        forks.run("predict", exported(), cases, "--out", tmp_path / "lines", *PARTS, "--format", "jsonl").returncode
        == 0
    )
    assert predictions(tmp_path / "lines") == predictions(out)


def test_rows_that_cannot_be_decided_are_kept_apart_with_a_reason_and_no_text(forks: Forks, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    lines = [json.dumps(row) for row in rows(0, 9)]
    lines[2] = '{"id": "empty", "text": " "}'
    lines[4] = '{"id": "secret", "text": ["a secret", {}]}'
    cases.write_text("\n".join(lines) + '\n{"id": "cut", "text": "a secr')
    done = forks.run("predict", exported(), cases, "--out", tmp_path / "out", "--rows-per-part", "4")
    assert done.returncode == 0
    assert "10 rows read = 7 decided + 3 failed, in 3 parts" in done.stderr
    assert "errors-*" in done.stderr
    failed = failures(tmp_path / "out")
    assert [row["id"] for row in failed] == ["empty", "secret", "cases.jsonl:10"]
    assert "empty text" in failed[0]["reason"]
    assert "secr" not in str([row["reason"] for row in failed])
    assert [own.id for own in predictions(tmp_path / "out")] == [f"case-{index}" for index in (0, 1, 3, 5, 6, 7, 8)]


def test_rows_without_ids_are_named_by_file_and_number(forks: Forks, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text("text\nhas a cough\nhas a rash\n")
    done = forks.run("predict", exported(), tmp_path / "*.csv", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [own.id for own in predictions(tmp_path / "out")] == ["one.csv:2", "one.csv:3", "two.csv:2", "two.csv:3"]


# ---- Going on


def test_resuming_computes_missing_and_damaged_parts_only(
    whole: tuple[Path, Path], forks: Forks, tmp_path: Path
) -> None:
    cases, out = whole
    command = ("predict", exported(), cases, "--out", tmp_path / "out", *PARTS, "--resume")
    assert forks.run(*command).returncode == 0  # begins where there is nothing
    parts = sorted((tmp_path / "out").glob("part-*"))
    parts[3].unlink()
    parts[5].write_bytes(parts[5].read_bytes()[:100])
    before = {path: path.stat().st_mtime_ns for path in parts if path.exists()}
    done = forks.run(*command)
    assert done.returncode == 0, done.stderr
    assert "7 of 9 parts are there already" in done.stderr
    assert bytes_of(tmp_path / "out") == bytes_of(out)
    assert [path for path in before if path.stat().st_mtime_ns != before[path]] == [parts[5]]


def test_failed_rows_are_tried_again_when_asked(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("id,text\n1,cough\n2,\n3,rash\n")
    command = ("predict", exported(), tmp_path / "cases.csv", "--out", tmp_path / "out", "--rows-per-part", "2")
    assert forks.run(*command).returncode == 0
    first, second = sorted((tmp_path / "out").glob("part-*"))
    stamps = first.stat().st_mtime_ns, second.stat().st_mtime_ns
    done = forks.run(*command, "--retry-failed")
    assert "1 of 2 parts are there already" in done.stderr
    assert first.stat().st_mtime_ns != stamps[0]
    assert second.stat().st_mtime_ns == stamps[1]
    assert [row["id"] for row in failures(tmp_path / "out")] == ["2"]


def test_a_row_that_succeeds_when_tried_again_leaves_no_failure_behind(
    whole: tuple[Path, Path], forks: Forks, tmp_path: Path
) -> None:
    """The second part lost two rows, as it would to a worker that ran out of memory."""
    cases, out = whole
    again = tmp_path / "out"
    shutil.copytree(out, again)
    job = read_job(again)
    assert job is not None
    parts = part_folder(again, job)
    decided = parts.read(1)
    parts.write(1, [*decided[:5], *(Undecided(own.id, "the worker ended") for own in decided[5:])])
    assert [row["id"] for row in failures(again)] == [own.id for own in decided[5:]]
    done = forks.run("predict", exported(), cases, "--out", again, *PARTS, "--retry-failed")
    assert done.returncode == 0, done.stderr
    assert "8 of 9 parts are there already" in done.stderr and "60 decided + 0 failed" in done.stderr
    assert bytes_of(again) == bytes_of(out)


def test_a_run_that_was_killed_before_its_first_manifest_begins_again(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("id,text\n1,cough\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".manifest.json.partial").write_text("{")
    command = ("predict", exported(), tmp_path / "cases.csv", "--out", tmp_path / "out", "--resume")
    assert forks.run(*command).returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "manifest.json", "part-000000.parquet"}


def test_a_folder_without_parts_is_begun_anew(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("id,text\n1,cough\n")
    command = ("predict", exported(), tmp_path / "cases.csv", "--out", tmp_path / "out")
    assert forks.run(*command, "--ray", "--address", "127.0.0.1:1").returncode == 2  # nobody computes
    assert (tmp_path / "out" / "manifest.json").exists()
    done = forks.run(*command)
    assert done.returncode == 0, done.stderr
    assert "in 1 part\n" in done.stderr


def test_what_a_person_should_know_is_counted(forks: Forks, tmp_path: Path) -> None:
    words = "cough and rash " * 400
    (tmp_path / "cases.csv").write_text(f"id,text\n1,cough\n2,{words}\n3,\n")
    done = forks.run("predict", exported(), tmp_path / "cases.csv", "--out", tmp_path / "out")
    found = predictions(tmp_path / "out")
    deferred, unsupported = (
        sum(bool(value) for value in values)
        for values in (
            [own.deferred for own in found],
            [own.reason_supports is False for own in found],
        )
    )
    assert f"of 2 decisions made now {deferred} are left to a person" in done.stderr
    assert "1 read only a part of their text" in done.stderr
    assert f"{unsupported} have a reason that does not support them" in done.stderr


# ---- What does not fit


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of cases, and a finished folder."""
    cases = tmp_path / "cases"
    cases.mkdir()
    for name, start in (("a", 0), ("b", 5)):
        (cases / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(start, start + 5)))
    decide_batch(exported(), str(cases), str(tmp_path / "out"), BatchSettings(workers=1))
    return cases, tmp_path / "out"


def refused(forks: Forks, *arguments: object) -> str:
    """The message of a refusal."""
    done = forks.run("predict", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_another_model_setting_or_input_is_refused(forks: Forks, begun: tuple[Path, Path]) -> None:
    cases, out = begun
    before = bytes_of(out)
    message = refused(forks, exported(), cases, "--out", out)
    assert "1 of 1 parts already" in message
    assert "--resume" in message
    again = ("--out", out, "--resume")
    assert "the model with manifest" in refused(forks, triage_bundle(), cases, *again)
    assert "--long-texts" in refused(forks, exported(), cases, *again, "--long-texts", "refuse")
    assert "--rows-per-part" in refused(forks, exported(), cases, *again, "--rows-per-part", "3")
    (cases / "c.jsonl").write_text('{"id": "new", "text": "cough"}\n')
    assert "has besides 'c.jsonl'" in refused(forks, exported(), cases, *again)
    (cases / "c.jsonl").unlink()
    with (cases / "b.jsonl").open("a") as stream:
        stream.write('{"id": "new", "text": "cough"}\n')
    assert "has with other content 'b.jsonl'" in refused(forks, exported(), cases, *again)
    (cases / "b.jsonl").unlink()
    assert "lacks 'b.jsonl'" in refused(forks, exported(), cases, *again)
    assert bytes_of(out) == before
    (out / "notes.txt").write_text("mine")
    assert forks.run("predict", exported(), cases, "--out", out, "--force").returncode == 0
    assert len(predictions(out)) == 5
    assert (out / "notes.txt").read_text() == "mine"
    assert "lies in the input" in refused(forks, exported(), cases, "--out", cases / "out")
    assert not (cases / "out").exists()
    inside = cases / "out"
    for source in (f"{cases.parent}/./{cases.name}", f"{cases.parent}/*/**/*.jsonl", f"{cases}/*/*.jsonl"):
        assert "lies in the input" in refused(forks, exported(), source, "--out", inside)
    assert lies_in(Path("out"), ".") and lies_in(Path("data"), "data/*.parquet")
    assert not lies_in(Path("data/out"), "data/*.parquet") and not lies_in(Path("database"), "data")


def test_a_folder_of_something_else_is_left_alone(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("id,text\n1,cough\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for options in ((), ("--force",), ("--resume",)):
        assert "has files, but no manifest" in refused(
            forks, exported(), tmp_path / "cases.csv", "--out", tmp_path / "out", *options
        )
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_two_runs_into_one_folder_are_refused(forks: Forks, begun: tuple[Path, Path]) -> None:
    cases, out = begun
    with locked(out / ".lock", "held by the test"):
        assert "another run writes into" in refused(forks, exported(), cases, "--out", out, "--resume")


def test_repeated_ids_are_refused_or_kept(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("id,text\n1,cough\n2,rash\n")
    (tmp_path / "two.csv").write_text("id,text\n3,cough\n2,fever\n")
    command = (exported(), tmp_path / "*.csv", "--out", tmp_path / "out")
    message = refused(forks, *command)
    assert "row 2 of one.csv and row 2 of two.csv" in message
    assert "--duplicates keep" in message
    assert not list((tmp_path / "out").glob("part-*"))
    assert forks.run("predict", *command, "--duplicates", "keep").returncode == 0
    assert [own.id for own in predictions(tmp_path / "out")] == ["1", "2", "3", "2"]


def test_input_that_cannot_be_read_is_refused_before_anything_is_decided(forks: Forks, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "matches no file" in refused(forks, exported(), tmp_path / "*.parquet", *out)
    (tmp_path / "empty").mkdir()
    assert "no file to read" in refused(forks, exported(), tmp_path / "empty", *out)
    assert "there is no file" in refused(forks, exported(), tmp_path / "absent.csv", *out)
    cases = write_folder(tmp_path / "cases")
    (cases / "d.csv").write_text("id,note\n1,cough\n")
    assert "d.csv has no column 'text'" in refused(forks, exported(), cases, *out)
    (cases / "d.csv").write_text('id,text\n1,"cough\n2,rash\n')
    assert "check the quotation marks" in refused(forks, exported(), cases, *out)
    (cases / "d.csv").unlink()
    content = (cases / "c.parquet").read_bytes()
    (cases / "c.parquet").write_bytes(content[:60])
    assert "c.parquet is not a Parquet file" in refused(forks, exported(), cases, *out)
    (cases / "c.parquet").write_bytes(content[:8] + bytes(len(content) // 2) + content[8 + len(content) // 2 :])
    assert "c.parquet is" in refused(forks, exported(), cases, *out)
    (tmp_path / "bad.csv").write_text("id,text\n1,\n")
    assert "no case to decide on" in refused(forks, exported(), tmp_path / "bad.csv", *out)


def test_options_of_the_other_kind_of_output_are_refused(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("id,text\n1,cough\n")
    cases, out = tmp_path / "cases.csv", tmp_path / "out"
    assert "give its name as --out" in refused(forks, exported(), cases, "--resume", "--out", tmp_path / "x.jsonl")
    assert "give a folder as --out" in refused(forks, exported(), tmp_path, "--out", tmp_path / "x.jsonl")
    assert "--strict is for a single file" in refused(forks, exported(), cases, "--out", out, "--strict")
    assert "read only once" in refused(forks, exported(), "-", "--out", out)
    assert "give --ray too" in refused(forks, exported(), cases, "--out", out, "--address", "auto")
    assert "'parquet', " in refused(forks, exported(), cases, "--out", out, "--format", "avro")


# ---- The pieces


def test_a_frame_is_decided_row_by_row() -> None:
    decider = Decider(exported())
    frame = pd.DataFrame(rows(0, 5))
    frame.loc[2, "text"] = None
    found = decider(frame)
    assert list(found["id"]) == list(frame["id"])
    assert list(found["error"].isna()) == [True, True, False, True, True]
    assert all(found.loc[2, name] is None for name in ("predicted_label", "probabilities", "deferred", "tokens"))
    (alone,) = Predictor.load(exported()).predict([record_of(rows(4, 5)[0])])
    assert found["predicted_label"][4] == alone.predicted_label
    assert found["rationale"][4] == alone.rationale
    with pytest.raises(DataError, match="no column 'id' of ids"):
        decider(frame.drop(columns="id"))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 9), st.sets(st.integers(0, 9)))
def test_chunks_hold_each_row_that_is_not_left_out_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], size: int, leave_out: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    ids = []
    files = []
    for file, number in enumerate(sizes):
        own = [f"{file}-{index}" for index in range(number)]
        (folder / f"{file}.csv").write_text("id,text\n" + "".join(f"{id},cough\n" for id in own))
        files.append(InputFile(f"{file}.csv", "", number))
        ids += own
    source = BatchInput(str(folder), Cases(folder), Patience(0))
    found = {chunk.number: [row.id for row in chunk.rows] for chunk in source.chunks(files, size, leave_out)}
    expected = {start // size: ids[start : start + size] for start in range(0, len(ids), size)}
    assert found == {number: part for number, part in expected.items() if number not in leave_out}


def test_a_file_that_changes_while_it_is_read_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,cough\n2,rash\n")
    source = BatchInput(str(tmp_path), Cases(tmp_path), Patience(0))
    with pytest.raises(DataError, match=r"a\.csv has 2 rows, 3 before"):
        list(source.chunks([InputFile("a.csv", "", 3)], 2, ()))


@given(st.lists(st.text(max_size=2), max_size=60))
def test_repeated_ids_are_those_that_counting_finds(ids: list[str]) -> None:
    with RepeatedIds() as found:
        for row, id in enumerate(ids):
            found.add(id, row)
        pairs = list(found.pairs())
    assert all(ids[first] == ids[again] and first < again for first, again in pairs)
    assert len(pairs) == sum(number - 1 for number in Counter(ids).values())


def test_outcomes_of_bad_rows_stay_in_their_place() -> None:
    given_rows: list[Any] = [Undecided("x", "bad"), *map(record_of, rows(0, 2)), Undecided("y", "bad")]
    found = Decider(exported()).outcomes(given_rows)
    assert [outcome.id for outcome in found] == ["x", "case-0", "case-1", "y"]


def test_a_worker_takes_a_gpu_that_the_user_left_visible() -> None:
    assert [visible_gpu(index, None) for index in (0, 1)] == ["0", "1"]
    assert [visible_gpu(index, "2, GPU-5e") for index in (0, 1)] == ["2", "GPU-5e"]


def test_workers_follow_from_cores_and_memory() -> None:
    gigabyte = 10**9
    assert workers_for(250_000_000, 2, 24 * gigabyte) == 2
    assert workers_for(250_000_000, 64, 24 * gigabyte) == 15  # 0.8 x 24 / (0.5 + 3 x 0.25)
    assert workers_for(3 * gigabyte, 64, 4 * gigabyte) == 1
    assert workers_for(0, 8, 100 * PROCESS) == 8

"""The teacher, its gates and the editor, against a real server; killed at any point it loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from llm_server import BAD_RATIONALES, filled, running
from llm_toy import LABELS, at, marked, r2d, write_calls
from narrowing import present

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.defaults import CALL_LOG
from reason2decide.llm.answers import decided_schema
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.log import CallLog
from reason2decide.llm.client.structured import strict_schema
from reason2decide.llm.prompt_files import load_prompt, prompt_names
from reason2decide.llm.teach.gates import GATES


def entry(path, source):
    return tomllib.loads((path / "dataset.toml").read_text("utf-8"))["provenance"]["rationales"][source]


def failures(path):
    return [json.loads(line) for line in (path / "rationale_failures.jsonl").read_text("utf-8").splitlines()]


# --- the teacher ------------------------------------------------------------------------------------------------------


def test_rationales_for_every_split_with_their_provenance(server, calls, tmp_path):
    out = tmp_path / "taught"
    ended = r2d("rationalize", calls.path, "--source", "teacher", "--out", out, *at(server), "--price-output", 1)
    assert ended.code == 0, ended.err
    assert "48 calls" in ended.err and "cost" in ended.err and "wrote 48 rationales" in ended.err
    taught = DatasetFolder.open(out)
    taught.verify()
    assert taught.info.rationale_sources == ("nurse", "teacher") and taught.info.provenance["by"] == "tests"
    with CallLog(calls.path / CALL_LOG) as log:
        for split in ("train", "validation", "test"):
            for old, new in zip(calls.split(split), taught.split(split), strict=True):
                first_words = " ".join(old.text.split()[:6])
                assert new.rationales == {**old.rationales, "teacher": f"It has {first_words}, which decides."}
                by = new.meta["provenance"]["teacher"]
                assert by["model"] == "rules-2026" and by["prompt"] == "rationalize/2"
                assert present(log.find(by["key"])).created == by["created"]
                assert replace(new, rationales=old.rationales, meta=old.meta) == old
    told = entry(out, "teacher")
    assert told["written"] == 48 and told["host"] == f"127.0.0.1:{server.port}" and told["model"] == "rules"
    assert set(told["not_written"]) == set(GATES) and not any(told["not_written"].values())
    assert told["served_models"] == ["rules-2026"] and told["first_answer"] <= told["last_answer"]
    assert failures(out) == [] and told["sampling"] == {"temperature": 0.0, "max_tokens": 1024}
    # Again: nothing is sent, and the same files come out.
    counted = server.counts()["total"]
    ended = r2d("rationalize", calls.path, "--source", "teacher", "--out", out, *at(server), "--force")
    assert ended.code == 0 and "0 calls" in ended.err and server.counts()["total"] == counted
    assert DatasetFolder.open(out).hashes == taught.hashes


@pytest.mark.parametrize("gate", BAD_RATIONALES)
def test_what_fails_a_gate_is_listed_and_not_written(server, tmp_path, gate):
    data = write_calls(tmp_path / "data", marked(f"teacher {gate}", every=4))
    ended = r2d("rationalize", data.path, "--out", tmp_path / "out", *at(server), "--split", "test", "--split", "train")
    assert ended.code == 0, ended.err
    told = entry(tmp_path / "out", "llm")
    assert told["written"] == 27 and {name: count for name, count in told["not_written"].items() if count} == {gate: 9}
    rows = failures(tmp_path / "out")
    assert {row["gate"] for row in rows} == {gate} and {row["split"] for row in rows} == {"train", "test"}
    assert all(int(row["id"][1:]) % 4 == 0 and set(row) == {"id", "split", "gate"} for row in rows)
    out = DatasetFolder.open(tmp_path / "out")
    assert [("llm" in own.rationales) for own in out.split("test")] == [
        int(own.id[1:]) % 4 > 0 for own in out.split("test")
    ]
    assert list(out.split("validation")) == list(data.split("validation"))
    # What is wrong with a rationale is said without it.
    assert BAD_RATIONALES[gate].strip()[:20] not in ended.err or gate == "empty"


def test_calls_that_fail_are_listed_and_tried_again(server, calls, tmp_path):
    bad = [{"kind": "refusal"}, {"kind": "length"}]
    server.faults(queue=bad)
    run = ("rationalize", calls.path, "--out", tmp_path / "out", *at(server), "--split", "test")
    ended = r2d(*run)
    assert ended.code == 1 and "2 calls have no answer: " in ended.err
    told = entry(tmp_path / "out", "llm")
    assert told["failed_calls"] == {"refused": 1, "cut_off": 1} and told["written"] == 10
    assert sorted(row["failure"] for row in failures(tmp_path / "out")) == ["cut_off", "refused"]
    # What was refused is asked for again; what was cut off at temperature 0 is not, unless it may be longer.
    ended = r2d(*run, "--force")
    assert ended.code == 1 and "1 calls to" in ended.err and "1 calls have no answer: cut_off 1" in ended.err
    assert entry(tmp_path / "out", "llm")["written"] == 11
    ended = r2d(*run, "--force", "--max-tokens", 2048)
    assert ended.code == 0 and "1 calls to" in ended.err
    assert entry(tmp_path / "out", "llm")["written"] == 12


def test_a_teacher_that_is_not_told_the_label(server, calls, tmp_path):
    run = ("rationalize", calls.path, "--source", "own", *at(server), "--without-label")
    ended = r2d(*run, "--out", tmp_path / "all")
    assert ended.code == 0, ended.err
    taught = DatasetFolder.open(tmp_path / "all")
    records = [own for split in taught.hashes for own in taught.split(split)]
    expected = {own.id: filled(strict_schema(decided_schema(LABELS.values)), own.text)["label"] for own in records}
    assert {own.id: own.meta["teacher_labels"]["own"] for own in records} == expected
    wrong = sum(expected[own.id] != own.label for own in records)
    assert wrong == 10  # every fifth of 48
    told = entry(tmp_path / "all", "own")
    assert told["written"] == 48 and told["teacher_accuracy"]["value"] == pytest.approx(38 / 48)
    assert told["teacher_accuracy"]["low"] < 38 / 48 < told["teacher_accuracy"]["high"]
    assert "teacher_accuracy 0.7917 (95 % interval" in ended.out
    # The same answers, of which only those of a teacher who is right are kept.
    counted = server.counts()["total"]
    assert r2d(*run, "--out", tmp_path / "right", "--only-right").code == 0
    assert server.counts()["total"] == counted
    told = entry(tmp_path / "right", "own")
    assert told["written"] == 38 and told["not_written"]["teacher_wrong"] == 10
    for own in (own for split in taught.hashes for own in DatasetFolder.open(tmp_path / "right").split(split)):
        assert ("own" in own.rationales) == (expected[own.id] == own.label) == ("provenance" in own.meta)
        assert own.meta["teacher_labels"]["own"] == expected[own.id]


def test_choices_of_a_records_own(server, tmp_path):
    def change(own):
        return replace(own, choices=(own.label, f"other {own.id}"), rationales={"nurse": "x"})

    data = write_calls(tmp_path / "data", change, labels=type(LABELS)())
    ended = r2d("rationalize", data.path, "--out", tmp_path / "out", *at(server), "--without-label")
    assert ended.code == 0, ended.err
    for own in DatasetFolder.open(tmp_path / "out").split("train"):
        assert own.meta["teacher_labels"]["llm"] in present(own.choices)


# --- the editor -------------------------------------------------------------------------------------------------------


def test_notes_are_refined_and_additions_flagged(server, tmp_path):
    data = write_calls(tmp_path / "data", marked("editor adds", every=6))
    run = ("refine", data.path, "--from", "nurse", "--to", "plain", *at(server))
    ended = r2d(*run, "--out", tmp_path / "out")
    assert ended.code == 0 and "flagged 8" in ended.out, ended.err
    out = DatasetFolder.open(tmp_path / "out")
    for split in out.hashes:
        for own in out.split(split):
            index = int(own.id[1:])
            assert ("plain" in own.rationales) == (index % 3 == 0)
            flags = {"plain": {"words": ["pneumonia"], "numbers": ["40"]}} if index % 6 == 0 else None
            found = own.meta.get("refine_flags")
            if found is not None and "1" in found["plain"]["numbers"]:
                found["plain"]["numbers"].remove("1")  # not in every text
            assert found == flags
    assert entry(tmp_path / "out", "plain")["flagged"] == 8 and server.counts()["total"] == 16
    ended = r2d(*run, "--out", tmp_path / "strict", "--drop-flagged")
    told = entry(tmp_path / "strict", "plain")
    assert told["written"] == 8 and told["not_written"]["added"] == 8 and server.counts()["total"] == 16


@pytest.mark.parametrize(("does", "gate"), [("turns", "turned"), ("drops", "dropped")])
def test_an_editor_that_changes_what_the_note_says(server, tmp_path, does, gate):
    data = write_calls(tmp_path / "data", marked(f"editor {does}", every=6))
    ended = r2d("refine", data.path, "--from", "nurse", "--to", "plain", "--out", tmp_path / "out", *at(server))
    assert ended.code == 0, ended.err
    told = entry(tmp_path / "out", "plain")
    assert told["written"] == 8 and {name: n for name, n in told["not_written"].items() if n} == {gate: 8}


def test_what_a_note_did_itself_is_not_held_against_its_rewording(server, tmp_path):
    def change(own):
        return replace(own, rationales={"nurse": "fever ___, no home care, call an ambulance"})

    data = write_calls(tmp_path / "data", change)
    assert r2d("refine", data.path, "--to", "plain", "--out", tmp_path / "out", *at(server)).code == 0
    assert entry(tmp_path / "out", "plain")["written"] == 48


# --- what is refused, and what is said before -------------------------------------------------------------------------


def test_a_dry_run_says_and_leaves_nothing(server, calls, tmp_path):
    prices = ("--price-input", 2, "--price-output", 10)
    ended = r2d("rationalize", calls.path, "--out", tmp_path / "out", *at(server), *prices, "--dry-run")
    assert ended.code == 0 and "to send: 48 calls" in ended.err and "cost about 0." in ended.err
    assert list(tmp_path.iterdir()) == [] and server.counts()["total"] == 0


def test_a_folder_that_is_no_dataset_gets_no_log(server, tmp_path):
    (tmp_path / "notes").mkdir()
    for folder in (tmp_path / "notes", tmp_path / "nowhere"):
        for more in ((), ("--dry-run",)):
            ended = r2d("rationalize", folder, "--out", tmp_path / "out", *at(server), *more)
            assert ended.code == 2 and "dataset" in ended.err
    assert list(tmp_path.rglob("*")) == [tmp_path / "notes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rationalize", "--source", "nurse"), "already has rationales of source 'nurse'"),
        (("rationalize", "--split", "dev"), "has no split 'dev'"),
        (("rationalize", "--only-right"), "needs --without-label"),
        (("rationalize", "--max-cost", "1"), "needs prices"),
        (("refine", "--from", "doctor"), "has no rationales of source 'doctor'"),
        (("rationalize", "--model", "gpt"), "does not know this model"),
        (("rationalize", "--base-url", "http://api.example.org/v1"), "patient text must not leave the building"),
        (("rationalize", "--api-key-variable", "NO_SUCH_KEY"), "NO_SUCH_KEY"),
        (("rationalize", "--max-calls", "5"), "budget is spent, with 43 calls left"),
        (("refine", "--prompts", "{prompts}"), "must have the package's slots"),
    ],
)
def test_mistakes_end_with_one_line_and_no_dataset(server, calls, tmp_path, arguments, message):
    (tmp_path / "refine.toml").write_text('name = "refine"\nversion = "2"\nsystem = ""\nuser = "{text}"\n')
    command, *rest = (word.format(prompts=tmp_path) for word in arguments)
    ended = r2d(command, calls.path, "--out", tmp_path / "out", *at(server), *rest)
    assert ended.code == 2 and message in ended.err.replace("\n", " "), ended.err
    assert not (tmp_path / "out").exists() and "yo with" not in ended.err


def test_nothing_fit_is_an_error_and_no_dataset(server, tmp_path):
    data = write_calls(tmp_path / "data", marked("teacher refusal"))
    ended = r2d("rationalize", data.path, "--out", tmp_path / "out", *at(server))
    assert ended.code == 2 and "no rationale of source 'llm' could be written: refusal 48" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_column_in_the_way_is_named(server, tmp_path):
    data = write_calls(tmp_path / "data", lambda own: replace(own, meta={"provenance": "ward 3"}))
    ended = r2d("rationalize", data.path, "--out", tmp_path / "out", *at(server))
    assert ended.code == 2 and "rename the column" in ended.err and not (tmp_path / "out").exists()


def test_prompts_are_printed_and_replaced_by_ones_own(server, calls, tmp_path):
    ended = r2d("llm", "prompts")
    assert ended.code == 0 and all(f"name: {name}\nversion: " in ended.out for name in prompt_names())
    ended = r2d("llm", "prompts", "rationalize")
    assert load_prompt("rationalize").user in ended.out and "name: refine" not in ended.out
    assert r2d("llm", "prompts", "none").code == 2
    text = (Path(__file__).parents[1] / "src/reason2decide/llm/prompts/rationalize.toml").read_text("utf-8")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rationalize.toml").write_text(text.replace('"2"', '"ward-2"').replace("whole", "short"))
    run = ("rationalize", calls.path, "--out", tmp_path / "out", *at(server), "--prompts", tmp_path / "own")
    assert r2d(*run).code == 0
    assert entry(tmp_path / "out", "llm")["prompt"] == "rationalize/ward-2"
    assert "in short sentences" in r2d("llm", "prompts", "rationalize", "--prompts", tmp_path / "own").out


def test_any_setting_is_sent_and_makes_another_call(server, calls, tmp_path):
    run = ("rationalize", calls.path, "--split", "test", *at(server))
    drawn = ("--set", "temperature=0.8", "--set", "seed=3", "--set", "grammar=none", "--set", 'stop=["\\n"]')
    assert r2d(*run, "--out", tmp_path / "drawn", *drawn).code == 0
    sampling = entry(tmp_path / "drawn", "llm")["sampling"]
    assert sampling == {"temperature": 0.8, "max_tokens": 1024, "seed": 3, "grammar": "none", "stop": ["\n"]}
    assert r2d(*run, "--out", tmp_path / "greedy").code == 0 and server.counts()["total"] == 24
    for wrong, said in (("temperature", "expected NAME=VALUE"), ("stream=false", "cannot be given")):
        ended = r2d(*run, "--out", tmp_path / "no", "--set", wrong)
        assert ended.code == 2 and said in ended.err and not (tmp_path / "no").exists()


def test_no_answer_at_all_is_no_dataset(server, calls, tmp_path):
    server.faults(always={"kind": "refusal"})
    run = ("rationalize", calls.path, "--out", tmp_path / "out", *at(server), "--give-up-after", 100)
    ended = r2d(*run, "--split", "test")
    assert ended.code == 1 and "no call was answered, and nothing was written: refused 12" in ended.err
    assert not (tmp_path / "out").exists()
    ended = r2d(*run[:-1], 5)
    assert ended.code == 2 and "the first 5 calls failed in the same way: the model or the server's filter" in ended.err


def test_settings_can_be_left_to_the_server(server, calls, tmp_path):
    run = ("rationalize", calls.path, "--out", tmp_path / "out", *at(server), "--split", "test", "--server-settings")
    assert r2d(*run).code == 0 and entry(tmp_path / "out", "llm")["sampling"] == {}


# --- killed -----------------------------------------------------------------------------------------------------------

CODE = "import sys; sys.path.insert(0, {tests!r}); import llm_toy; from reason2decide.cli import main; main()"


def test_killed_at_random_points_nothing_is_lost_or_sent_twice(tmp_path):
    """The program itself, killed at four points that the server's count of calls decides."""
    data = write_calls(tmp_path / "data", counts=(160, 20, 20))
    rng = random.Random(5)
    with running(delay=0.03) as server:
        command = [sys.executable, "-c", CODE.format(tests=str(Path(__file__).parent)), "rationalize", str(data.path)]
        command += ["--out", str(tmp_path / "out"), *map(str, at(server))]
        kills = 0
        for target in sorted(rng.sample(range(5, 150), 4)):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 30
            while server.counts()["total"] < target and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            kills += 1
            assert not (tmp_path / "out").exists()
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        counts = server.counts()
    assert len(counts["calls"]) == 200 and max(counts["calls"].values()) <= 1 + kills
    assert counts["total"] - 200 <= 4 * kills  # those in flight at a kill, and no other
    out = DatasetFolder.open(tmp_path / "out")
    assert all("llm" in own.rationales for split in out.hashes for own in out.split(split))
    assert [own.id for split in out.hashes for own in out.split(split)] == [f"r{i}" for i in range(200)]


def test_the_client_is_told_of_leaving_this_machine(calls, tmp_path, capsys):
    from reason2decide.llm.teach.rationalize import Teacher
    from reason2decide.llm.teach.source_writing import write_source

    with CallLog(tmp_path / "log.sqlite") as log:
        client = Client(Endpoint("https://llm.example.org/v1", "m", allow_remote=True), log)
        assert write_source(client, calls.path, tmp_path / "out", Teacher("llm"), dry_run=True) is None
    assert "leave this machine: they are sent to llm.example.org" in capsys.readouterr().err

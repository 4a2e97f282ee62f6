"""The log of calls: private, shared by processes, whole after any kill."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import llm_child
import pytest
from llm_asking import BOUND, answers, ask, client_for, several
from llm_server import plain_answer

from reason2decide.llm.client.calls import Call
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.log import CallLog, CallLogError


def test_the_log_is_private_and_says_what_it_is(tmp_path, server):
    path = tmp_path / "new" / "calls.sqlite"
    with CallLog(path) as log:
        answers(client_for(server, log), [Call("a", ask("x").messages, prompt_version="ping/1")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with contextlib.closing(sqlite3.connect(path)) as raw:
        row = raw.execute("SELECT prompt_version, model, text, input_tokens FROM answers").fetchone()
        assert row == ("ping/1", "rules", plain_answer(ask("x").messages), 0)
        raw.execute("PRAGMA user_version = 7")
    with pytest.raises(CallLogError, match="has log format 7"):
        CallLog(path)
    other = tmp_path / "notes.csv"
    other.write_text("id,text\n" * 1000)
    with pytest.raises(CallLogError, match="cannot be used"):
        CallLog(other)


def test_two_processes_share_a_log(server, tmp_path):
    server.faults(always={"kind": "slow", "seconds": 0.005})
    path = tmp_path / "calls.sqlite"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reason2decide.llm.client.sender"])
    both = [context.Process(target=llm_child.answer_all, args=(server.base_url, path, 200)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(BOUND)
    assert [process.exitcode for process in both] == [0, 0]
    with contextlib.closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT count(*), count(DISTINCT key) FROM answers").fetchone() == (200, 200)


def test_killed_at_twenty_points_every_call_is_answered_once(server, tmp_path):
    server.faults(always={"kind": "slow", "seconds": 0.02})
    path, seed = tmp_path / "calls.sqlite", random.randrange(1 << 32)
    points = sorted(random.Random(seed).sample(range(1, 350), 20))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reason2decide.llm.client.sender"])
    for point in points:
        process = context.Process(target=llm_child.answer_all, args=(server.base_url, path, 500))
        process.start()
        limit = time.monotonic() + BOUND
        while len(server.counts()["calls"]) < point and process.is_alive() and time.monotonic() < limit:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"seed {seed}"
    process = context.Process(target=llm_child.answer_all, args=(server.base_url, path, 500))
    process.start()
    process.join(BOUND)
    assert process.exitcode == 0, f"seed {seed}"
    counts = server.counts()["calls"]
    assert len(counts) == 500
    assert sum(count - 1 for count in counts.values()) <= 20 * llm_child.CONCURRENCY, f"seed {seed}"
    with contextlib.closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT count(*) FROM answers").fetchone() == (500,)
    # And nothing is left to do.
    with CallLog(path) as log:
        found = answers(Client(Endpoint(server.base_url, "rules"), log), llm_child.calls(500))
    assert all(answer.cached for answer in found.values()) and server.counts()["calls"] == counts


def test_ctrl_c_stops_at_once_and_loses_nothing_finished(server, tmp_path):
    server.faults(queue=[None] * 8, always={"kind": "slow", "seconds": 30})
    path = tmp_path / "calls.sqlite"
    code = "import sys, pathlib, llm_child; llm_child.answer_all(sys.argv[1], pathlib.Path(sys.argv[2]), 100)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.base_url, str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(llm_child.__file__).parent)},
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, SIGINT comes ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    limit = time.monotonic() + BOUND
    while server.counts()["total"] < 8 + llm_child.CONCURRENCY and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=BOUND)  # far below the 30 s of an answer
    assert "KeyboardInterrupt" in stderr
    with contextlib.closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT count(*) FROM answers").fetchone() == (8,)


def test_leaving_the_iterator_early_keeps_what_was_answered(server, log):
    client = client_for(server, log)
    iterator = client.run(several(50))
    next(iterator)
    iterator.close()
    sent = server.counts()["total"]
    assert sent < 50
    found = answers(client, several(50))
    assert sum(answer.cached for answer in found.values()) == sent and server.counts()["total"] == 50

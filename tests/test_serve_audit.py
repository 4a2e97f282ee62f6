"""The audit record: append-only for whoever asks, without text, complete after closing, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from reason2decide.serve import audit
from reason2decide.serve.audit import AuditError, AuditLog, AuditUnavailable

NOTE = "MRN 4711 Miller, chest pain since noon"
ENTRY: dict[str, Any] = {"caller": "ehr", "endpoint": "/v1/decisions", "status": 200, "latency_ms": 12.5}
FEEDBACK = {"caller": "ehr", "service": "m", "card": "c", "outcome": "overridden", "outcome_at": "2026-01-01T00:00:00Z"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.sqlite"


@contextlib.contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection


def rows(path: Path, table: str = "requests") -> list[dict[str, Any]]:
    with connected(path) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY id")]


def insert_old(path: Path, days: float, caller: str = "old") -> None:
    at = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    with connected(path) as connection, connection:
        connection.execute(
            "INSERT INTO requests (at, caller, endpoint, latency_ms, status) VALUES (?, ?, '/', 1, 200)", (at, caller)
        )
        connection.execute(
            "INSERT INTO feedback (at, caller, service, card, outcome, outcome_at) VALUES (?, ?, 'm', 'c', 'x', 'y')",
            (at, caller),
        )


def test_everything_is_written_on_closing(path: Path) -> None:
    with AuditLog(path, 30) as log:
        for i in range(2000):
            log.record(
                **ENTRY, model="m", model_hash="ab", text=f"{NOTE} {i}", label="home care", confidence=0.75, card=str(i)
            )
        log.feedback(**FEEDBACK, reason_system="urn:x", reason_code="more-urgent")
    found = rows(path)
    assert [row["card"] for row in found] == [str(i) for i in range(2000)]
    first = found[0]
    assert {key: first[key] for key in ENTRY} == ENTRY
    assert (first["model"], first["model_hash"], first["label"], first["confidence"]) == ("m", "ab", "home care", 0.75)
    assert abs(datetime.fromisoformat(first["at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    (told,) = rows(path, "feedback")
    assert {key: told[key] for key in FEEDBACK} == FEEDBACK
    assert (told["reason_system"], told["reason_code"]) == ("urn:x", "more-urgent")


def test_a_text_stands_as_a_keyed_hash_only(path: Path, tmp_path: Path) -> None:
    with AuditLog(path, 30) as log:
        log.record(**ENTRY, text=NOTE)
        log.record(**ENTRY, text=NOTE)
        log.record(**ENTRY, text=NOTE + "!")
        log.record(**ENTRY)
        own = log.input_hash(NOTE)
    with AuditLog(tmp_path / "other.sqlite", 30) as other:
        assert other.input_hash(NOTE) != own
    hashes = [row["input_hash"] for row in rows(path)]
    assert hashes[0] == hashes[1] == own and len(own) == 64
    assert hashes[2] != own and hashes[3] is None
    assert own != hashlib.sha256(NOTE.encode()).hexdigest()
    key = (tmp_path / "audit.sqlite.key").read_text()
    assert own != hashlib.sha256((key + NOTE).encode()).hexdigest()
    for file in tmp_path.glob("audit.sqlite*"):
        assert b"Miller" not in file.read_bytes()
    assert key.encode() not in path.read_bytes() and bytes.fromhex(key) not in path.read_bytes()


def test_files_are_for_the_owner_and_the_key_stays(path: Path) -> None:
    with AuditLog(path, 30) as log:
        before = log.input_hash(NOTE)
    for file in (path, path.with_name("audit.sqlite.key")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with AuditLog(path, 30) as log:
        assert log.input_hash(NOTE) == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET caller = 'somebody'",
        "UPDATE OR REPLACE {} SET id = 2 WHERE id = 1",
        "DELETE FROM {}",
        "DELETE FROM {} WHERE id = 1",
        "REPLACE INTO {0} SELECT * FROM {0} WHERE id = 1",
        "INSERT OR REPLACE INTO {0} SELECT * FROM {0}",
    ],
)
@pytest.mark.parametrize("table", ["requests", "feedback"])
def test_young_rows_can_be_neither_changed_nor_deleted(path: Path, table: str, statement: str) -> None:
    with AuditLog(path, 30) as log:
        for _ in range(2):
            log.record(**ENTRY)
            log.feedback(**FEEDBACK)
    before = rows(path, table)
    with connected(path) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"), connection:
        connection.execute(statement.format(table))
    assert rows(path, table) == before and len(before) == 2


def test_retention_deletes_old_rows_only(path: Path) -> None:
    with AuditLog(path, 30) as log:
        log.record(**ENTRY)
    insert_old(path, 30.01, "expired")
    insert_old(path, 29.99, "kept")
    with AuditLog(path, 30):
        pass
    assert [row["caller"] for row in rows(path)] == ["ehr", "kept"]
    assert [row["caller"] for row in rows(path, "feedback")] == ["kept"]
    assert b"expired" not in path.read_bytes()  # overwritten, not only unlinked
    with AuditLog(path, 20) as log:  # a shorter retention
        log.record(**ENTRY)
    assert [row["caller"] for row in rows(path)] == ["ehr", "ehr"]


def test_a_longer_retention_protects_what_a_shorter_one_did_not(path: Path) -> None:
    AuditLog(path, 10).close()
    AuditLog(path, 100).close()
    insert_old(path, 50)
    with connected(path) as connection, pytest.raises(sqlite3.IntegrityError), connection:
        connection.execute("DELETE FROM requests")


def test_old_rows_go_while_the_server_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PURGE_SECONDS", 0.05)
    with AuditLog(path, 30):
        insert_old(path, 31)
        insert_old(path, 0, "new")
        until = time.monotonic() + 10
        while len(rows(path)) > 1 and time.monotonic() < until:
            time.sleep(0.02)
        assert [row["caller"] for row in rows(path)] == ["new"]


def test_a_date_of_another_form_is_refused(path: Path) -> None:
    AuditLog(path, 30).close()
    with connected(path) as connection, pytest.raises(sqlite3.IntegrityError, match="CHECK"), connection:
        connection.execute(
            "INSERT INTO requests (at, caller, endpoint, latency_ms, status) VALUES ('9 May', 'x', '/', 1, 200)"
        )


def test_tokens_are_used_once_also_after_a_restart_and_by_several_servers(path: Path) -> None:
    soon = int(time.time()) + 60

    async def use(log: AuditLog, key: str, expires: int = soon) -> bool:
        return await log.use_once(key, expires)

    with AuditLog(path, 30) as log, AuditLog(path, 30) as other:
        assert asyncio.run(use(log, "a"))
        assert not asyncio.run(use(log, "a"))
        assert not asyncio.run(use(other, "a"))
        assert asyncio.run(use(other, "b"))
        assert asyncio.run(use(log, "past", int(time.time()) - 5))
    with AuditLog(path, 30) as log:
        assert not asyncio.run(use(log, "a")) and not asyncio.run(use(log, "b"))
        assert asyncio.run(use(log, "past"))  # expired keys are forgotten


def test_one_of_many_uses_at_once_is_the_first(path: Path) -> None:
    async def use(log: AuditLog) -> list[bool]:
        return await asyncio.gather(*(log.use_once("k", int(time.time()) + 60) for _ in range(200)))

    with AuditLog(path, 30) as log:
        assert sum(asyncio.run(use(log))) == 1


def test_a_locked_disk_blocks_nobody_and_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(audit, "WAITING_ROWS", 100)
    with AuditLog(path, 30) as log, connected(path) as locker:
        locker.execute("BEGIN IMMEDIATE")
        log.record(**ENTRY, text=NOTE)
        until = time.monotonic() + 10
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.01)
        taken = 0
        with pytest.raises(AuditUnavailable):
            for _ in range(101):
                log.record(**ENTRY, text=NOTE)
                taken += 1
        with pytest.raises(AuditUnavailable):
            asyncio.run(_use(log))
        locker.rollback()
    assert taken == 100
    assert len(rows(path)) == 101
    assert "cannot be written" in caplog.text and "Miller" not in caplog.text


async def _use(log: AuditLog) -> bool:
    return await log.use_once("k", int(time.time()) + 60)


def test_who_waits_for_an_answer_is_told_that_there_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.01)
    with AuditLog(path, 30) as log:
        with connected(path) as locker:
            locker.execute("BEGIN IMMEDIATE")
            with pytest.raises(AuditUnavailable, match="cannot be written"):
                asyncio.run(_use(log))
            locker.rollback()
        assert asyncio.run(_use(log))  # a refused use is no use


def test_closing_gives_up_on_a_disk_that_never_comes_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(audit, "CLOSE_SECONDS", 0.2)
    log = AuditLog(path, 30)
    with connected(path) as locker:
        locker.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            log.record(**ENTRY)
        log.close()
        locker.rollback()
    assert "never written" in caplog.text
    assert not any(thread.name == "audit" for thread in threading.enumerate())


# ---- A row is written, or its caller is told


async def _written(log: AuditLog) -> bool:
    return await log.written(log.record(**ENTRY))


def test_a_row_is_on_the_disk_when_its_caller_goes_on(path: Path) -> None:
    with AuditLog(path, 30) as log:
        assert asyncio.run(_written(log))
        assert len(rows(path)) == 1


def test_a_full_disk_is_told_and_recovers_by_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(audit, "ANSWER_SECONDS", 0.3)
    with AuditLog(path, 30) as log:
        (pages,) = log._connection.execute("PRAGMA page_count").fetchone()
        log._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own "disk is full"
        with pytest.raises(AuditUnavailable):
            for _ in range(1000):
                asyncio.run(_written(log))
        full = len(rows(path))
        for _ in range(20):  # a smaller row might fit into what is left of a page
            assert not log.works
            time.sleep(0.01)
        log._connection.execute("PRAGMA max_page_count = 1000000")
        time.sleep(0.5)
        assert asyncio.run(_written(log))
    assert len(rows(path)) == full + 1 and log.unwritten == 0  # what was refused is not written later


@pytest.mark.parametrize("replaced", [False, True])
def test_a_deleted_or_replaced_file_is_noticed(
    replaced: bool, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite would go on writing to the file that is gone."""
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(audit, "ANSWER_SECONDS", 0.3)
    with AuditLog(path, 30) as log:
        assert asyncio.run(_written(log))
        path.unlink()
        if replaced:
            path.write_bytes(b"")
        with pytest.raises(AuditUnavailable):
            asyncio.run(_written(log))
        assert not log.works and "deleted or replaced" in caplog.text


# ---- Clocks that jump


def _jumped(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    real = time.time
    monkeypatch.setattr(audit.time, "time", lambda: real() + days * 86_400)


def test_a_clock_that_jumps_while_the_server_runs_deletes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PURGE_SECONDS", 0.05)
    with AuditLog(path, 30) as log:
        insert_old(path, 29)
        insert_old(path, 0)
        _jumped(monkeypatch, 3650)
        time.sleep(0.5)
        assert len(rows(path)) == 2
        assert log.works


def test_a_clock_that_jumped_before_the_start_deletes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AuditLog(path, 30).close()
    for days in range(20):
        insert_old(path, days)
    _jumped(monkeypatch, 3650)
    with AuditLog(path, 30):
        assert len(rows(path)) == 20  # by the newest row nothing is old


def test_a_week_of_rows_goes_at_a_time(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So that a wrong clock, which new rows have too by now, costs little before somebody sees the log."""
    AuditLog(path, 30).close()
    for days in (0, *range(31, 51)):
        insert_old(path, days)
    AuditLog(path, 30).close()
    assert len(rows(path)) == 1 + 12  # of 50 to 43.0 days, eight
    assert "8 rows of requests before" in caplog.text
    AuditLog(path, 30).close()
    assert len(rows(path)) == 1 + 4


def test_an_empty_key_file_is_told_what_it_is(path: Path) -> None:
    AuditLog(path, 30).close()
    path.with_name(path.name + ".key").write_bytes(b"")
    with pytest.raises(AuditError, match=r"is an empty file where the key .* should be.*Restore the key file"):
        AuditLog(path, 30)


def test_half_a_character_does_not_stop_the_record(path: Path) -> None:
    with AuditLog(path, 30) as log:
        log.record(**{**ENTRY, "caller": "a\ud800"}, text="\ud800")
        log.record(**ENTRY)
    assert [row["caller"] for row in rows(path)] == ["a?", "ehr"]


def test_what_is_no_audit_record_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "notes.txt"
    wrong.write_text("not a database, but long enough to be taken for a damaged one" * 20)
    (tmp_path / "notes.txt.key").write_text("00" * 32)
    with pytest.raises(AuditError, match=r"cannot be used.*give another file"):
        AuditLog(wrong, 30)
    newer = tmp_path / "newer.sqlite"
    AuditLog(newer, 30).close()
    with connected(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(AuditError, match="format 99"):
        AuditLog(newer, 30)
    with pytest.raises(AuditError, match="give 1 or more"):
        AuditLog(tmp_path / "x.sqlite", 0)
    with pytest.raises(AuditError, match="cannot be used"):
        AuditLog(wrong / "audit.sqlite", 30)


def test_a_record_of_the_first_format_goes_on(path: Path) -> None:
    """Its rows stay as they are, and new ones also say how much of a text was read."""
    with AuditLog(path, 30) as log:
        log.record(caller="before", endpoint="/v1/explain", status=200, latency_ms=1)
    with connected(path) as connection:  # as format 1 was
        connection.executescript(
            "ALTER TABLE requests DROP COLUMN tokens; ALTER TABLE requests DROP COLUMN tokens_read; "
            "PRAGMA user_version = 1"
        )
    with AuditLog(path, 30) as log:
        log.record(caller="after", endpoint="/v1/explain", status=200, latency_ms=1, tokens=9, tokens_read=5)
    assert [(row["caller"], row["tokens"], row["tokens_read"]) for row in rows(path)] == [
        ("before", None, None),
        ("after", 9, 5),
    ]


def test_a_missing_or_damaged_key_is_refused(path: Path) -> None:
    AuditLog(path, 30).close()
    key = path.with_name("audit.sqlite.key")
    kept = key.read_text()
    key.write_text(kept[:-2])
    with pytest.raises(AuditError, match="does not contain the key"):
        AuditLog(path, 30)
    key.unlink()
    with pytest.raises(AuditError, match="Restore the key file"):
        AuditLog(path, 30)
    key.write_text(kept)
    AuditLog(path, 30).close()

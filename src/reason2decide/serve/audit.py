"""An append-only record in SQLite of who had what decided and when, without any text.

Each input is stored as HMAC-SHA256 under a random key of this database, which is in a file next to it: whoever has the
key can find equal texts, and nobody can guess texts from the database alone. The key file is as confidential as a
patient's record, and is not needed to read the rest.

A row is on the disk before its caller is answered: whoever waits for `written` and gets none sends no decision.

Retention trusts no clock alone: rows are old by the earliest of the clock, the clock at start plus the time since, and
the newest row plus a day; and of the oldest, at most a week's rows go at a time. So a clock that jumps deletes little.

The database itself refuses to change any row, or to delete one younger than the retention period. The owner of the
file could remove these triggers: they guard against mistakes and ordinary SQL, not against the owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from reason2decide.errors import Reason2DecideError, UserError
from reason2decide.syntax import storable

FORMAT = 2
WAITING_ROWS = 10_000  # ours: rows that may wait for the disk, a few megabytes
BATCH_ROWS = 500  # ours: rows of one transaction
BUSY_SECONDS = 10.0  # ours: how long a write waits for another process
RETRY_SECONDS = 1.0  # ours: between two attempts to write to a failing disk
ANSWER_SECONDS = 5.0  # ours: the longest that a caller waits for the disk
CLOSE_SECONDS = 10.0  # ours: how long closing waits for the last rows
PURGE_SECONDS = 86_400.0  # a day
DAYS_PER_PURGE = 7  # ours: of the oldest rows, at most

_log = logging.getLogger(__name__)

# Dates are compared as text, so all have this format, in UTC.
_COMMON = (
    "id INTEGER PRIMARY KEY CHECK (id > 0), at TEXT NOT NULL CHECK (at GLOB '????-??-??T??:??:??.???Z'), "
    "caller TEXT NOT NULL"
)
_TABLES = f"""
CREATE TABLE IF NOT EXISTS requests (
    {_COMMON}, endpoint TEXT NOT NULL, model TEXT, model_hash TEXT, input_hash TEXT, label TEXT, confidence REAL,
    latency_ms REAL NOT NULL, status INTEGER NOT NULL, card TEXT, tokens INTEGER, tokens_read INTEGER
);
CREATE TABLE IF NOT EXISTS feedback (
    {_COMMON}, service TEXT NOT NULL, card TEXT NOT NULL, outcome TEXT NOT NULL, reason_system TEXT, reason_code TEXT,
    outcome_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS used_tokens (key TEXT PRIMARY KEY, expires INTEGER NOT NULL);
"""
_KEPT_TABLES = ("requests", "feedback")
_REQUEST = "INSERT INTO requests VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# What an earlier format lacks; new columns come last.
_FROM_FORMAT_1 = "ALTER TABLE requests ADD COLUMN tokens INTEGER; ALTER TABLE requests ADD COLUMN tokens_read INTEGER;"
_FEEDBACK = "INSERT INTO feedback VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)"
# INSERT OR REPLACE deletes the row it replaces without firing the delete trigger, so a third trigger is needed.
_TRIGGERS = """
DROP TRIGGER IF EXISTS {table}_update; DROP TRIGGER IF EXISTS {table}_delete; DROP TRIGGER IF EXISTS {table}_replace;
CREATE TRIGGER {table}_update BEFORE UPDATE ON {table}
    BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;
CREATE TRIGGER {table}_delete BEFORE DELETE ON {table} WHEN OLD.at > {kept_since}
    BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;
CREATE TRIGGER {table}_replace BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;
"""
_KEPT_SINCE = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{} days')"
_USED = "INSERT OR IGNORE INTO used_tokens VALUES (?, ?)"
# Needs more space on the disk than any row, and leaves nothing.
_PROBE = (
    "INSERT INTO used_tokens VALUES (hex(zeroblob(8192)), 0)",
    "DELETE FROM used_tokens WHERE expires = 0",
)
_Waiting = tuple[str, Sequence[Any], Future[bool]]  # statement, values, and whether the row is new once it is written


class AuditError(UserError):
    """The audit database cannot be opened."""


class AuditUnavailable(Reason2DecideError):
    """The record cannot be written now: the disk is too slow or fails. No decision may be sent without its record."""


class AuditLog:
    """The record of one server; several may share a file.

    A separate thread writes the rows, many per transaction, in order of arrival. At most `WAITING_ROWS` wait.

    Args:
        retention_days: rows older than this are deleted and overwritten, on opening and daily.

    Raises:
        AuditError: the file is not an audit record of this version, its key is missing, or it cannot be created.
    """

    def __init__(self, path: Path, retention_days: int) -> None:
        self.path = path
        self._kept_since, self._retention_days = _KEPT_SINCE.format(retention_days), retention_days
        self.key_path = path.with_name(path.name + ".key")
        if retention_days < 1:
            raise AuditError(f"the retention period of the audit record is {retention_days} days; give 1 or more")
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._key = self._read_or_make_key()
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._file = _identity(path)
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
            self._prepare()
            self._started = (time.time(), time.monotonic())
            self._purge()
        self.works, self.unwritten = True, 0
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(WAITING_ROWS)
        self._giving_up = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise AuditError(f"the audit record {self.path} cannot be used: {error}; give another file") from None

    def _read_or_make_key(self) -> bytes:
        if self.path.exists() and self.path.stat().st_size and not self.key_path.exists():
            raise AuditError(
                f"the audit record {self.path} exists, but its key {self.key_path} is missing, so new inputs could not "
                "be compared with earlier ones. Restore the key file, or give another file for the record"
            )
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(self.key_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_hex(32))
                stream.flush()
                os.fsync(descriptor)
        try:
            key = bytes.fromhex(self.key_path.read_text("ascii"))
        except ValueError:
            key = b""
        if not self.key_path.stat().st_size:
            raise AuditError(
                f"{self.key_path} is an empty file where the key of the audit record {self.path} should be, so inputs "
                "could not be compared with earlier ones. Restore the key file; if the record is new, remove both"
            )
        if len(key) != 32:
            raise AuditError(f"{self.key_path} does not contain the key of an audit record (64 hexadecimal digits)")
        return key

    def _prepare(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, 1, FORMAT):
            raise AuditError(
                f"{self.path} has format {version}, but this program writes format {FORMAT}; give another file"
            )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")  # on the disk when the transaction ends
        self._connection.execute("PRAGMA secure_delete = ON")  # what retention deletes is overwritten
        triggers = "".join(_TRIGGERS.format(table=table, kept_since=self._kept_since) for table in _KEPT_TABLES)
        self._connection.executescript(
            f"BEGIN IMMEDIATE; {_FROM_FORMAT_1 if version == 1 else ''} {_TABLES} {triggers} "
            f"PRAGMA user_version = {FORMAT}; COMMIT;"
        )

    def _purge(self) -> None:
        with self._connection:
            cutoff = self._cutoff()
            for table in _KEPT_TABLES:
                count = self._connection.execute(f"DELETE FROM {table} WHERE at <= ?", (cutoff,)).rowcount
                if count:
                    _log.warning("%d rows of %s before %s were deleted from %s", count, table, cutoff, self.path)
            self._connection.execute("DELETE FROM used_tokens WHERE expires < CAST(strftime('%s', 'now') AS INTEGER)")
        self._purged = time.monotonic()

    def _cutoff(self) -> str:
        """The latest date of rows to delete now; see the module."""
        ends = [self._connection.execute(f"SELECT min(at), max(at) FROM {table}").fetchone() for table in _KEPT_TABLES]
        dates = [datetime.fromisoformat(date) for pair in ends for date in pair if date is not None]
        begin, began = self._started
        now = datetime.fromtimestamp(min(time.time(), begin + time.monotonic() - began), UTC)
        if dates:
            now = min(now, max(dates) + timedelta(days=1))
        cutoff = now - timedelta(days=self._retention_days)
        return _written_date(min(cutoff, min(dates) + timedelta(days=DAYS_PER_PURGE)) if dates else cutoff)

    # ---- Called by the server

    def input_hash(self, text: str) -> str:
        """The hash that stands for a text in the record: HMAC-SHA256 under the database's key."""
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    def record(
        self,
        *,
        caller: str,
        endpoint: str,
        status: int,
        latency_ms: float,
        model: str | None = None,
        model_hash: str | None = None,
        text: str | None = None,
        label: str | None = None,
        confidence: float | None = None,
        card: str | None = None,
        tokens: int | None = None,
        tokens_read: int | None = None,
    ) -> Future[bool]:
        """Record the outcome of one request or question, without waiting for the disk; only the text's hash is stored.

        The decision may be sent once `written` has returned for the result.

        The other values must come from the server: a name that a caller made up may contain a note.

        Raises:
            AuditUnavailable: too many rows are waiting; the caller must not send the decision.
        """
        hashed = None if text is None else self.input_hash(text)
        given = (model, model_hash, hashed, label, confidence, latency_ms, status, card, tokens, tokens_read)
        return self._put(_REQUEST, (_now(), caller, endpoint, *given))

    def feedback(
        self,
        *,
        caller: str,
        service: str,
        card: str,
        outcome: str,
        outcome_at: str,
        reason_system: str | None = None,
        reason_code: str | None = None,
    ) -> Future[bool]:
        """Record the outcome of one card, as `record` does; the caller must ensure that no value is free text."""
        return self._put(_FEEDBACK, (_now(), caller, service, card, outcome, reason_system, reason_code, outcome_at))

    async def use_once(self, key: str, expires: int) -> bool:
        """Whether `key` is used for the first time; it counts as used from now on, also after a restart.

        Args:
            expires: seconds since 1970 after which the key may be forgotten.

        Raises:
            AuditUnavailable: this cannot be determined now.
        """
        return await self.written(self._put(_USED, (key, expires)))

    @staticmethod
    async def written(row: Future[bool]) -> bool:
        """Wait until a row is on the disk; true if it is new there. Who stops waiting does not take it back.

        Raises:
            AuditUnavailable: it is not within `ANSWER_SECONDS`; then it is not written later either.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(row)), ANSWER_SECONDS)
        except TimeoutError:
            row.cancel()
            raise AuditUnavailable("the audit record cannot be written now") from None

    def close(self) -> None:
        """Write the waiting rows, and close the file; `unwritten` then counts those that could not be written."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        self._giving_up.set()
        self._thread.join()
        self._connection.close()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, statement: str, values: Sequence[Any]) -> Future[bool]:
        row: Future[bool] = Future()
        written = [storable(value) if isinstance(value, str) else value for value in values]
        try:
            self._queue.put_nowait((statement, written, row))
        except queue.Full:
            raise AuditUnavailable(f"{WAITING_ROWS} rows wait to be written to the audit record") from None
        return row

    # ---- The thread

    def _write_all(self) -> None:
        ended = False
        while not ended:
            left = self._purged + PURGE_SECONDS - time.monotonic() if self.works else RETRY_SECONDS
            batch = []
            with contextlib.suppress(queue.Empty):
                batch.append(self._queue.get(timeout=max(left, 0)))
                while len(batch) < BATCH_ROWS:
                    batch.append(self._queue.get_nowait())
            ended = None in batch
            self._write([item for item in batch if item is not None])
            ended |= self._giving_up.is_set()
            if time.monotonic() - self._purged >= PURGE_SECONDS:
                self._purge_daily()
        self._lose(self._queue.qsize())

    def _write(self, batch: Sequence[_Waiting]) -> None:
        """Write a batch, and retry while the disk fails, without the rows that nobody waits for any more.

        An empty batch finds out whether a disk that failed works again.
        """
        while True:
            batch = [item for item in batch if not item[2].cancelled()]
            try:
                _require_file(self.path, self._file)
                with self._connection:
                    if not self.works:
                        for statement in _PROBE:
                            self._connection.execute(statement)
                    new = [self._connection.execute(statement, values).rowcount == 1 for statement, values, _ in batch]
                    if any(row.cancelled() for *_, row in batch):  # while the database was locked
                        raise _GivenUp
            except _GivenUp:
                continue  # rolled back; again without them
            except (sqlite3.Error, OSError) as error:
                if self.works:
                    _log.error("the audit record %s cannot be written; trying again: %s", self.path, error)
                self.works = False
                if not batch:
                    return
                if self._giving_up.wait(RETRY_SECONDS):
                    self._lose(len(batch))
                    return
            else:
                self.works = True
                for (_, _, row), first in zip(batch, new, strict=True):
                    if row.set_running_or_notify_cancel():  # the caller may have stopped waiting since
                        row.set_result(first)
                return

    def _lose(self, count: int) -> None:
        if count:
            self.unwritten += count
            _log.error("%d rows were never written to the audit record %s", count, self.path)

    def _purge_daily(self) -> None:
        try:
            self._purge()
        except sqlite3.Error as error:
            _log.error("old rows of the audit record %s cannot be deleted: %s", self.path, error)
            self._purged = time.monotonic()


class _GivenUp(Exception):
    """A caller stopped waiting for a row before it was committed."""


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _require_file(path: Path, identity: tuple[int, int]) -> None:
    """Raise `OSError` if the file was deleted or replaced: SQLite would go on writing to the one that is gone."""
    if not path.exists() or _identity(path) != identity:
        raise OSError("the file was deleted or replaced; restart the server")


def _now() -> str:
    return _written_date(datetime.now(UTC))


def _written_date(date: datetime) -> str:
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")

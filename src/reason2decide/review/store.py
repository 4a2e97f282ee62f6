"""The store of a review: one SQLite file, durable when a call returns.

Write-ahead logging with `synchronous = FULL`: a transaction that has ended is on the disk. The file holds health text
(notes, reasons, comments): protect it as the notes themselves. A backup is a copy made by SQLite (`backup`), never of
the file alone while the server runs.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reason2decide.errors import Reason2DecideError, UserError
from reason2decide.files import new_file

Row = dict[str, Any]  # column -> value

BUSY_SECONDS = 3.0  # ours: how long another program may hold the file before a person is told
# A list of steps; the number of those a file has is its version. A step is never changed, only others are added.
MIGRATIONS = (
    """
    CREATE TABLE reviewers (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL, password TEXT,
        pseudonym TEXT NOT NULL UNIQUE, active INTEGER NOT NULL DEFAULT 1, created TEXT NOT NULL
    );
    CREATE TABLE sessions (
        token TEXT PRIMARY KEY, reviewer INTEGER NOT NULL REFERENCES reviewers, csrf TEXT NOT NULL, seen REAL NOT NULL
    );
    CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE cases (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, text TEXT NOT NULL, source TEXT NOT NULL, added TEXT NOT NULL,
        draw REAL NOT NULL, wanted INTEGER NOT NULL, reviews INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL,
        confidence REAL, unsupported INTEGER, urgency INTEGER
    );
    CREATE INDEX cases_uncertain ON cases (state, confidence);
    CREATE INDEX cases_unsupported ON cases (state, unsupported, confidence);
    CREATE INDEX cases_urgent ON cases (state, urgency, draw);
    CREATE INDEX cases_newest ON cases (state, id);
    CREATE INDEX cases_random ON cases (state, draw);
    CREATE INDEX cases_drawn ON cases (draw);
    CREATE TABLE predictions (
        id INTEGER PRIMARY KEY, case_id INTEGER NOT NULL REFERENCES cases, model TEXT NOT NULL,
        model_hash TEXT NOT NULL, at TEXT NOT NULL, label TEXT NOT NULL, probabilities TEXT NOT NULL,
        prediction_set TEXT NOT NULL, deferred INTEGER NOT NULL, tokens INTEGER NOT NULL, tokens_read INTEGER NOT NULL,
        rationale TEXT, supports INTEGER, UNIQUE (case_id, model_hash)
    );
    CREATE INDEX predictions_of_model ON predictions (model_hash, case_id);
    CREATE TABLE claims (
        case_id INTEGER NOT NULL REFERENCES cases, reviewer INTEGER NOT NULL REFERENCES reviewers, until REAL NOT NULL,
        sampled TEXT NOT NULL, share REAL NOT NULL, opened TEXT NOT NULL, PRIMARY KEY (reviewer, case_id)
    );
    CREATE INDEX claims_of_case ON claims (case_id, until);
    CREATE TABLE first_decisions (
        case_id INTEGER NOT NULL REFERENCES cases, reviewer INTEGER NOT NULL REFERENCES reviewers, label TEXT NOT NULL,
        at TEXT NOT NULL, PRIMARY KEY (case_id, reviewer)
    );
    CREATE TABLE answers (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, case_id INTEGER NOT NULL REFERENCES cases,
        reviewer INTEGER NOT NULL REFERENCES reviewers, prediction INTEGER REFERENCES predictions, kind TEXT NOT NULL,
        action TEXT NOT NULL, label TEXT, rationale TEXT NOT NULL, edited INTEGER NOT NULL, reason TEXT NOT NULL,
        comment TEXT NOT NULL, blind INTEGER NOT NULL, first_label TEXT, first_at TEXT, sampled TEXT NOT NULL,
        share REAL NOT NULL, opened TEXT NOT NULL, at TEXT NOT NULL, undone TEXT
    );
    CREATE UNIQUE INDEX answers_one ON answers (case_id, reviewer, kind) WHERE undone IS NULL;
    CREATE INDEX answers_of_reviewer ON answers (reviewer, undone, id);
    CREATE TABLE card_feedback (
        id INTEGER PRIMARY KEY, at TEXT NOT NULL, caller TEXT NOT NULL, service TEXT NOT NULL, card TEXT NOT NULL,
        outcome TEXT NOT NULL, outcome_at TEXT NOT NULL, reason_system TEXT, reason_code TEXT, comment TEXT
    );
    """,
    # The patient or article of a case, whose cases are never in two splits of an export.
    "ALTER TABLE cases ADD COLUMN patient TEXT",
)


class StoreError(UserError):
    """The store cannot be opened."""


class StoreUnavailable(Reason2DecideError):
    """The store cannot be written now: locked by another program, or the disk is full. Nothing was saved."""


class Store:
    """One open store; its methods block and may be called from any thread.

    Raises:
        StoreError: the file is not a store of this version, or cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.RLock()
        self._own = threading.local()  # a connection of each thread to read through, so that none waits
        self._readers: list[sqlite3.Connection] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._writer = self._connected()
            self._migrate()
            self._writer.row_factory = _named
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path} cannot be used as a store of reviews: {error}; give another file") from None

    def _migrate(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        tables = self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version > len(MIGRATIONS) or (not version and tables):
            raise StoreError(
                f"{self.path} is {f'a store of version {version}' if version else 'another kind of database'}, and "
                f"this program reads stores up to version {len(MIGRATIONS)}; give another file"
            )
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = FULL")
        self._writer.execute("PRAGMA secure_delete = ON")
        for number, step in enumerate(MIGRATIONS[version:], version + 1):
            self._writer.executescript(f"BEGIN IMMEDIATE; {step}; PRAGMA user_version = {number}; COMMIT;")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when the context ends; an exception rolls it back.

        Raises:
            StoreUnavailable: the file is locked, or the disk is full.
        """
        with self._lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                finally:
                    if self._writer.in_transaction:  # a full disk has ended it already
                        self._writer.execute("ROLLBACK")
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                raise StoreUnavailable(f"{error}") from None

    def rows(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Row]:
        """The rows of a query.

        Raises:
            StoreUnavailable: the file cannot be read now.
        """
        with self._reading() as reader:
            return reader.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> Row | None:
        """The first row of a query, if any; raises as `rows`."""
        with self._reading() as reader, contextlib.closing(reader.execute(query, values)) as found:
            first: Row | None = found.fetchone()
            return first

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            if not hasattr(self._own, "reader"):
                self._own.reader = self._connected()
                self._own.reader.row_factory = _named
                self._readers.append(self._own.reader)
            yield self._own.reader
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{error}") from None

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)

    def backup(self, target: Path) -> None:
        """Copy the store, as it is at one moment, to a new file; nothing is left of a copy that fails.

        Raises:
            OutputError: the file exists.
            StoreError: it cannot be written.
        """
        try:
            with new_file(target) as path, self._lock, contextlib.closing(sqlite3.connect(path)) as copy:
                self._writer.backup(copy)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{target} cannot be written: {error}; give another file") from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            for connection in (*self._readers, self._writer):
                connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _named(cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> Row:
    return {column[0]: value for column, value in zip(cursor.description, values, strict=True)}


def now() -> str:
    """This moment, as the store writes it: ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

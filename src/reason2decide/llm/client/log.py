"""Write every finished call to disk at once, so that no answer is paid for twice.

The log is one SQLite file, to which rows are only added. Answers are found by their call's key; failures are kept for
the reader and never served as answers. Requests are not stored, only their hash: they contain the records' texts, which
are stored elsewhere. Answers may quote those texts, so only the owner can read the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reason2decide.errors import UserError
from reason2decide.llm.client.calls import AnyCall, Failure, TokenLogprob, Usage
from reason2decide.llm.client.dialects import Reply
from reason2decide.llm.client.endpoint import Endpoint

FORMAT = 2
BUSY_SECONDS = 60.0  # ours: how long a process waits while another writes

# WITHOUT ROWID: the key is the table's only order, and it is unique.
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, created TEXT, base_url TEXT, dialect TEXT, model TEXT, prompt_version TEXT,
    served_model TEXT, text TEXT, finish_reason TEXT, input_tokens INTEGER, output_tokens INTEGER, logprobs TEXT,
    attempts INTEGER, seconds REAL, max_tokens INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (
    id INTEGER PRIMARY KEY, key TEXT, created TEXT, base_url TEXT, dialect TEXT, model TEXT, prompt_version TEXT,
    kind TEXT, message TEXT, detail TEXT, text TEXT, input_tokens INTEGER, output_tokens INTEGER, attempts INTEGER,
    seconds REAL, max_tokens INTEGER
);
CREATE INDEX IF NOT EXISTS failures_by_key ON failures (key);
"""
# A complete answer stays; one that was cut off gives way to a longer one.
_ANSWER = (
    "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
    "created = excluded.created, served_model = excluded.served_model, text = excluded.text, "
    "finish_reason = excluded.finish_reason, input_tokens = excluded.input_tokens, "
    "output_tokens = excluded.output_tokens, logprobs = excluded.logprobs, attempts = excluded.attempts, "
    "seconds = excluded.seconds, max_tokens = excluded.max_tokens WHERE answers.finish_reason = 'length'"
)
_FAILURE = "INSERT INTO failures VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# A limit of tokens matters only to what was cut off at one; null is no limit.
_FIND = (
    "SELECT created, served_model, text, finish_reason, input_tokens, output_tokens, logprobs FROM answers "
    "WHERE key = :key AND (finish_reason <> 'length' OR max_tokens >= :limit OR max_tokens IS :limit)"
)
_FIND_CUT_OFF = (
    "SELECT kind, message, text FROM failures WHERE key = :key AND (kind = 'looped' OR kind = 'cut_off' "
    "AND (max_tokens >= :limit OR max_tokens IS :limit)) ORDER BY id DESC LIMIT 1"
)


class CallLogError(UserError):
    """The log file cannot be opened or written."""


@dataclass(frozen=True)
class Finished:
    """A completed call, with a reply, or with a failure and the server's own words about it (`detail`)."""

    key: str
    call: AnyCall
    outcome: Reply | Failure
    usage: Usage
    attempts: int
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """An answer as stored in the log."""

    created: str
    reply: Reply


class CallLog:
    """The log of calls to any number of endpoints; processes may share a file.

    Raises:
        CallLogError: the file is not a log of this version, or cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            # Two connections: a reader in one thread need not wait while a writer in another waits for the disk.
            self._writer, self._reader = self._connect(), self._connect()
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, FORMAT):
                raise CallLogError(
                    f"{path} has log format {version}, but this version writes {FORMAT}; give another file with --log"
                )
            with self._writer:
                self._writer.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CallLogError(
                f"the log of calls {self.path} cannot be used: {error}; give another file with --log"
            ) from None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # on disk when the transaction ends, even without power
        return connection

    def close(self) -> None:
        """Close the file; no writes are pending."""
        self._reader.close()
        self._writer.close()

    def __enter__(self) -> CallLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, key: str, max_tokens: int | None = None) -> Entry | None:
        """Find the answer to a call that may take `max_tokens` (None: any number), or None."""
        with self._explained():
            row = self._reader.execute(_FIND, {"key": key, "limit": max_tokens}).fetchone()
        if row is None:
            return None
        created, model, text, finish_reason, tokens_in, tokens_out, logprobs = row
        given = None
        if logprobs is not None:
            given = tuple(
                TokenLogprob(token, p, tuple((other, q) for other, q in top)) for token, p, top in json.loads(logprobs)
            )
        return Entry(created, Reply(text, finish_reason, model, Usage(tokens_in, tokens_out), logprobs=given))

    def find_cut_off(self, key: str, max_tokens: int | None) -> Failure | None:
        """Find the last failure of a call whose answer did not end by itself, with as many tokens or more."""
        with self._explained():
            row = self._reader.execute(_FIND_CUT_OFF, {"key": key, "limit": max_tokens}).fetchone()
        return None if row is None else Failure(key, row[0], f"{row[1]} (in an earlier run)", 0, row[2], cached=True)

    def add(self, endpoint: Endpoint, finished: Sequence[Finished]) -> None:
        """Write calls in one transaction, which is on disk when this returns. An existing answer stays."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        where = (now, endpoint.base_url, endpoint.dialect, endpoint.model)
        answers: list[tuple[Any, ...]] = []
        failures: list[tuple[Any, ...]] = []
        for done in finished:
            who = (done.key, *where, done.call.prompt_version)
            spent = (done.usage.input_tokens, done.usage.output_tokens)
            took = (done.attempts, done.seconds, done.call.max_output_tokens())
            if isinstance(done.outcome, Failure):
                said = (done.outcome.kind, done.outcome.message, done.detail, done.outcome.text)
                failures.append((*who, *said, *spent, *took))
            else:
                reply = done.outcome
                tokens = reply.logprobs and json.dumps([dataclasses.astuple(token) for token in reply.logprobs])
                answers.append((*who, reply.model, reply.text, reply.finish_reason, *spent, tokens, *took))
        with self._explained(), self._writer:
            self._writer.executemany(_ANSWER, answers)
            self._writer.executemany(_FAILURE, failures)

    def failures(self) -> Iterator[dict[str, Any]]:
        """Yield the failures in the order they were written; `detail` has the server's own words."""
        with self._explained():
            cursor = self._reader.execute("SELECT * FROM failures ORDER BY id")
            names = [column[0] for column in cursor.description]
            yield from (dict(zip(names, row, strict=True)) for row in cursor)

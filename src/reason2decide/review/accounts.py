"""Who reviews: named accounts with Argon2 hashes, their roles and sessions."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from reason2decide.errors import UserError, require
from reason2decide.review.store import Store, now

Role = Literal["reviewer", "adjudicator", "administrator"]
LEAST_PASSWORD = 12  # NIST SP 800-63B-4 asks for 15 where a password is all, and 8 beside another factor; ours
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,64}")


class AccountError(UserError):
    """An account cannot be made or found."""


@dataclass(frozen=True)
class Reviewer:
    """A person who reviews; `pseudonym` stands for the name in everything that is exported."""

    id: int
    name: str
    role: Role
    pseudonym: str

    @property
    def adjudicates(self) -> bool:
        """Whether the person may see others' answers and settle disagreements."""
        return self.role != "reviewer"


@dataclass(frozen=True)
class Session:
    """A signed-in reviewer, and the secret that each form of theirs must show."""

    reviewer: Reviewer
    csrf: str


class Accounts:
    """The accounts of a store.

    Args:
        session_seconds: without a request, after which a session ends.
    """

    def __init__(self, store: Store, session_seconds: float) -> None:
        self._store, self._seconds = store, session_seconds

    def add(self, name: str, role: str, password: str | None) -> Reviewer:
        """Make an account; without a password it is for a proxy that names its user.

        Somebody who was removed gets the account of before, with the answers in it.

        Raises:
            AccountError: a name or role that cannot be, a short password, or a name that is taken.
            MissingExtraError: argon2-cffi is not installed.
        """
        if role not in get_args(Role):
            raise AccountError(f"{role!r} is no role; choose one of {', '.join(get_args(Role))}")
        if not _NAME.fullmatch(name) or name != name.strip():
            raise AccountError(f"{name!r} cannot be a reviewer's name; use 1 to 64 printing characters")
        hashed = None if password is None else _hash_of(password)
        with self._store.transaction() as database:
            if database.execute("SELECT 1 FROM reviewers WHERE name = ? AND active", (name,)).fetchone():
                raise AccountError(f"there is a reviewer named {name!r} already")
            database.execute(
                "INSERT INTO reviewers (name, role, password, pseudonym, created) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET role = excluded.role, password = excluded.password, active = 1",
                (name, role, hashed, f"reviewer-{secrets.token_hex(4)}", now()),
            )
        found = self.named(name)
        assert found is not None
        return found

    def set_password(self, name: str, password: str) -> None:
        """Give an account another password; its sessions end.

        Raises:
            AccountError: there is no such account, or the password is short.
        """
        reviewer, hashed = self._required(name), _hash_of(password)
        with self._store.transaction() as database:
            database.execute("UPDATE reviewers SET password = ? WHERE id = ?", (hashed, reviewer.id))
            database.execute("DELETE FROM sessions WHERE reviewer = ?", (reviewer.id,))

    def remove(self, name: str) -> None:
        """Let somebody in no more; their answers stay.

        Raises:
            AccountError: there is no such account.
        """
        reviewer = self._required(name)
        with self._store.transaction() as database:
            database.execute("UPDATE reviewers SET active = 0, password = NULL WHERE id = ?", (reviewer.id,))
            database.execute("DELETE FROM sessions WHERE reviewer = ?", (reviewer.id,))

    def _required(self, name: str) -> Reviewer:
        found = self.named(name)
        if found is None:
            known = ", ".join(own.name for own in self.all()) or "none"
            raise AccountError(f"there is no reviewer named {name!r}; there are: {known}")
        return found

    def named(self, name: str) -> Reviewer | None:
        """The active account of this name, if any."""
        row = self._store.row("SELECT id, name, role, pseudonym FROM reviewers WHERE name = ? AND active", (name,))
        return None if row is None else Reviewer(**row)

    def all(self) -> list[Reviewer]:
        """The active accounts, oldest first."""
        return [
            Reviewer(**row)
            for row in self._store.rows("SELECT id, name, role, pseudonym FROM reviewers WHERE active ORDER BY id")
        ]

    def checked(self, name: str, password: str) -> Reviewer | None:
        """The account, if the password is its own; it takes as long where there is no such account."""
        argon2 = require("argon2", "review")
        row = self._store.row("SELECT password FROM reviewers WHERE name = ? AND active", (name,))
        known = row is not None and row["password"]
        try:
            argon2.PasswordHasher().verify(known or _NOBODY, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return None
        return self.named(name) if known else None

    def begin(self, reviewer: Reviewer) -> str:
        """Begin a session; return its token, of which the store has the hash only."""
        token = secrets.token_urlsafe(32)
        with self._store.transaction() as database:
            database.execute("DELETE FROM sessions WHERE seen < ?", (time.time() - self._seconds,))
            database.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?)",
                (_hashed(token), reviewer.id, secrets.token_urlsafe(32), time.time()),
            )
        return token

    def session(self, token: str) -> Session | None:
        """The session of a token, unless it has ended; a request keeps it alive."""
        row = self._store.row(
            "SELECT r.id, r.name, r.role, r.pseudonym, s.csrf, s.seen FROM sessions s "
            "JOIN reviewers r ON r.id = s.reviewer WHERE s.token = ? AND s.seen >= ? AND r.active",
            (_hashed(token), time.time() - self._seconds),
        )
        if row is None:
            return None
        if time.time() - row["seen"] > self._seconds / 30:  # not a write for each request
            with self._store.transaction() as database:
                database.execute("UPDATE sessions SET seen = ? WHERE token = ?", (time.time(), _hashed(token)))
        return Session(Reviewer(row["id"], row["name"], row["role"], row["pseudonym"]), row["csrf"])

    def end(self, token: str) -> None:
        """End a session."""
        with self._store.transaction() as database:
            database.execute("DELETE FROM sessions WHERE token = ?", (_hashed(token),))


class Rate:
    """Counts events of each key in the last minute.

    >>> rate = Rate(2, clock=lambda: 0.0)
    >>> [rate.allows("a"), rate.allows("a"), rate.allows("a"), rate.allows("b")]
    [True, True, False, True]
    """

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = a_minute, clock
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def reached(self, key: str) -> bool:
        """Whether there were as many as allowed; counts nothing."""
        times, moment = self._times[key], self._clock()
        while times and moment - times[0] >= 60:
            times.popleft()
        return len(times) >= self._most

    def allows(self, key: str) -> bool:
        """Count an event, unless there were too many."""
        if self.reached(key):
            return False
        moment = self._clock()
        self._times[key].append(moment)
        if len(self._times) > 10_000:  # names that were tried once
            self._times = defaultdict(
                deque, {own: kept for own, kept in self._times.items() if kept and moment - kept[-1] < 60}
            )
        return True


# The hash of a password that nobody knows, so that an unknown name takes as long as a known one.
_NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$Iwmn4dLbDsOo6qIN2pB3bTnFPYmVFHv1Ew6V8vYqB4A"


def _hash_of(password: str) -> str:
    if len(password) < LEAST_PASSWORD:
        raise AccountError(f"the password has {len(password)} characters; use {LEAST_PASSWORD} or more")
    hashed: str = require("argon2", "review").PasswordHasher().hash(password)
    return hashed


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()

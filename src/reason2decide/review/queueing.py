"""Cases to review, and which one a reviewer gets next.

A case is taken for one of the reasons of `settings.ORDERS`, drawn by their shares; the reason and its share are kept
with the answer. "random" goes through the queue in an order drawn once (`draw`, a hash of the case's id). The cases
that were settled, for whatever reason they were taken, from the beginning of that order to the first that is not are a
simple random sample of the queue: estimates are made of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reason2decide.data.records import LabelSet
from reason2decide.model.decision import Decision
from reason2decide.model.reasons import Reason
from reason2decide.review.settings import ORDERS, ReviewSettings
from reason2decide.review.store import Store, now

# A case waits for the model, is open, was reviewed by as many as wanted, is disputed among them, or was settled.
WAITING, OPEN, REVIEWED, DISPUTED, ADJUDICATED = "waiting", "open", "reviewed", "disputed", "adjudicated"
UNREADABLE = "unreadable"  # a text that the model cannot read
QUEUE, PASTED = "queue", "pasted"  # where a case comes from
# SQL of each reason: which cases, and in which order.
_WANTED: Mapping[str, tuple[str, str]] = {
    "uncertain": ("1", "c.confidence"),
    "unsupported": ("c.unsupported = 1", "c.confidence"),
    "urgent": ("1", "c.urgency, c.draw"),
    "newest": ("1", "c.id DESC"),
    "random": ("1", "c.draw"),
}


@dataclass(frozen=True)
class Claim:
    """A case that a reviewer has opened, and why it was taken."""

    case_id: int
    sampled: str
    share: float
    opened: str


@dataclass(frozen=True)
class ModelDecision:
    """What a model said of a case."""

    id: int
    model: str
    model_hash: str
    label: str
    probabilities: Mapping[str, float]
    prediction_set: Sequence[str]
    deferred: bool
    tokens: int
    tokens_read: int
    rationale: str | None
    supports: bool | None

    @property
    def cut(self) -> bool:
        """Whether part of the note was not read."""
        return self.tokens_read < self.tokens


def drawn(*parts: object) -> float:
    """A number in [0, 1) that is a hash of the parts.

    >>> drawn("case", 1) == drawn("case", 1) != drawn("case", 2)
    True
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def add_case(store: Store, key: str, text: str, *, source: str, wanted: int) -> tuple[int, bool]:
    """Add a case unless its key is there; return its id, and whether it is new."""
    with store.transaction() as database:
        found = database.execute("SELECT id FROM cases WHERE key = ?", (key,)).fetchone()
        if found:
            return found["id"], False
        added = database.execute(
            "INSERT INTO cases (key, text, source, added, draw, wanted, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, text, source, now(), drawn("case", key), wanted, WAITING),
        )
        return int(added.lastrowid or 0), True


_OTHER_TEXT = "SELECT 1 FROM cases WHERE key = ? AND text <> ?"


class NewCase(NamedTuple):
    """A case to add: its key, its text, and the patient or article whose cases belong together."""

    key: str
    text: str
    patient: str | None = None


def add_cases(store: Store, cases: Sequence[NewCase], *, source: str, wanted: int) -> int:
    """Add many cases in one transaction; return how many were new."""
    with store.transaction() as database:
        before = database.total_changes
        database.executemany(
            "INSERT OR IGNORE INTO cases (key, text, patient, source, added, draw, wanted, state) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(*case, source, now(), drawn("case", case.key), wanted, WAITING) for case in cases],
        )
        new = database.total_changes - before
        # A store of an earlier version has cases whose patients were not read.
        patients = [(case.patient, case.key, case.text) for case in cases if case.patient is not None]
        database.executemany("UPDATE cases SET patient = ? WHERE key = ? AND text = ? AND patient IS NULL", patients)
        return new


def keys_of_other_texts(store: Store, cases: Sequence[NewCase]) -> list[str]:
    """The keys among these that cases with another text have already."""
    return [case.key for case in cases if store.row(_OTHER_TEXT, (case.key, case.text)) is not None]


def keep_prediction(
    store: Store,
    case_id: int,
    model: str,
    model_hash: str,
    decision: Decision,
    reason: Reason | None,
    labels: LabelSet,
    *,
    shown: bool,
) -> None:
    """Keep what a model says of a case; `shown`: it is the model whose decisions are reviewed, which opens the case."""
    with store.transaction() as database:
        database.execute(
            "INSERT OR IGNORE INTO predictions (case_id, model, model_hash, at, label, probabilities, prediction_set, "
            "deferred, tokens, tokens_read, rationale, supports) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                case_id,
                model,
                model_hash,
                now(),
                decision.label,
                json.dumps(dict(decision.probabilities), ensure_ascii=False),
                json.dumps(decision.prediction_set, ensure_ascii=False),
                decision.deferred,
                decision.tokens,
                decision.tokens_read,
                reason and reason.text,
                reason and reason.supports,
            ),
        )
        if shown:
            rank = labels.values.index(decision.label)
            urgency = {"first": rank, "last": -rank, None: 0}[labels.urgent]
            unsupported = reason is not None and reason.supports is False
            database.execute(
                "UPDATE cases SET confidence = ?, unsupported = ?, urgency = ?, "
                f"state = CASE state WHEN '{WAITING}' THEN '{OPEN}' ELSE state END WHERE id = ?",
                (decision.confidence, unsupported, urgency, case_id),
            )


def read_again(store: Store) -> None:
    """Let a server try the texts that an earlier one could not read: it may have another model or other settings."""
    with store.transaction() as database:
        database.execute("UPDATE cases SET state = ? WHERE state = ?", (WAITING, UNREADABLE))


def without_prediction(store: Store, model_hash: str, count: int, *, after: int = 0) -> list[tuple[int, str]]:
    """Cases (id, text) of which a model has said nothing yet, oldest first, from those after an id on."""
    rows = store.rows(
        "SELECT c.id, c.text FROM cases c LEFT JOIN predictions p ON p.case_id = c.id AND p.model_hash = ? "
        f"WHERE p.id IS NULL AND c.state != '{UNREADABLE}' AND c.id > ? ORDER BY c.id LIMIT ?",
        (model_hash, after, count),
    )
    return [(row["id"], row["text"]) for row in rows]


def prediction_of(store: Store, case_id: int, model_hash: str | None = None) -> ModelDecision | None:
    """What a model said of a case; by default the one that said something last."""
    where, values = ("AND model_hash = ?", [model_hash]) if model_hash else ("", [])
    row = store.row(f"SELECT * FROM predictions WHERE case_id = ? {where} ORDER BY id DESC", [case_id, *values])
    return None if row is None else _prediction(row)


def prediction_by_id(store: Store, case_id: int, prediction: int) -> ModelDecision | None:
    """The prediction with an id, if it is of this case."""
    row = store.row("SELECT * FROM predictions WHERE id = ? AND case_id = ?", (prediction, case_id))
    return None if row is None else _prediction(row)


def _prediction(row: Any) -> ModelDecision:
    return ModelDecision(
        id=row["id"],
        model=row["model"],
        model_hash=row["model_hash"],
        label=row["label"],
        probabilities=json.loads(row["probabilities"]),
        prediction_set=json.loads(row["prediction_set"]),
        deferred=bool(row["deferred"]),
        tokens=row["tokens"],
        tokens_read=row["tokens_read"],
        rationale=row["rationale"],
        supports=None if row["supports"] is None else bool(row["supports"]),
    )


def next_case(store: Store, reviewer: int, settings: ReviewSettings) -> Claim | None:
    """The case that a reviewer has open, or else a new one, which is theirs for a while; None if nothing is left.

    A case is offered to no more reviewers at a time than it needs.
    """
    moment = time.time()
    with store.transaction() as database:
        database.execute("DELETE FROM claims WHERE until < ?", (moment,))
        own = database.execute(
            f"SELECT k.* FROM claims k JOIN cases c ON c.id = k.case_id AND c.state = '{OPEN}' WHERE k.reviewer = ? "
            "AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.case_id = c.id AND a.reviewer = k.reviewer "
            "AND a.undone IS NULL) ORDER BY k.opened DESC LIMIT 1",
            (reviewer,),
        ).fetchone()
        if own is not None:
            return Claim(own["case_id"], own["sampled"], own["share"], own["opened"])
        answered = database.execute("SELECT count(*) AS n FROM answers WHERE reviewer = ?", (reviewer,)).fetchone()["n"]
        for order in reasons_to_take(settings.shares, drawn("order", reviewer, answered)):
            condition, by = _WANTED[order]
            found = database.execute(
                f"SELECT c.id FROM cases c WHERE c.state = '{OPEN}' AND c.source = '{QUEUE}' AND {condition} "
                "AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.case_id = c.id AND a.reviewer = :reviewer "
                "AND a.undone IS NULL) AND c.reviews + (SELECT count(*) FROM claims k WHERE k.case_id = c.id "
                f"AND k.reviewer != :reviewer) < c.wanted ORDER BY {by} LIMIT 1",
                {"reviewer": reviewer},
            ).fetchone()
            if found is not None:
                claim = Claim(found["id"], order, settings.shares[order], now())
                claim_case(database, claim, reviewer, settings)
                return claim
    return None


def claim_case(database: Any, claim: Claim, reviewer: int, settings: ReviewSettings) -> None:
    """Reserve a case for a reviewer."""
    database.execute(
        "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)",
        (
            claim.case_id,
            reviewer,
            time.time() + 60 * settings.claim_minutes,
            claim.sampled,
            claim.share,
            claim.opened,
        ),
    )


def reasons_to_take(shares: Mapping[str, float], place: float) -> list[str]:
    """The reason that a number in [0, 1) falls on, and then the others with a share, for when it has no case left.

    >>> reasons_to_take({"uncertain": 0.5, "random": 0.5, "newest": 0}, 0.7)
    ['random', 'uncertain']
    """
    wanted = [order for order in ORDERS if shares.get(order)]
    total = 0.0
    for order in wanted:
        total += shares[order]
        if place < total:
            return [order, *(other for other in wanted if other != order)]
    return wanted


def random_sample(store: Store) -> list[int]:
    """Ids of the random sample: the queue's cases in the order drawn, before the first that has no final label yet.

    Cases that the model cannot read, and pasted notes, are not among those that an estimate is about.
    """
    population = f"source = '{QUEUE}' AND state != '{UNREADABLE}'"
    rows = store.rows(
        f"SELECT id FROM cases WHERE {population} AND draw < coalesce((SELECT min(draw) FROM cases "
        f"WHERE {population} AND state NOT IN ('{REVIEWED}', '{ADJUDICATED}')), 2) ORDER BY draw"
    )
    return [row["id"] for row in rows]

"""What reviewers answer: kept once, undone without being lost, and what follows for the state of a case."""

from __future__ import annotations

import secrets
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from reason2decide.errors import Reason2DecideError
from reason2decide.review.queueing import ADJUDICATED, DISPUTED, OPEN, REVIEWED, WAITING, Claim, claim_case
from reason2decide.review.settings import ReviewSettings
from reason2decide.review.store import Row, Store, now

Action = Literal["accept", "override", "defer", "skip"]
ACTIONS: tuple[Action, ...] = ("accept", "override", "defer", "skip")
Kind = Literal["review", "adjudication"]
SETTLED = (REVIEWED, ADJUDICATED)  # states in which a case has a final label
SAID = ("action", "label", "rationale", "reason", "comment")  # what a reviewer says in an answer


class AnsweredElsewhere(Reason2DecideError):
    """The reviewer has answered the case in another window."""

    def __init__(self, answer: Row) -> None:
        super().__init__("answered in another window")
        self.answer = answer


@dataclass(frozen=True)
class GivenAnswer:
    """One answer of one reviewer on one case.

    Args:
        key: of the form that sent it, so that one sent twice is kept once.
        prediction: id of what the model said and the reviewer saw; None if there was nothing.
        label: the reviewer's decision; None if deferred or skipped.
        rationale: the model's as it was, or as the reviewer changed it (`edited`).
        reason: why the decision was overridden, free text.
        first_label: what the reviewer decided before seeing the model, in blind mode.
        replaces: id of an earlier answer of the same reviewer that this one takes the place of.
    """

    key: str
    case_id: int
    reviewer: int
    prediction: int | None
    kind: Kind
    action: Action
    label: str | None
    rationale: str
    edited: bool
    reason: str
    comment: str
    blind: bool
    first_label: str | None
    first_at: str | None
    sampled: str
    share: float
    opened: str
    replaces: int | None = None


def keep(store: Store, answer: GivenAnswer) -> None:
    """Keep an answer; it is on the disk when this returns.

    Raises:
        AnsweredElsewhere: the reviewer has another answer on the case, which this one does not replace; or the same
            form has been answered otherwise, as after the browser's "back".
        StoreUnavailable: nothing was kept.
    """
    with store.transaction() as database:
        same = database.execute("SELECT * FROM answers WHERE key = ?", (answer.key,)).fetchone()
        if same is not None and same["undone"] is None:
            if any(same[name] != getattr(answer, name) for name in SAID):
                raise AnsweredElsewhere(same)
            return
        if same is not None:  # it was taken back, and is given again
            answer = replace(answer, key=f"{answer.key} {secrets.token_hex(4)}")
        if answer.replaces is not None:
            database.execute(
                "UPDATE answers SET undone = ? WHERE id = ? AND reviewer = ? AND case_id = ?",
                (now(), answer.replaces, answer.reviewer, answer.case_id),
            )
        other = database.execute(
            "SELECT * FROM answers WHERE case_id = ? AND reviewer = ? AND kind = ? AND undone IS NULL",
            (answer.case_id, answer.reviewer, answer.kind),
        ).fetchone()
        if other is not None:
            raise AnsweredElsewhere(other)
        values = vars(answer)
        kept = {name: value for name, value in values.items() if name != "replaces"} | {"at": now()}
        names = ", ".join(kept)
        database.execute(f"INSERT INTO answers ({names}) VALUES ({', '.join(f':{name}' for name in kept)})", kept)
        database.execute("DELETE FROM claims WHERE case_id = ? AND reviewer = ?", (answer.case_id, answer.reviewer))
        _set_state(database, answer.case_id)


def keep_first(store: Store, case_id: int, reviewer: int, label: str) -> None:
    """Keep what a reviewer decides before seeing the model; the first decision stands."""
    with store.transaction() as database:
        database.execute("INSERT OR IGNORE INTO first_decisions VALUES (?, ?, ?, ?)", (case_id, reviewer, label, now()))


def is_kept(store: Store, key: str) -> bool:
    """Whether an answer of a form with this key was kept."""
    return store.row("SELECT 1 AS kept FROM answers WHERE key = ?", (key,)) is not None


def last_answer(store: Store, reviewer: int) -> int | None:
    """The id of a reviewer's last answer that stands."""
    query = "SELECT id FROM answers WHERE reviewer = ? AND undone IS NULL ORDER BY id DESC"
    row = store.row(query, (reviewer,))
    return None if row is None else int(row["id"])


def undo(store: Store, reviewer: int, answer: int, settings: ReviewSettings) -> Row | None:
    """Take back a reviewer's answer, which stays in the store as undone; return it, None if it is not theirs or if
    another of theirs stands in its place.

    The case is theirs again, for the reason that it was taken. One that is undone already stays so: a page that is
    loaded again takes nothing else back.
    """
    with store.transaction() as database:
        own: Row | None = database.execute(
            "SELECT * FROM answers WHERE id = ? AND reviewer = ?", (answer, reviewer)
        ).fetchone()
        if own is not None and own["undone"] is None:
            database.execute("UPDATE answers SET undone = ? WHERE id = ?", (now(), own["id"]))
            claim = Claim(own["case_id"], own["sampled"], own["share"], own["opened"])
            claim_case(database, claim, reviewer, settings)
            _set_state(database, own["case_id"])
        elif own is not None:
            query = "SELECT 1 FROM answers WHERE case_id = ? AND reviewer = ? AND kind = ? AND undone IS NULL"
            if database.execute(query, (own["case_id"], reviewer, own["kind"])).fetchone():
                return None
        return own


def state_of(wanted: int, answers: Sequence[Mapping[str, Any]], *, decided: bool = True) -> str:
    """The state of a case by its answers that stand.

    Disputed: as many reviews as wanted, and their labels differ or one was deferred. An adjudication settles a case,
    unless it was deferred too.

    >>> review = {"kind": "review", "action": "accept", "label": "home care"}
    >>> state_of(2, [review]), state_of(2, [review, review]), state_of(2, [review, {**review, "label": "see a doctor"}])
    ('open', 'reviewed', 'disputed')
    """
    counted = [own for own in answers if own["action"] != "skip"]
    if any(own["kind"] == "adjudication" and own["label"] is not None for own in counted):
        return ADJUDICATED
    labels = [own["label"] for own in counted if own["kind"] == "review"]
    if len(labels) < wanted:
        return OPEN if decided else WAITING
    return REVIEWED if None not in labels and len(set(labels)) == 1 else DISPUTED


def _set_state(database: sqlite3.Connection, case_id: int) -> None:
    rows = database.execute(
        "SELECT kind, action, label FROM answers WHERE case_id = ? AND undone IS NULL", (case_id,)
    ).fetchall()
    case = database.execute("SELECT wanted, confidence FROM cases WHERE id = ?", (case_id,)).fetchone()
    reviews = sum(row["kind"] == "review" and row["action"] != "skip" for row in rows)
    state = state_of(case["wanted"], rows, decided=case["confidence"] is not None)
    database.execute("UPDATE cases SET reviews = ?, state = ? WHERE id = ?", (reviews, state, case_id))


def final_label(answers: Sequence[Mapping[str, Any]]) -> str | None:
    """The label of a settled case: the adjudicator's, else the one that all reviewers gave; None if there is none.

    >>> final_label([{"kind": "review", "action": "accept", "label": "a"}])
    'a'
    """
    settled = [own["label"] for own in answers if own["kind"] == "adjudication" and own["label"] is not None]
    if settled:
        return str(settled[-1])
    labels = {own["label"] for own in answers if own["kind"] == "review" and own["action"] != "skip"}
    return str(labels.pop()) if len(labels) == 1 and None not in labels else None


def votes(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of each label among the reviews of a case, adjudication left out.

    >>> votes([{"kind": "review", "label": "a"}, {"kind": "review", "label": "b"}, {"kind": "review", "label": "a"}])
    {'a': 0.6666666666666666, 'b': 0.3333333333333333}
    """
    counts = Counter(own["label"] for own in answers if own["kind"] == "review" and own["label"] is not None)
    total = counts.total()
    return {label: count / total for label, count in counts.items()}


def of_case(store: Store, case_id: int) -> list[Row]:
    """The answers on a case that stand, oldest first, with the reviewers' pseudonyms."""
    return store.rows(
        "SELECT a.*, r.pseudonym FROM answers a JOIN reviewers r ON r.id = a.reviewer "
        "WHERE a.case_id = ? AND a.undone IS NULL ORDER BY a.id",
        (case_id,),
    )


def next_disputed(store: Store, adjudicator: int) -> int | None:
    """The oldest disputed case that a person has not reviewed, adjudicated or skipped."""
    row = store.row(
        f"SELECT c.id FROM cases c WHERE c.state = '{DISPUTED}' AND NOT EXISTS (SELECT 1 FROM answers a "
        "WHERE a.case_id = c.id AND a.reviewer = ? AND a.undone IS NULL) ORDER BY c.id LIMIT 1",
        (adjudicator,),
    )
    return None if row is None else int(row["id"])

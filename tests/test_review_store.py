"""The store of reviews: durable answers, states, who gets which case, copies, other versions."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reason2decide.data.records import LabelSet
from reason2decide.errors import ConfigError
from reason2decide.model.decision import Decision
from reason2decide.model.reasons import Reason
from reason2decide.review import answers
from reason2decide.review.accounts import Accounts
from reason2decide.review.answers import AnsweredElsewhere, GivenAnswer, final_label, state_of, votes
from reason2decide.review.opening import require_labels
from reason2decide.review.queueing import (
    Claim,
    NewCase,
    add_case,
    add_cases,
    claim_case,
    drawn,
    keep_prediction,
    next_case,
    random_sample,
    reasons_to_take,
    without_prediction,
)
from reason2decide.review.settings import ORDERS, ReviewSettings
from reason2decide.review.store import MIGRATIONS, Store, StoreError, StoreUnavailable

LABELS = LabelSet(("home", "doctor", "ambulance"), ordinal=True, urgent="last")
SETTINGS = ReviewSettings(queue_shares="random=1")


def decided(store: Store, case_id: int, label: str, confidence: float, *, supports: bool = True) -> None:
    rest = (1 - confidence) / 2
    probabilities = {own: confidence if own == label else rest for own in LABELS.values}
    decision = Decision(label, probabilities, (label,), deferred=False, tokens=4, tokens_read=4)
    keep_prediction(store, case_id, "m", "hash", decision, Reason("why", 0.5, supports), LABELS, shown=True)


def filled(store: Store, wanted: int = 1) -> None:
    """Five cases; the third has an unsupported reason, the fourth is most urgent, the second least certain."""
    add_cases(store, [NewCase(f"c{i}", f"text {i}") for i in range(1, 6)], source="queue", wanted=wanted)
    for case_id, (label, confidence) in enumerate(
        [("home", 0.9), ("home", 0.4), ("doctor", 0.8), ("ambulance", 0.7), ("doctor", 0.6)], 1
    ):
        decided(store, case_id, label, confidence, supports=case_id != 3)


def answer(case_id: int, reviewer: int, label: str | None = "home", **changes: object) -> GivenAnswer:
    values = {
        "key": f"{case_id}-{reviewer}-{changes.get('kind', 'review')}",
        "case_id": case_id,
        "reviewer": reviewer,
        "prediction": case_id,
        "kind": "review",
        "action": "accept" if label else "defer",
        "label": label,
        "rationale": "why",
        "edited": False,
        "reason": "",
        "comment": "",
        "blind": False,
        "first_label": None,
        "first_at": None,
        "sampled": "random",
        "share": 1.0,
        "opened": "2026-01-01T00:00:00Z",
    }
    return GivenAnswer(**{**values, **changes})  # type: ignore[arg-type]


def state(store: Store, case_id: int) -> str:
    return str(store.rows("SELECT state FROM cases WHERE id = ?", (case_id,))[0]["state"])


# ---- which case is next


@pytest.mark.parametrize(
    ("order", "expected"), [("uncertain", 2), ("unsupported", 3), ("urgent", 4), ("newest", 5), ("random", None)]
)
def test_each_reason_takes_its_case(order: str, expected: int | None, store: Store) -> None:
    filled(store)
    claim = next_case(store, 1, ReviewSettings(queue_shares=f"{order}=1"))
    assert claim is not None and (claim.sampled, claim.share) == (order, 1.0)
    if expected is None:
        expected = min(range(1, 6), key=lambda i: drawn("case", f"c{i}"))
    assert claim.case_id == expected
    again = next_case(store, 1, ReviewSettings(queue_shares="newest=1"))
    assert again == claim  # the same case until it is answered


def test_a_case_is_offered_to_no_more_than_it_needs(store: Store) -> None:
    filled(store)
    settings = ReviewSettings(queue_shares="uncertain=1")
    first, second = next_case(store, 1, settings), next_case(store, 2, settings)
    assert first is not None and second is not None and first.case_id != second.case_id
    answers.keep(store, answer(first.case_id, 1))
    taken = set()
    while (claim := next_case(store, 2, settings)) is not None:
        taken.add(claim.case_id)
        answers.keep(store, answer(claim.case_id, 2))
    assert taken == {1, 2, 3, 4, 5} - {first.case_id}


def test_a_claim_ends_so_that_no_case_is_lost(store: Store) -> None:
    filled(store)
    for case_id in range(1, 6):
        with store.transaction() as database:
            claim_case(database, Claim(case_id, "random", 1.0, "now"), 1, SETTINGS)
    (minutes,) = {round((row["until"] - time.time()) / 60) for row in store.rows("SELECT until FROM claims")}
    assert minutes == SETTINGS.claim_minutes and next_case(store, 2, SETTINGS) is None
    with store.transaction() as database:
        database.execute("UPDATE claims SET until = ?", (time.time() - 1,))
    taken = set()
    while (claim := next_case(store, 2, SETTINGS)) is not None:
        taken.add(claim.case_id)
        answers.keep(store, answer(claim.case_id, 2))
    assert taken == {1, 2, 3, 4, 5}


def test_nothing_is_offered_twice_to_one_person(store: Store) -> None:
    filled(store, wanted=2)
    seen = []
    while (claim := next_case(store, 1, SETTINGS)) is not None:
        seen.append(claim.case_id)
        answers.keep(store, answer(claim.case_id, 1, action="skip" if claim.case_id == 3 else "accept"))
    assert sorted(seen) == [1, 2, 3, 4, 5]
    assert next_case(store, 2, SETTINGS) is not None


def test_the_random_sample_is_the_settled_beginning_of_one_order(store: Store) -> None:
    """Also cases that were taken for another reason belong to it; a gap ends it; what cannot be read does not."""
    filled(store)
    order = sorted(range(1, 6), key=lambda i: drawn("case", f"c{i}"))
    assert random_sample(store) == []
    answers.keep(store, answer(order[1], 1, sampled="urgent"))
    assert random_sample(store) == []
    answers.keep(store, answer(order[0], 1))
    assert random_sample(store) == order[:2]
    with store.transaction() as database:
        database.execute("UPDATE cases SET state = 'unreadable' WHERE id = ?", (order[2],))
    pasted, _ = add_case(store, "pasted-1", "text", source="pasted", wanted=1)
    decided(store, pasted, "home", 0.9)
    for case_id in order[3:]:
        answers.keep(store, answer(case_id, 1))
    assert random_sample(store) == [*order[:2], *order[3:]]
    assert next_case(store, 2, SETTINGS) is None  # a pasted note is its reviewer's


@given(st.floats(0, 1, exclude_max=True), st.dictionaries(st.sampled_from(ORDERS), st.integers(1, 9), min_size=1))
def test_shares_decide_which_reason_comes_first(place: float, parts: dict[str, int]) -> None:
    shares = {order: count / sum(parts.values()) for order, count in parts.items()}
    found = reasons_to_take(shares, place)
    assert sorted(found) == sorted(parts)
    wanted = [order for order in ORDERS if order in parts]
    ends = [sum(shares[order] for order in wanted[: i + 1]) for i in range(len(wanted))]
    expected = next((order for order, end in zip(wanted, ends, strict=True) if place < end), wanted[0])
    assert found[0] == expected


def test_reasons_are_drawn_by_their_shares() -> None:
    shares = {"uncertain": 0.6, "random": 0.4}
    first = [reasons_to_take(shares, drawn("order", 7, i))[0] for i in range(2000)]
    assert 0.57 < first.count("uncertain") / 2000 < 0.63


def test_cases_wait_for_the_model(store: Store) -> None:
    case_id, new = add_case(store, "k", "text", source="queue", wanted=1)
    assert new and add_case(store, "k", "other", source="queue", wanted=1) == (case_id, False)
    assert next_case(store, 1, SETTINGS) is None and without_prediction(store, "hash", 5) == [(case_id, "text")]
    decided(store, case_id, "home", 0.9)
    assert next_case(store, 1, SETTINGS) is not None and without_prediction(store, "hash", 5) == []
    assert without_prediction(store, "another model", 5) == [(case_id, "text")]
    assert without_prediction(store, "another model", 5, after=case_id) == []


# ---- answers


LABEL = st.sampled_from(["home", "doctor", None])


@given(st.lists(LABEL, max_size=4), st.integers(1, 3), st.sampled_from([*LABELS.values, None, "nobody"]))
def test_the_state_of_a_case(labels: list[str | None], wanted: int, settled: str | None) -> None:
    given_ = [{"kind": "review", "action": "accept" if own else "defer", "label": own} for own in labels]
    skipped = {"kind": "review", "action": "skip", "label": None}
    found = state_of(wanted, [*given_, skipped])
    if len(labels) < wanted:
        assert found == "open"
    else:
        agreed = len(set(labels)) == 1 and labels[0] is not None
        assert found == ("reviewed" if agreed else "disputed")
        assert (final_label(given_) is not None) == agreed
    if settled != "nobody":
        adjudication = {"kind": "adjudication", "action": "accept" if settled else "defer", "label": settled}
        after = state_of(wanted, [*given_, adjudication])
        assert after == ("adjudicated" if settled else found)
        assert settled is None or final_label([*given_, adjudication]) == settled
    assert sum(votes(given_).values()) == pytest.approx(1 if any(labels) else 0)


def test_an_answer_sent_twice_is_kept_once_and_another_window_is_noticed(store: Store) -> None:
    filled(store)
    answers.keep(store, answer(1, 1))
    answers.keep(store, answer(1, 1))
    assert len(store.rows("SELECT * FROM answers")) == 1
    with pytest.raises(AnsweredElsewhere):  # the same form, filled in otherwise after the browser's "back"
        answers.keep(store, answer(1, 1, "doctor"))
    with pytest.raises(AnsweredElsewhere) as noticed:
        answers.keep(store, answer(1, 1, "doctor", key="other window"))
    answers.keep(store, answer(1, 1, "doctor", key="other window", replaces=noticed.value.answer["id"]))
    rows = store.rows("SELECT label, undone IS NULL AS stands FROM answers ORDER BY id")
    assert rows == [{"label": "home", "stands": 0}, {"label": "doctor", "stands": 1}]


def test_undo_reopens_the_case_for_the_reason_it_was_taken(store: Store) -> None:
    filled(store)
    answers.keep(store, answer(2, 1, sampled="uncertain", share=0.4))
    assert state(store, 2) == "reviewed"
    answers.keep(store, answer(3, 1))
    last = answers.last_answer(store, 1)
    assert last == 2 and answers.last_answer(store, 2) is None
    undone = answers.undo(store, 1, 1, SETTINGS)
    assert undone is not None and undone["case_id"] == 2 and state(store, 2) == "open"
    # The same form, sent again after that, is one more answer.
    answers.keep(store, answer(2, 1, sampled="uncertain", share=0.4))
    assert state(store, 2) == "reviewed" and answers.undo(store, 1, 1, SETTINGS) is None
    assert answers.undo(store, 1, 3, SETTINGS) is not None
    # Sent again, as a page that is loaded again does, it takes nothing else back.
    assert answers.undo(store, 1, 1, SETTINGS) is not None and answers.last_answer(store, 1) == 2
    claim = next_case(store, 1, SETTINGS)
    assert claim is not None and (claim.case_id, claim.sampled, claim.share) == (2, "uncertain", 0.4)
    assert answers.undo(store, 1, 99, SETTINGS) is None and answers.undo(store, 2, 2, SETTINGS) is None


def test_patients_are_added_to_the_cases_of_an_earlier_version(store: Store) -> None:
    cases = [NewCase("a", "text"), NewCase("b", "text")]
    assert add_cases(store, cases, source="queue", wanted=1) == 2
    known = [NewCase(case.key, case.text, "p1") for case in cases]
    assert add_cases(store, [*known, NewCase("c", "text", "p2")], source="queue", wanted=1) == 1
    assert [row["patient"] for row in store.rows("SELECT patient FROM cases ORDER BY id")] == ["p1", "p1", "p2"]


def test_disputes_go_to_whoever_has_not_reviewed_them(store: Store) -> None:
    filled(store, wanted=2)
    adam = Accounts(store, 60).add("adam", "adjudicator", None)
    answers.keep(store, answer(1, 1, "home"))
    answers.keep(store, answer(1, 2, "doctor"))
    answers.keep(store, answer(4, 1, "home"))
    answers.keep(store, answer(4, 2, None))
    assert (state(store, 1), state(store, 4)) == ("disputed", "disputed")
    assert answers.next_disputed(store, 1) is None and answers.next_disputed(store, adam.id) == 1
    answers.keep(store, answer(1, adam.id, "doctor", kind="adjudication"))
    assert state(store, 1) == "adjudicated" and answers.next_disputed(store, adam.id) == 4


# ---- the file


ANSWERING = """
import sys
from pathlib import Path
from reason2decide.review.answers import GivenAnswer, keep
from reason2decide.review.store import Store
store = Store(Path(sys.argv[1]))
done = store.rows("SELECT count(*) AS n FROM answers")[0]["n"]
rest = ("review", "accept", "home", "why", False, "", "", False, None, None, "random", 1.0, "")
for case_id in range(done + 1, 1001):
    keep(store, GivenAnswer(f"key {case_id}", case_id, 1, case_id, *rest))
    print(case_id, flush=True)
"""


def test_no_acknowledged_answer_is_lost_when_the_process_is_killed(store: Store, tmp_path: Path) -> None:
    """Killed at twenty random points of 1,000 answers: what was acknowledged is there, once, and the file whole."""
    add_cases(store, [NewCase(f"c{i}", "text") for i in range(1, 1001)], source="queue", wanted=1)
    with store.transaction() as database:
        database.execute("UPDATE cases SET state = 'open', confidence = 0.5")
        database.executemany(
            "INSERT INTO predictions VALUES (?, ?, 'm', 'h', 'now', 'home', '{}', '[]', 0, 1, 1, 'why', 1)",
            [(i, i) for i in range(1, 1001)],
        )
    store.close()
    path, chance = tmp_path / "s.sqlite", random.Random(5)
    acknowledged, kills = 0, 0
    while acknowledged < 1000:
        command = [sys.executable, "-c", ANSWERING, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        until = chance.randint(20, 90) if kills < 20 else 2000
        for line in process.stdout:
            acknowledged = int(line)
            until -= 1
            if not until:
                break
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()  # acknowledged before the kill arrived
        acknowledged = max([acknowledged, *map(int, rest)])
        process.wait()
        kills += 1
        with Store(path) as again:
            found = [row["case_id"] for row in again.rows("SELECT case_id FROM answers ORDER BY id")]
            assert found[:acknowledged] == list(range(1, acknowledged + 1)) and len(found) <= acknowledged + 1
            acknowledged = len(found)
            assert again.rows("PRAGMA integrity_check")[0]["integrity_check"] == "ok"
    assert kills > 10


def test_a_copy_is_a_store(store: Store, tmp_path: Path) -> None:
    filled(store)
    answers.keep(store, answer(1, 1))
    store.backup(tmp_path / "copy.sqlite")
    answers.keep(store, answer(2, 1))
    shutil.copy(tmp_path / "copy.sqlite", tmp_path / "restored.sqlite")
    with Store(tmp_path / "restored.sqlite") as restored:
        assert len(restored.rows("SELECT * FROM answers")) == 1
        answers.keep(restored, answer(2, 2))
        assert state(restored, 2) == "reviewed"


def test_a_locked_store_says_so_and_keeps_nothing(store: Store) -> None:
    filled(store)
    store._writer.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        answers.keep(store, answer(1, 1))
    assert store.rows("SELECT * FROM answers") == []  # it can be read
    other.execute("ROLLBACK")
    answers.keep(store, answer(1, 1))
    assert state(store, 1) == "reviewed"


def test_a_full_disk_says_so_and_keeps_nothing(store: Store) -> None:
    filled(store)
    pages = store.rows("PRAGMA page_count")[0]["page_count"]
    store._writer.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StoreUnavailable, match="full"):
        answers.keep(store, answer(1, 1, comment="x" * 100_000))
    assert store.rows("SELECT * FROM answers") == [] and state(store, 1) == "open"
    answers.keep(store, answer(1, 1))


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at as one" * 20)
    with pytest.raises(StoreError, match="not a database"):
        Store(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE requests (id)")
    with pytest.raises(StoreError, match="another kind of database"):
        Store(tmp_path / "other")
    Store(tmp_path / "later").close()
    with sqlite3.connect(tmp_path / "later") as later:
        later.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="a store of version 99, and this program reads stores up to version 2"):
        Store(tmp_path / "later")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot be used as a store"):
        Store(tmp_path / "folder")


def test_a_store_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "old") as old:
        old.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1")
        old.execute(
            "INSERT INTO cases (key, text, source, added, draw, wanted, state) VALUES ('a', 'b', '', '', 0, 1, '')"
        )
    with Store(tmp_path / "old") as store:
        assert store.rows("SELECT key, patient FROM cases") == [{"key": "a", "patient": None}]
    with Store(tmp_path / "old") as store:
        assert store.rows("PRAGMA user_version") == [{"user_version": len(MIGRATIONS)}]


def test_answers_about_other_labels_are_refused(store: Store) -> None:
    require_labels(store, LABELS)
    require_labels(store, LABELS)
    with pytest.raises(ConfigError, match=r"are about the labels home; doctor; ambulance, and this model has no; yes"):
        require_labels(store, LabelSet(("no", "yes")))
    with pytest.raises(ConfigError, match="or another order"):
        require_labels(store, LabelSet(LABELS.values[::-1], ordinal=True, urgent="last"))


def test_nobody_else_reads_the_file(store: Store) -> None:
    assert store.path.stat().st_mode & 0o777 == 0o600

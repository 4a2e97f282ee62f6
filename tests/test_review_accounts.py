"""Who reviews: passwords, sessions, people who leave and come back, those who guess; settings of a review."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from reason2decide.errors import ConfigError
from reason2decide.review.accounts import AccountError, Accounts, Rate
from reason2decide.review.settings import ReviewSettings
from reason2decide.review.store import Store


def test_passwords_and_sessions(store: Store) -> None:
    accounts = Accounts(store, 60)
    ada = accounts.add("Ada Ümlaut", "administrator", "twelve characters")
    assert accounts.checked("Ada Ümlaut", "twelve characters") == ada
    assert accounts.checked("Ada Ümlaut", "wrong") is None and accounts.checked("nobody", "wrong") is None
    assert accounts.checked("nina", "") is None  # without a password: for a proxy only
    token = accounts.begin(ada)
    session = accounts.session(token)
    assert session is not None and session.reviewer == ada and len(session.csrf) > 30
    kept = store.rows("SELECT * FROM sessions")[0]
    assert token not in str(kept) and "twelve" not in str(store.rows("SELECT * FROM reviewers"))
    with store.transaction() as database:
        database.execute("UPDATE sessions SET seen = ?", (time.time() - 61,))
    assert accounts.session(token) is None
    token = accounts.begin(ada)
    accounts.end(token)
    assert accounts.session(token) is None and accounts.session("") is None


def test_a_session_lasts_as_long_as_it_is_used(store: Store) -> None:
    accounts = Accounts(store, 60)
    token = accounts.begin(accounts.add("ada", "reviewer", None))
    for _ in range(3):  # half a minute passes, and again
        with store.transaction() as database:
            database.execute("UPDATE sessions SET seen = seen - 31")
        assert accounts.session(token) is not None


def test_other_passwords_and_people_who_left(store: Store) -> None:
    accounts = Accounts(store, 60)
    ada = accounts.add("ada", "reviewer", "the first password")
    token = accounts.begin(ada)
    accounts.set_password("ada", "the second password")
    assert accounts.session(token) is None and accounts.checked("ada", "the first password") is None
    assert accounts.checked("ada", "the second password") == ada
    with pytest.raises(AccountError, match="use 12 or more"):
        accounts.set_password("ada", "short")
    token = accounts.begin(ada)
    accounts.remove("ada")
    assert accounts.session(token) is None and accounts.checked("ada", "the second password") is None
    assert accounts.named("ada") is None and [own.name for own in accounts.all()] == ["nina", "olga"]
    with pytest.raises(AccountError, match="no reviewer named 'ada'; there are: nina, olga"):
        accounts.remove("ada")
    back = accounts.add("ada", "adjudicator", "the third password")
    assert (back.id, back.pseudonym, back.role) == (ada.id, ada.pseudonym, "adjudicator")
    assert accounts.checked("ada", "the third password") == back and accounts.session(token) is None


@pytest.mark.parametrize(
    ("name", "role", "password", "reason"),
    [
        ("nina", "reviewer", None, "named 'nina' already"),
        ("new", "boss", None, "'boss' is no role; choose one of reviewer, adjudicator, administrator"),
        ("new", "reviewer", "short", "the password has 5 characters; use 12 or more"),
        (" new", "reviewer", None, "cannot be a reviewer's name"),
        ("a\nb", "reviewer", None, "cannot be a reviewer's name"),
    ],
)
def test_accounts_that_cannot_be(name: str, role: str, password: str | None, reason: str, store: Store) -> None:
    with pytest.raises(AccountError, match=reason):
        Accounts(store, 60).add(name, role, password)


def test_rates_forget_after_a_minute() -> None:
    times: list[float] = []
    rate, found = Rate(2, clock=lambda: times[-1]), []
    for moment in (0.0, 1.0, 2.0, 60.5, 61.5, 61.6):
        times.append(moment)
        found.append(rate.allows("a"))
    assert found == [True, True, False, True, True, False] and rate.reached("a") and not rate.reached("b")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"queue_shares": "random=0.5"}, "are not shares that sum to 1"),
        ({"queue_shares": "hardest=1"}, "'hardest' is no reason to take a case; there are uncertain"),
        ({"queue_shares": "random=all"}, "'all' is not a number"),
        ({"queue_shares": "random=2,newest=-1"}, "are not shares"),
        ({"blind_share": 2.0}, "expected a share from 0 to 1"),
        ({"queue": Path("q.jsonl")}, "--queue needs --review FILE"),
        ({"reviewer_header": "X User"}, "is not the name of a header"),
        ({"trusted_proxy": ("proxy",)}, "'proxy' is not an IP address"),
        ({"trusted_proxy": ("10.0.0.1/8",)}, "has host bits set"),
        ({"reviews_per_case": 0}, "must be at least 1"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ReviewSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("caller", "believed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),  # as a server that listens on both kinds of address sees it
        ("2001:db8::1", True),
        ("2001:DB8:0:0::1", True),
        ("::ffff:192.0.2.7", True),
        ("::ffff:192.0.2.8", False),
        ("11.1.2.3", False),
        ("::ffff:11.1.2.3", False),
        ("::1", False),
        ("a socket's path", False),
    ],
)
def test_proxies_are_trusted_by_address_or_network(caller: str, believed: bool) -> None:
    settings = ReviewSettings(trusted_proxy=("10.0.0.0/8", "2001:db8::1", "::ffff:192.0.2.7"))
    assert settings.trusts(caller) == believed

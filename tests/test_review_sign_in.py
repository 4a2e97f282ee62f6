"""Who gets to the review pages: accounts, a trusted proxy, and those who guess."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from reviewing import PASSWORD, Site, filled, form_csrf, form_fields, message, people, sign_in

from reason2decide.serve.app import create_app
from reason2decide.serve.settings import ServeSettings


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return filled(tmp_path)


def test_only_those_with_an_account_get_in(site: Site) -> None:
    with TestClient(site.app, base_url="http://localhost") as client:
        for path in ("", "/next", "/case/1", "/history", "/dashboard", "/adjudicate"):
            page = client.get(f"/review{path}")
            assert "Sign in" in page.text and "chest pain" not in page.text
        wrong = sign_in(client, "nina", "wrong password")
        assert wrong.status_code == 401 and message(wrong) == "Name or password is wrong."
        assert not client.cookies
        right = client.post(
            "/review/sign-in",
            data={"name": "nina", "password": PASSWORD, "to": "/review/case/1"},
            follow_redirects=False,
        )
        assert right.headers["location"] == "/review/case/1"
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/review" in cookie
        page = client.get("/review")
        assert "nina (reviewer)" in page.text and page.headers["cache-control"] == "no-store"
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        out = client.post("/review/sign-out", data={"csrf": form_csrf(page.text)})
        assert "Sign in" in out.text and "Sign in" in client.get("/review").text


@pytest.mark.parametrize("address", ["https://triage.example.org", "http://localhost"])
def test_a_session_leaves_the_browser_encrypted_where_pages_are(address: str, site: Site) -> None:
    app = create_app([site.model], ServeSettings(public_url=address), extension=site.pages)
    with TestClient(app, base_url=address) as client:
        data = {"name": "nina", "password": PASSWORD, "to": "/review"}
        reply = client.post("/review/sign-in", data=data, follow_redirects=False)
    assert ("Secure" in reply.headers["set-cookie"]) is address.startswith("https")


def test_guessing_is_slowed_down(site: Site) -> None:
    with TestClient(site.app, base_url="http://localhost") as client:
        statuses = [sign_in(client, "nina", f"guess number {i}").status_code for i in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert sign_in(client, "nina").status_code == 429  # the right one, too
        assert sign_in(client, "olga").status_code == 200  # from the same address


def test_guessing_names_is_slowed_down(tmp_path: Path) -> None:
    site = filled(tmp_path, failures_a_minute=3)
    with TestClient(site.app, base_url="http://localhost") as client:
        assert [sign_in(client, name).status_code for name in ("nina", "olga", "ada")] == [200] * 3  # no failures
        assert [sign_in(client, f"name {i}").status_code for i in range(5)] == [401] * 3 + [429] * 2


def test_sign_in_leads_to_no_other_site(site: Site) -> None:
    with TestClient(site.app, base_url="http://localhost") as client:
        for path in ("//evil.example", "https://evil.example/review/", "/reviewed.evil.example"):
            data = {"name": "nina", "password": PASSWORD, "to": path}
            moved = client.post("/review/sign-in", data=data, follow_redirects=False)
            assert moved.headers["location"] == "/review"


def test_a_proxy_names_the_reviewer(tmp_path: Path) -> None:
    site = filled(tmp_path, reviewer_header="X-Remote-User", trusted_proxy=("10.0.0.1",))
    named = {"X-Remote-User": "nina"}
    with TestClient(site.app, base_url="http://localhost", client=("10.0.0.1", 5)) as proxy:
        page = proxy.get("/review/case/1", headers=named)
        assert "nina (reviewer)" in page.text and "Sign out" not in page.text
        done = proxy.post("/review/case/1", data=form_fields(page) | {"action": "skip"}, headers=named)
        assert done.status_code == 200 and site.answers()[0]["action"] == "skip"
        assert proxy.get("/review", headers={"X-Remote-User": "mallory"}).status_code == 403
        assert proxy.get("/review").status_code == 403
        unnamed = proxy.post("/review/case/1", data=form_fields(page) | {"comment": "worth keeping"})
        assert unnamed.status_code == 403 and "worth keeping</textarea>" in unnamed.text
        assert message(unnamed) == "The proxy in front of this page did not say who you are."
        twice = [("X-Remote-User", "nina"), ("X-Remote-User", "ada")]
        assert proxy.get("/review", headers=twice).status_code == 403
        assert proxy.post("/review/sign-in", data={"name": "nina", "password": PASSWORD}).status_code == 401
    stranger = TestClient(site.app, base_url="http://localhost", client=("10.0.0.2", 5))
    assert stranger.get("/review", headers=named).status_code == 403


def test_too_many_requests_are_refused(tmp_path: Path) -> None:
    site = filled(tmp_path, requests_a_minute=5)
    with people(site, "nina") as (nina,):
        statuses = [nina.get("/history").status_code for _ in range(6)]
    assert statuses == [200] * 4 + [429] * 2  # the first request was the page after signing in


def test_tokens_of_callers_are_not_asked_for_but_open_nothing_else(tmp_path: Path) -> None:
    site = filled(tmp_path)
    with TestClient(site.app, base_url="http://localhost") as client:
        assert client.get("/reviewer").status_code == 404
        assert client.post("/review/case/1", json={"action": "skip"}).status_code == 401

"""What every review page shares: who is signed in, forms and their secret, templates, headers."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup

from reason2decide.errors import Reason2DecideError
from reason2decide.review.accounts import Accounts, Rate, Session
from reason2decide.review.settings import LANGUAGES, PREFIX, ReviewSettings
from reason2decide.review.store import Store, StoreUnavailable
from reason2decide.review.texts import Texts, chosen_language

COOKIE, LANGUAGE_COOKIE = "r2d_review", "r2d_language"
# No page of ours runs or loads anything but its own style and script, or is shown inside another site's.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",  # notes do not stay in a browser's cache
}
Form = dict[str, str]
COLUMN = "column:"  # before the name of a column that a pasted note is made of
TYPED = ("rationale", "reason", "comment", "text")  # fields in which people write
LARGEST_ID = 2**63 - 1  # of SQLite


class NotSignedIn(Reason2DecideError):
    """Nobody is signed in, or the session has ended."""


class Refusal(Reason2DecideError):
    """A page that says why something was not done; `key` names its text."""

    def __init__(self, key: str, status: int, **values: object) -> None:
        super().__init__(key)
        self.key, self.status, self.values = key, status, values


class BadForm(Refusal):
    """A form without the session's secret: too old, or made by another site."""

    def __init__(self) -> None:
        super().__init__("bad_form", 403)


class Web:
    """Sessions, forms and pages of one store."""

    def __init__(self, store: Store, settings: ReviewSettings, *, secure: bool) -> None:
        self.settings, self._secure = settings, secure
        self.accounts = Accounts(store, 60 * settings.session_minutes)
        self._secret = secrets.token_bytes(32)  # of the forms of those whom a proxy signs in
        self.sign_ins = Rate(settings.sign_ins_a_minute)  # for one name
        self.failures = Rate(settings.failures_a_minute)  # from one address
        self._requests = Rate(settings.requests_a_minute)
        self._pages = jinja2.Environment(
            loader=jinja2.PackageLoader("reason2decide.review"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    @property
    def passwords(self) -> bool:
        """Whether reviewers sign in here, and not at a proxy."""
        return self.settings.reviewer_header is None

    # ---- Who

    def session(self, request: Request) -> Session:
        """The signed-in reviewer.

        Raises:
            NotSignedIn: there is none.
            Refusal: the proxy's user has no account, or asks too often.
        """
        found = self._of_cookie(request) if self.passwords else self._of_proxy(request)
        if not self._requests.allows(str(found.reviewer.id)):
            raise Refusal("rate_limited", 429)
        return found

    def _of_cookie(self, request: Request) -> Session:
        found = self.accounts.session(request.cookies.get(COOKIE, ""))
        if found is None:
            raise NotSignedIn
        return found

    def _of_proxy(self, request: Request) -> Session:
        given = request.headers.getlist(self.settings.reviewer_header or "")
        trusted = request.client is not None and self.settings.trusts(request.client.host)
        if not trusted or len(given) != 1:  # a header that is there twice may be a visitor's own beside the proxy's
            raise NotSignedIn
        reviewer = self.accounts.named(given[0])
        if reviewer is None:
            raise Refusal("unknown_user", 403, name=given[0])
        return Session(reviewer, hmac.new(self._secret, given[0].encode("utf-8", "replace"), "sha256").hexdigest())

    @staticmethod
    def require_own_form(session: Session, form: Form) -> None:
        """Refuse a form that does not show the session's secret.

        Raises:
            BadForm: as said.
        """
        given, own = (
            hashlib.sha256(value.encode("utf-8", "replace")).digest() for value in (form.get("csrf", ""), session.csrf)
        )
        if not hmac.compare_digest(given, own):
            raise BadForm

    def signed_in(self, response: Response, token: str) -> None:
        """Give a browser its session."""
        response.set_cookie(COOKIE, token, path=PREFIX, httponly=True, samesite="strict", secure=self._secure)

    # ---- Pages

    def page(
        self,
        request: Request,
        template: str,
        session: Session | None,
        *,
        status: int = 200,
        messages: Iterable[str] = (),
        **values: Any,
    ) -> HTMLResponse:
        """A page in the reader's language."""
        t = self.texts(request)
        csrf = session.csrf if session else ""

        def csrf_field() -> Markup:
            return Markup('<input type="hidden" name="csrf" value="{}">').format(csrf)

        content = self._pages.get_template(template).render(
            t=t,
            prefix=PREFIX,
            session=session,
            csrf=csrf_field,
            languages={code: Texts(code)("language") for code in LANGUAGES},
            passwords=self.passwords,
            messages=list(messages),
            **values,
        )
        return HTMLResponse(content, status, HEADERS | {"Content-Language": t.language})

    @staticmethod
    def texts(request: Request) -> Texts:
        """The texts of the reader's language."""
        return Texts(chosen_language(request.cookies.get(LANGUAGE_COOKIE), request.headers.get("accept-language", "")))

    def failed(self, request: Request, error: Reason2DecideError, form: Form | None) -> Response:
        """The page for what went wrong; what a form held is on it, so that nothing typed is lost."""
        t = self.texts(request)
        kept = {name: value for name, value in (form or {}).items() if name != "password"}
        session, to = None, request.url.path
        if isinstance(error, NotSignedIn) and self.passwords:
            return self._sign_in_again(request, kept)
        if isinstance(error, NotSignedIn):
            status, message = 403, t("not_named")
        elif isinstance(error, StoreUnavailable):
            status, message = 503, t("unavailable" if form is None else "not_saved", why=str(error))
        else:
            assert isinstance(error, Refusal)
            status, message = error.status, t(error.key, **error.values)
            with contextlib.suppress(Reason2DecideError):
                session = self.session(request)
        if "kept" in kept:  # signing in again failed: what was typed before, and for which page
            page, kept = kept.get("to", ""), dict(held_fields(kept["kept"]))
            to = page if page.startswith(f"{PREFIX}/") else PREFIX
        if session is not None:  # the page has its secret now
            kept.pop("csrf", None)
        if any(value for name, value in kept.items() if name in (*TYPED, "label") or name.startswith(COLUMN)):
            return self.page(
                request,
                "kept.html",
                session,
                column=COLUMN,
                typed=[name for name in kept if name in TYPED or name.startswith(COLUMN)],
                kept=kept,
                to=to,
                status=status,
                messages=[message],
            )
        return self.page(request, "message.html", session, status=status, messages=[message])

    def _sign_in_again(self, request: Request, kept: Form) -> HTMLResponse:
        path, query = request.url.path, request.url.query
        if request.method == "GET":
            return self.sign_in_page(request, f"{path}?{query}" if query else path)
        return self.sign_in_page(request, path, kept=kept, status=401, messages=[self.texts(request)("session_ended")])

    def sign_in_page(
        self,
        request: Request,
        to: str,
        *,
        kept: Mapping[str, str] | None = None,
        status: int = 200,
        messages: Iterable[str] = (),
    ) -> HTMLResponse:
        """The page to sign in on; afterwards the reviewer goes on to a page, with what a form held."""
        held = json.dumps(dict(kept), ensure_ascii=False) if kept else ""
        return self.page(request, "sign_in.html", None, status=status, messages=messages, to=to, kept=held)


async def form_of(request: Request) -> Form:
    """The fields of a form, as a page sends them: URL-encoded UTF-8; the last of a name counts.

    Raises:
        Refusal: it is not one.
    """
    try:
        pairs = parse_qsl((await request.body()).decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise Refusal("not_text", 422) from None
    return {name: value.replace("\r\n", "\n") for name, value in pairs}


def held_fields(held: str) -> Form:
    """The fields that the page to sign in on held for later; none if it is not what that page held.

    >>> held_fields('{"comment": "half a thought"}'), held_fields("{")
    ({'comment': 'half a thought'}, {})
    """
    try:
        content = json.loads(held) if held else {}
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in content.items()} if isinstance(content, dict) else {}


def id_of(text: str) -> int | None:
    """The id that a field holds, if it is one.

    >>> id_of("17"), id_of("\u00b2"), id_of("9" * 30), id_of("")
    (17, None, None, None)
    """
    return int(text) if len(text) < 20 and text.isdecimal() and int(text) <= LARGEST_ID else None


def to(path: str) -> RedirectResponse:
    """Go on to another page, so that reloading it sends nothing again."""
    return RedirectResponse(f"{PREFIX}{path}", 303, HEADERS)

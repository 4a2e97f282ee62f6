"""The routes of the review pages: signing in, cases, pasted notes, history, the dashboard."""

from __future__ import annotations

import contextlib
import secrets
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from reason2decide.errors import DataError
from reason2decide.review import answers
from reason2decide.review.accounts import Session
from reason2decide.review.answers import ACTIONS
from reason2decide.review.asking import Asking
from reason2decide.review.case_page import CasePage, why_of
from reason2decide.review.dashboard import Numbers
from reason2decide.review.queueing import PASTED, Claim, add_case, claim_case, keep_prediction, next_case
from reason2decide.review.settings import LANGUAGES, PREFIX, ReviewSettings
from reason2decide.review.store import Store, StoreUnavailable, now
from reason2decide.review.texts import Texts
from reason2decide.review.web import (
    COLUMN,
    COOKIE,
    LANGUAGE_COOKIE,
    LARGEST_ID,
    BadForm,
    Form,
    NotSignedIn,
    Refusal,
    Web,
    form_of,
    held_fields,
    id_of,
    to,
)
from reason2decide.serve.audit import AuditUnavailable
from reason2decide.serve.batching import DeadlineExceeded, Overloaded
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.texts import text_of
from reason2decide.serve.wire import Refused, TooManyCharacters

if TYPE_CHECKING:
    from reason2decide.serve.recording import Handler

HISTORY_ROWS = 50  # ours: of a page
STATIC = {"review.css": "text/css", "review.js": "text/javascript", "icon.svg": "image/svg+xml"}
_FILES = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Site:
    """What the routes work with.

    Args:
        model: the one whose decisions are reviewed.
        numbers: the dashboard's.
        counts: number of cases in each state.
        longest_note: characters of a note that may be pasted.
    """

    store: Store
    settings: ReviewSettings
    model: ServedModel
    web: Web
    page: CasePage
    asked: Asking
    numbers: Callable[[], Numbers]
    counts: Callable[[], Mapping[str, int]]
    longest_note: int


def review_routes(site: Site) -> APIRouter:
    """All routes below the prefix."""
    web, page, store, model, asked = site.web, site.page, site.store, site.model, site.asked
    api = APIRouter(prefix=PREFIX, include_in_schema=False, route_class=_page_route(web))
    columns = () if model.reads_notes or model.recipe is None else model.recipe.text

    def signed_in(request: Request) -> Session:
        return web.session(request)

    who, sent = Depends(signed_in), Depends(form_of)

    def home_page(
        request: Request,
        session: Session,
        status: int = 200,
        messages: Sequence[str] = (),
        pasted: Mapping[str, str] = {},
    ) -> HTMLResponse:
        return web.page(
            request,
            "home.html",
            session,
            status=status,
            messages=messages,
            counts=site.counts(),
            columns=columns,
            prefix_of_columns=COLUMN,
            pasted=pasted,
            last_answer=answers.last_answer(store, session.reviewer.id),
        )

    def note_of(form: Form) -> dict[str, str]:
        """What a form has of a note: its columns, or its text."""
        return {name: form.get(f"{COLUMN}{name}", "") for name in columns} or {"text": form.get("text", "")}

    @api.get("")
    def home(request: Request, session: Session = who, said: str = "") -> HTMLResponse:
        known = said in ("nothing_left", "nothing_disputed", "nothing_to_undo")
        return home_page(request, session, messages=[web.texts(request)(said)] if known else [])

    @api.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise Refusal("gone", 404)
        headers = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}
        return FileResponse(_FILES / name, media_type=STATIC[name], headers=headers)

    @api.get("/language/{code}")
    def language(code: str, request: Request) -> Response:
        response = to("")
        if code in LANGUAGES:
            response.set_cookie(LANGUAGE_COOKIE, code, path=PREFIX, samesite="strict")
        return response

    # ---- signing in

    @api.get("/sign-in")
    def sign_in_page(request: Request) -> Response:
        return web.sign_in_page(request, PREFIX)

    @api.post("/sign-in")
    def sign_in(request: Request, form: Form = sent) -> Response:
        name, path = form.get("name", ""), form.get("to", "")
        kept = held_fields(form.get("kept", ""))
        address = request.client.host if request.client else ""
        t = web.texts(request)
        if web.failures.reached(address) or not web.sign_ins.allows(name.casefold()):
            return web.sign_in_page(request, path, kept=kept, status=429, messages=[t("too_many")])
        reviewer = web.accounts.checked(name, form.get("password", "")) if web.passwords else None
        if reviewer is None:
            web.failures.allows(address)
            return web.sign_in_page(request, path, kept=kept, status=401, messages=[t("wrong_password")])
        token = web.accounts.begin(reviewer)
        session = web.accounts.session(token)
        assert session is not None
        place = path.removeprefix(PREFIX) if path.startswith(f"{PREFIX}/") else ""
        case_id = id_of(place.removeprefix("/case/"))
        response: Response
        if kept and case_id is not None:  # shown again, and not sent before it was looked at
            response = page.show(request, session, page.view(session, case_id, kept), form=kept)
        elif kept and place == "/paste":
            response = home_page(request, session, pasted=note_of(kept))
        else:
            response = to("" if kept else place)
        web.signed_in(response, token)
        return response

    @api.post("/sign-out")
    def sign_out(request: Request, session: Session = who, form: Form = sent) -> Response:
        web.require_own_form(session, form)
        web.accounts.end(request.cookies.get(COOKIE, ""))
        response = to("/sign-in")
        response.delete_cookie(COOKIE, path=PREFIX)
        return response

    # ---- cases

    @api.get("/next")
    def take_next(session: Session = who) -> Response:
        claim = next_case(store, session.reviewer.id, site.settings)
        return to("?said=nothing_left" if claim is None else f"/case/{claim.case_id}")

    @api.get("/adjudicate")
    def take_disputed(session: Session = who) -> Response:
        if not session.reviewer.adjudicates:
            raise Refusal("gone", 404)
        case_id = answers.next_disputed(store, session.reviewer.id)
        return to("?said=nothing_disputed" if case_id is None else f"/case/{case_id}")

    @api.get("/case/{case_id}")
    def show_case(case_id: int, request: Request, session: Session = who) -> Response:
        return page.show(request, session, page.view(session, case_id))

    @api.post("/case/{case_id}")
    async def answer_case(case_id: int, request: Request, session: Session = who, form: Form = sent) -> Response:
        view = await run_in_threadpool(page.view, session, case_id, form)
        t = web.texts(request)

        async def again(status: int, *messages: str, **values: Any) -> Response:
            return await run_in_threadpool(
                page.show, request, session, view, form=form, messages=messages, status=status, **values
            )

        try:
            web.require_own_form(session, form)
        except BadForm as error:
            return await again(error.status, t(error.key))
        if "why" in form:
            label = form["why"]
            if label not in model.labels.values or view.hidden:
                raise Refusal("bad_form", 422)
            if not model.explains_any_label:
                return await again(422, t("no_explanation"))
            try:
                reason = await asked.why(model, view.case["text"], label, session.reviewer.name)
            except (Overloaded, DeadlineExceeded, AuditUnavailable):
                return await again(503, t("busy"))
            except DataError as error:  # the model that decided on the case may have been another
                return await again(422, str(error))
            return await again(200, why=why_of(label, reason))
        wrong = await run_in_threadpool(page.answered, request, session, view, form)
        if wrong is not None:
            return wrong
        if form["action"] == "first":
            return to(f"/case/{case_id}")
        return to("/adjudicate" if view.kind == "adjudication" else "/next")

    @api.post("/undo")
    def undo(request: Request, session: Session = who, form: Form = sent) -> Response:
        web.require_own_form(session, form)
        given = id_of(form.get("answer", ""))
        last = None if given is None else answers.undo(store, session.reviewer.id, given, site.settings)
        if last is None:
            return to("?said=nothing_to_undo")
        kept = {name: last[name] or "" for name in ("label", "rationale", "reason", "comment", "opened")}
        if last["prediction"] is not None:
            kept["prediction"] = str(last["prediction"])
        view = page.view(session, last["case_id"], kept)
        return page.show(request, session, view, form=kept, messages=[web.texts(request)("undone")])

    @api.post("/paste")
    async def paste(request: Request, session: Session = who, form: Form = sent) -> Response:
        web.require_own_form(session, form)
        t = web.texts(request)
        given = note_of(form)

        async def again(status: int, message: str) -> Response:
            return await run_in_threadpool(home_page, request, session, status, [message], given)

        try:
            text = text_of(model.recipe, given if columns else given["text"], site.longest_note)
        except TooManyCharacters as error:
            return await again(413, str(error))
        except Refused as error:
            return await again(422, str(error))
        problem = _no_note(text, site.longest_note, t)
        if problem:
            return await again(422, problem)
        try:
            decided = await asked.decided(model, text, session.reviewer.name)
        except (Overloaded, DeadlineExceeded, AuditUnavailable):
            return await again(503, t("busy"))
        except DataError as error:
            return await again(422, str(error))
        case_id = await run_in_threadpool(_pasted, site, session, text)
        decision, reason = model.reviewed(*decided), decided[1]
        values = (store, case_id, model.name, model.hash, decision, reason, model.labels)
        await run_in_threadpool(keep_prediction, *values, shown=True)
        return to(f"/case/{case_id}")

    # ---- what was answered

    @api.get("/history")
    def history(
        request: Request, session: Session = who, label: str = "", action: str = "", key: str = "", before: int = 0
    ) -> Response:
        conditions: list[str] = ["a.undone IS NULL"]
        values: list[object] = []
        if session.reviewer.role != "administrator":
            conditions.append("a.reviewer = ?")
            values.append(session.reviewer.id)
        for condition, value in (("a.label = ?", label), ("a.action = ?", action), ("c.key = ?", key.strip())):
            if value:
                conditions.append(condition)
                values.append(value)
        if before:
            conditions.append("a.id < ?")
            values.append(min(before, LARGEST_ID))
        rows = store.rows(
            "SELECT a.id, a.at, a.action, a.label, a.case_id, c.key, r.name, p.label AS model_label FROM answers a "
            "JOIN cases c ON c.id = a.case_id JOIN reviewers r ON r.id = a.reviewer "
            f"LEFT JOIN predictions p ON p.id = a.prediction WHERE {' AND '.join(conditions)} "
            "ORDER BY a.id DESC LIMIT ?",
            (*values, HISTORY_ROWS + 1),
        )
        more = ""
        if len(rows) > HISTORY_ROWS:
            rows = rows[:HISTORY_ROWS]
            query = {"label": label, "action": action, "key": key, "before": rows[-1]["id"]}
            more = f"{PREFIX}/history?{urlencode(query)}"
        return web.page(
            request,
            "history.html",
            session,
            rows=rows,
            more=more,
            labels=model.labels.values,
            actions=ACTIONS,
            chosen={"label": label, "action": action, "key": key},
        )

    @api.get("/dashboard")
    def show_dashboard(request: Request, session: Session = who) -> Response:
        return web.page(request, "dashboard.html", session, d=site.numbers(), counts=site.counts())

    return api


def _pasted(site: Site, session: Session, text: str) -> int:
    """Add a note that a reviewer pasted; it is theirs."""
    key = f"pasted-{now()[:10]}-{secrets.token_hex(3)}"
    case_id, _ = add_case(site.store, key, text, source=PASTED, wanted=1)
    with site.store.transaction() as database:
        claim_case(database, Claim(case_id, PASTED, 0.0, now()), session.reviewer.id, site.settings)
    return case_id


def _page_route(web: Web) -> type[APIRoute]:
    """A kind of route that answers what went wrong with a page; what a form held is on it."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Handler:
            inner = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await inner(request)
                except RequestValidationError:  # an id that is none
                    return await run_in_threadpool(web.failed, request, Refusal("gone", 404), None)
                except (NotSignedIn, StoreUnavailable, Refusal) as error:
                    form = None
                    if request.method == "POST":
                        with contextlib.suppress(Refusal):  # what was sent is no form
                            form = await form_of(request)
                    return await run_in_threadpool(web.failed, request, error, form)

            return handle

    return PageRoute


def _no_note(text: str, most: int, t: Texts) -> str | None:
    """Why a text is no note; None if it may be one."""
    if not text.strip():
        return t("empty_note")
    if len(text) > most:
        return t("too_long", found=len(text), most=most)
    if any(unicodedata.category(character) in ("Cc", "Cs", "Cn") and character not in "\t\n\r" for character in text):
        return t("not_text")
    return None

"""The review pages inside the server: their routes, and the work in the background that prepares cases."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import threading
import time
import traceback
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from reason2decide.console import say
from reason2decide.errors import DataError
from reason2decide.model.decision import Decision
from reason2decide.model.reasons import Reason
from reason2decide.review import answers
from reason2decide.review.accounts import Session
from reason2decide.review.answers import ACTIONS
from reason2decide.review.case_page import CasePage, why_of
from reason2decide.review.dashboard import dashboard
from reason2decide.review.queueing import (
    ADJUDICATED,
    DISPUTED,
    OPEN,
    REVIEWED,
    UNREADABLE,
    WAITING,
    Claim,
    add_case,
    claim_case,
    keep_prediction,
    next_case,
    without_prediction,
)
from reason2decide.review.settings import LANGUAGES, PREFIX, ReviewSettings
from reason2decide.review.store import Store, StoreUnavailable, now
from reason2decide.review.texts import Texts
from reason2decide.review.web import (
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
    to,
)
from reason2decide.serve.audit import AuditLog, AuditUnavailable
from reason2decide.serve.batching import Batcher, DeadlineExceeded, Overloaded
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings
from reason2decide.serve.texts import text_of
from reason2decide.serve.wire import Refused, TooManyCharacters

if TYPE_CHECKING:
    from reason2decide.serve.recording import Handler

AT_ONCE = 8  # ours: cases prepared together
IDLE_SECONDS = 1.0  # ours: between two looks for cases to prepare
PREPARE_SECONDS = 600.0  # ours: deadline of a case prepared in the background
HISTORY_ROWS = 50  # ours: of a page
DASHBOARD_SECONDS = 30.0  # ours: how long its numbers are kept
STATES = (WAITING, OPEN, REVIEWED, DISPUTED, ADJUDICATED, UNREADABLE)
STATIC = {"review.css": "text/css", "review.js": "text/javascript", "icon.svg": "image/svg+xml"}
_log = logging.getLogger(__name__)
_SITE = __file__.rsplit("/", 1)[0]


class _Kept:
    """A value that takes long to compute: computed by one caller at a time, others get the last one meanwhile."""

    def __init__(self, compute: Callable[[], Any], seconds: float) -> None:
        self._compute, self._seconds = compute, seconds
        self._lock = threading.Lock()
        self._at, self._value = -math.inf, None

    def __call__(self) -> Any:
        old = time.monotonic() - self._at > self._seconds
        if old and self._lock.acquire(blocking=self._value is None):
            try:
                if time.monotonic() - self._at > self._seconds:
                    self._at, self._value = time.monotonic(), self._compute()
            finally:
                self._lock.release()
        return self._value


class ReviewPages:
    """Pages of one store beside a server's endpoints; see `serve.extension.Extension`.

    The first model's decisions are reviewed; other models with the same labels decide on each case too, to be compared.
    """

    prefix = PREFIX

    def __init__(self, store: Store, settings: ReviewSettings, models: Sequence[ServedModel]) -> None:
        self._store, self._settings = store, settings
        self._model = models[0]
        self._models = [model for model in models if model.labels == models[0].labels]
        self._prepare: Callable[[], Awaitable[None]] | None = None
        self._prepared_to, self._said = 0, ""
        hashes = [model.hash for model in self._models]
        self.numbers = _Kept(lambda: dashboard(store, self._model.labels, hashes), DASHBOARD_SECONDS)
        self._counts = _Kept(self._counted, 1.0)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def keep_card_feedback(self, **values: Any) -> None:
        """See `Extension`.

        Raises:
            AuditUnavailable: it cannot be kept now.
        """
        names = ("caller", "service", "card", "outcome", "outcome_at", "reason_system", "reason_code", "comment")
        try:
            with self._store.transaction() as database:
                database.execute(
                    f"INSERT INTO card_feedback (at, {', '.join(names)}) VALUES (?{', ?' * len(names)})",
                    (now(), *(values[name] for name in names)),
                )
        except StoreUnavailable as error:
            raise AuditUnavailable(f"the store of reviews cannot be written now: {error}") from None

    async def run(self) -> None:
        """Let the models decide on the cases that wait, while no caller does."""
        counted = False
        while True:
            try:
                if not counted:  # so that nobody waits for the dashboard's first numbers
                    counted = True
                    await asyncio.to_thread(self.numbers)
                if self._prepare is not None:
                    await self._prepare()
            except Exception as error:  # logged by type and location, as `guard` does, since a message may quote a note
                place = traceback.extract_tb(error.__traceback__)[-1]
                _log.error("review: %s at %s, line %s", type(error).__name__, place.filename, place.lineno)
            await asyncio.sleep(IDLE_SECONDS)

    def router(
        self, models: Sequence[ServedModel], batcher: Batcher, settings: ServeSettings, audit: AuditLog | None
    ) -> APIRouter:
        """See `Extension`."""
        asked = _Asked(batcher, settings, audit)
        self._prepare = lambda: self._prepare_cases(batcher, asked)
        web = Web(self._store, self._settings, secure=(settings.public_url or "").startswith("https://"))
        page = CasePage(self._store, web, self._model.labels, self._model.hash, explains=self._model.explains)
        return _routes(self, web, page, asked, settings)

    async def _prepare_cases(self, batcher: Batcher, asked: _Asked) -> None:
        (newest,) = await asyncio.to_thread(self._store.rows, "SELECT max(id) AS id FROM cases")
        if newest["id"] is None or newest["id"] == self._prepared_to:
            return
        try:
            for model in self._models:
                while cases := await asyncio.to_thread(without_prediction, self._store, model.hash, AT_ONCE):
                    while batcher.requests:
                        await asyncio.sleep(IDLE_SECONDS / 4)
                    await asyncio.gather(*(self.prepare(asked, model, *case, caller="review queue") for case in cases))
            self._prepared_to, self._said = newest["id"], ""
        except (Overloaded, DeadlineExceeded, StoreUnavailable, AuditUnavailable) as error:
            if str(error) != self._said:
                self._said = str(error)
                say(f"review: cases wait to be prepared: {error}")

    async def prepare(self, asked: _Asked, model: ServedModel, case_id: int, text: str, *, caller: str) -> None:
        """Let a model decide on a case, and keep what it says; a text that it cannot read is marked so."""
        deadline = time.monotonic() + PREPARE_SECONDS
        try:
            decision, reason = await asked.decided(model, text, caller, deadline)
        except DataError:
            await asyncio.to_thread(self._mark_unreadable, case_id)
            return
        decision = model.reviewed(decision, reason)
        await asyncio.to_thread(
            keep_prediction,
            self._store,
            case_id,
            model.name,
            model.hash,
            decision,
            reason,
            model.labels,
            shown=model is self._model,
        )

    def _mark_unreadable(self, case_id: int) -> None:
        with self._store.transaction() as database:
            database.execute("UPDATE cases SET state = ? WHERE id = ?", (UNREADABLE, case_id))

    # ---- what the routes need

    @property
    def store(self) -> Store:
        """Where everything is kept."""
        return self._store

    @property
    def model(self) -> ServedModel:
        """The model whose decisions are reviewed."""
        return self._model

    @property
    def settings(self) -> ReviewSettings:
        """How cases are taken and reviewed."""
        return self._settings

    def counts(self) -> dict[str, int]:
        """Number of cases in each state, at most a second old."""
        found: dict[str, int] = self._counts()
        return found

    def _counted(self) -> dict[str, int]:
        rows = self._store.rows("SELECT state, count(*) AS n FROM cases GROUP BY state")
        found = {row["state"]: row["n"] for row in rows}
        return {state: found.get(state, 0) for state in STATES if found.get(state) or state in (OPEN, REVIEWED)}

    def pasted(self, session: Session, text: str) -> int:
        """Add a note that a reviewer pasted; it is theirs."""
        key = f"pasted-{now()[:10]}-{secrets.token_hex(3)}"
        case_id, _ = add_case(self._store, key, text, source="pasted", wanted=1)
        with self._store.transaction() as database:
            claim_case(database, Claim(case_id, "pasted", 0.0, now()), session.reviewer.id, self._settings)
        return case_id


class _Asked:
    """Asks models as the endpoints do: admitted, within a deadline, recorded."""

    def __init__(self, batcher: Batcher, settings: ServeSettings, audit: AuditLog | None) -> None:
        self._batcher, self._settings, self._audit = batcher, settings, audit

    async def decided(
        self, model: ServedModel, text: str, caller: str, deadline: float | None = None
    ) -> tuple[Decision, Reason | None]:
        """A model's decision on a text, and its reason if it writes one."""
        began, until = time.monotonic(), deadline or self._settings.deadline()
        with self._batcher.admit(model, until, explains=int(model.explains)) as admitted:
            decision = await admitted.decide(text)
            reason = await admitted.explain(text, decision.label) if model.explains else None
        await self._recorded(model, text, caller, began, decision, decision.label)
        return decision, reason

    async def why(self, model: ServedModel, text: str, label: str, caller: str) -> Reason:
        """A model's reason for a label."""
        began = time.monotonic()
        with self._batcher.admit(model, self._settings.deadline(), explains=1) as admitted:
            reason = await admitted.explain(text, label)
        await self._recorded(model, text, caller, began, None, label)
        return reason

    async def _recorded(
        self, model: ServedModel, text: str, caller: str, began: float, decision: Decision | None, label: str
    ) -> None:
        if self._audit is None:
            return
        row = self._audit.record(
            caller=caller,
            endpoint=PREFIX,
            status=200,
            latency_ms=1000 * (time.monotonic() - began),
            model=model.name,
            model_hash=model.hash,
            text=text,
            label=label,
            confidence=decision.confidence if decision else None,
            tokens=decision.tokens if decision else None,
            tokens_read=decision.tokens_read if decision else None,
        )
        await self._audit.written(row)


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
                    if request.method == "POST" and not isinstance(error, Refusal):
                        form = await form_of(request)
                    return await run_in_threadpool(web.failed, request, error, form)

            return handle

    return PageRoute


def _routes(pages: ReviewPages, web: Web, page: CasePage, asked: _Asked, settings: ServeSettings) -> APIRouter:
    api = APIRouter(prefix=PREFIX, include_in_schema=False, route_class=_page_route(web))
    store, model = pages.store, pages.model
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
            counts=pages.counts(),
            columns=columns,
            pasted=pasted,
        )

    @api.get("")
    def home(request: Request, session: Session = who, said: str = "") -> HTMLResponse:
        known = said in ("nothing_left", "nothing_disputed", "nothing_to_undo")
        return home_page(request, session, messages=[web.texts(request)(said)] if known else [])

    @api.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise Refusal("gone", 404)
        headers = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}
        return FileResponse(f"{_SITE}/static/{name}", media_type=STATIC[name], headers=headers)

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
        response: Response = to(path.removeprefix(PREFIX) if path.startswith(f"{PREFIX}/") else "")
        last = path.rsplit("/", 1)[-1]
        session = web.accounts.session(token)
        if kept and session is not None and last.isdigit():  # shown again, and not sent before it was looked at
            response = page.show(request, session, page.view(session, int(last), kept), form=kept)
        elif kept and session is not None and "text" in kept:
            response = home_page(request, session, pasted=kept)
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
        claim = next_case(store, session.reviewer.id, pages.settings)
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
            if not model.explains:
                return await again(422, t("no_explanation"))
            try:
                reason = await asked.why(model, view.case["text"], label, session.reviewer.name)
            except (Overloaded, DeadlineExceeded, AuditUnavailable):
                return await again(503, t("busy"))
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
        last = answers.undo(store, session.reviewer.id, pages.settings)
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
        given = {name: form.get(f"column:{name}", "") for name in columns} if columns else form

        async def again(status: int, message: str) -> Response:
            return await run_in_threadpool(home_page, request, session, status, [message], given)

        try:
            text = text_of(model.recipe, dict(given) if columns else form.get("text", ""), settings.max_text)
        except TooManyCharacters as error:
            return await again(413, str(error))
        except Refused as error:
            return await again(422, str(error))
        problem = _no_note(text, settings.max_text, t)
        if problem:
            return await again(422, problem)
        try:
            decided = await asked.decided(model, text, session.reviewer.name)
        except (Overloaded, DeadlineExceeded, AuditUnavailable):
            return await again(503, t("busy"))
        except DataError as error:
            return await again(422, str(error))
        case_id = await run_in_threadpool(pages.pasted, session, text)
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
        return web.page(request, "dashboard.html", session, d=pages.numbers(), counts=pages.counts())

    return api


def _no_note(text: str, most: int, t: Texts) -> str | None:
    """Why a text is no note; None if it may be one."""
    if not text.strip():
        return t("empty_note")
    if len(text) > most:
        return t("too_long", found=len(text), most=most)
    if any(unicodedata.category(character) in ("Cc", "Cs", "Cn") and character not in "\t\n\r" for character in text):
        return t("not_text")
    return None

"""The review pages as an extension of the server, and the work in the background that prepares cases."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from reason2decide.console import say
from reason2decide.errors import DataError
from reason2decide.review.asking import Asking
from reason2decide.review.case_page import CasePage
from reason2decide.review.dashboard import dashboard
from reason2decide.review.queueing import (
    ADJUDICATED,
    DISPUTED,
    OPEN,
    REVIEWED,
    UNREADABLE,
    WAITING,
    keep_prediction,
    without_prediction,
)
from reason2decide.review.routes import Site, review_routes
from reason2decide.review.settings import PREFIX, ReviewSettings
from reason2decide.review.store import Store, StoreUnavailable, now
from reason2decide.review.web import Web
from reason2decide.serve.audit import AuditLog, AuditUnavailable
from reason2decide.serve.batching import Batcher, DeadlineExceeded, Overloaded
from reason2decide.serve.extension import CardFeedback
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

AT_ONCE = 8  # ours: cases prepared together
IDLE_SECONDS = 1.0  # ours: between two looks for cases to prepare
PREPARE_SECONDS = 600.0  # ours: deadline of a case prepared in the background
DASHBOARD_SECONDS = 30.0  # ours: how long its numbers are kept
STATES = (WAITING, OPEN, REVIEWED, DISPUTED, ADJUDICATED, UNREADABLE)
_log = logging.getLogger(__name__)


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
        self.store, self._settings = store, settings
        self._model = models[0]
        self._models = [model for model in models if model.labels == models[0].labels]
        self._prepare: Callable[[], Awaitable[None]] | None = None
        self._prepared_to, self._said = 0, ""
        hashes = [model.hash for model in self._models]
        self.numbers = _Kept(lambda: dashboard(store, self._model.labels, hashes), DASHBOARD_SECONDS)
        self._counts = _Kept(self._counted, 1.0)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def keep_card_feedback(self, feedback: CardFeedback) -> None:
        """See `Extension`."""
        values = {"at": now(), **asdict(feedback)}
        try:
            with self.store.transaction() as database:
                names = ", ".join(values)
                database.execute(
                    f"INSERT INTO card_feedback ({names}) VALUES ({', '.join(f':{name}' for name in values)})", values
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

    def router(self, batcher: Batcher, settings: ServeSettings, audit: AuditLog | None) -> APIRouter:
        """See `Extension`."""
        asked, model = Asking(batcher, settings, audit), self._model
        self._prepare = lambda: self._prepare_cases(batcher, asked)
        web = Web(self.store, self._settings, secure=(settings.public_url or "").startswith("https://"))
        page = CasePage(self.store, web, model.labels, model.hash, explains=model.explains_any_label)
        numbers, counts, most = self.numbers, self._counts, settings.max_text
        return review_routes(Site(self.store, self._settings, model, web, page, asked, numbers, counts, most))

    async def _prepare_cases(self, batcher: Batcher, asked: Asking) -> None:
        (newest,) = await asyncio.to_thread(self.store.rows, "SELECT max(id) AS id FROM cases")
        if newest["id"] is None or newest["id"] == self._prepared_to:
            return
        try:
            for model in self._models:
                last = 0  # a text that a model cannot read is passed over, not asked of for ever
                while cases := await asyncio.to_thread(without_prediction, self.store, model.hash, AT_ONCE, after=last):
                    last = cases[-1][0]
                    while batcher.requests:
                        await asyncio.sleep(IDLE_SECONDS / 4)
                    await asyncio.gather(*(self.prepare(asked, model, *case, caller="review queue") for case in cases))
            self._prepared_to, self._said = newest["id"], ""
        except (Overloaded, DeadlineExceeded, StoreUnavailable, AuditUnavailable) as error:
            if str(error) != self._said:
                self._said = str(error)
                say(f"review: cases wait to be prepared: {error}")

    async def prepare(self, asked: Asking, model: ServedModel, case_id: int, text: str, *, caller: str) -> None:
        """Let a model decide on a case, and keep what it says; what the reviewed model cannot read is marked so."""
        deadline = time.monotonic() + PREPARE_SECONDS
        try:
            decision, reason = await asked.decided(model, text, caller, deadline)
        except DataError:
            if model is self._model:
                await asyncio.to_thread(self._mark_unreadable, case_id)
            return
        decision = model.reviewed(decision, reason)
        await asyncio.to_thread(
            keep_prediction,
            self.store,
            case_id,
            model.name,
            model.hash,
            decision,
            reason,
            model.labels,
            shown=model is self._model,
        )

    def _mark_unreadable(self, case_id: int) -> None:
        with self.store.transaction() as database:
            values = (UNREADABLE, case_id, WAITING)
            database.execute("UPDATE cases SET state = ? WHERE id = ? AND state = ?", values)

    def _counted(self) -> dict[str, int]:
        rows = self.store.rows("SELECT state, count(*) AS n FROM cases GROUP BY state")
        found = {row["state"]: row["n"] for row in rows}
        return {state: found.get(state, 0) for state in STATES if found.get(state) or state in (OPEN, REVIEWED)}

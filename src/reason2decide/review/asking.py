"""Asks models as the endpoints do: admitted, within a deadline, recorded."""

from __future__ import annotations

import time

from reason2decide.model.decision import Decision
from reason2decide.model.reasons import Reason
from reason2decide.review.settings import PREFIX
from reason2decide.serve.audit import AuditLog
from reason2decide.serve.batching import Batcher
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings


class Asking:
    """The server's models, for people at pages.

    Args:
        audit: records each decision and reason; None records nothing.
    """

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

"""What may be served beside the endpoints: pages with a sign-in of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fastapi import APIRouter

    from reason2decide.serve.audit import AuditLog
    from reason2decide.serve.batching import Batcher
    from reason2decide.serve.settings import ServeSettings


@dataclass(frozen=True)
class CardFeedback:
    """What became of a card, with all that the caller said of it: codes of its own, and free text."""

    caller: str
    service: str
    card: str
    outcome: str
    outcome_at: str
    reason_system: str | None = None
    reason_code: str | None = None
    comment: str | None = None


class Extension(Protocol):
    """Pages below a path of their own, which let people in themselves: callers' tokens are not asked for there.

    Attributes:
        prefix: of their paths, as `/review`.
    """

    prefix: str

    def router(self, batcher: Batcher, settings: ServeSettings, audit: AuditLog | None) -> APIRouter:
        """Their routes."""

    async def run(self) -> None:
        """Work in the background until cancelled."""

    def close(self) -> None:
        """Let go of files."""

    def keep_card_feedback(self, feedback: CardFeedback) -> None:
        """Keep what became of a CDS Hooks card; on the disk when this returns.

        Raises:
            AuditUnavailable: it cannot be kept now.
        """

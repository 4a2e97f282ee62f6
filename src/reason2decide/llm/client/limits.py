"""Decide how fast to send, how long to wait and how often to retry."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from reason2decide.llm.settings import Limits

# 408 request timeout, 409 conflict (lock), 429 too many requests, and all 5xx: the statuses that OpenAI's client
# retries.
RETRIED = frozenset({408, 409, 429})
BUSY = frozenset({429, 503})  # too many requests; unavailable, as while a model is loaded
MAX_DELAY = 30.0  # ours: seconds between two attempts when the server does not say


class Pacer:
    """Spreads requests evenly over time, so that no minute has more than the limits allow.

    Each request reserves its part of the minute: the larger of its shares of the requests and of the tokens.
    """

    def __init__(self, limits: Limits) -> None:
        self._per_request = 60 / limits.requests_per_minute if limits.requests_per_minute else 0.0
        self._per_token = 60 / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
        self._free_at = 0.0

    async def admit(self, tokens: int) -> None:
        """Wait for this request's turn; `tokens` are an estimate of what it reads and writes."""
        now = time.monotonic()
        turn = max(now, self._free_at)
        self._free_at = turn + max(self._per_request, tokens * self._per_token)
        if turn > now:
            await asyncio.sleep(turn - now)

    def hold(self, seconds: float) -> None:
        """Start nothing for this time: the server has asked for a pause."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)


def retried(status: int) -> bool:
    """Whether another attempt may succeed."""
    return status in RETRIED or status >= 500


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from its Retry-After header: a number or an HTTP date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def backoff(first: float, attempt: int) -> float:
    """Seconds before attempt number `attempt` + 1: doubling, with jitter, so that calls do not return in a wave."""
    return min(MAX_DELAY, first * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)

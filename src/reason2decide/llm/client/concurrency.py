"""Decide how many calls run at once: few at first, more while that pays, fewer after trouble."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from reason2decide.console import say

START = 2  # ours: a server on one processor is no faster with more
WORTH = 1.8  # ours: twice the calls pay if an answer then takes less than this many times as long
LEAST_ANSWERS = 6  # ours: of fewer, the mean says little: answers differ in length
UNNOTICED_SECONDS = 0.05  # ours: answers as quick as this are not waited for
ROUNDS_AFTER_TROUBLE = 8  # ours: rounds of answers without trouble before more calls are tried again


class Concurrency:
    """The number of calls that may run at once; a context for one call.

    It doubles while an answer takes less than `WORTH` times as long per token as it did with half as many calls, and
    stays where it does not; it is halved when the server is silent too long or says that it is busy (ours; compare
    additive increase, multiplicative decrease, Chiu and Jain 1989). Each change is said with its reason.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = min(START, most)
        self._running = 0
        self._free = asyncio.Condition()
        self._since = time.monotonic()
        self._before: float | None = None  # seconds per token with half as many
        self._rounds = 1
        self._reset()

    def _reset(self) -> None:
        self._answers, self._seconds, self._tokens = 0, 0.0, 0

    async def __aenter__(self) -> None:
        async with self._free:
            await self._free.wait_for(lambda: self._running < self.limit)
            self._running += 1

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        async with self._free:
            self._running -= 1
            self._free.notify(max(0, self.limit - self._running))

    def answered(self, started: float, tokens: int) -> None:
        """Count an answer of so many tokens to a request sent at `started` (`time.monotonic`)."""
        if started < self._since:
            return  # it ran beside another number of calls
        self._answers += 1
        self._seconds += time.monotonic() - started
        self._tokens += max(1, tokens)
        if self._answers < max(LEAST_ANSWERS, self.limit) * self._rounds:
            return
        pace = self._seconds / self._tokens
        quick = self._seconds / self._answers < UNNOTICED_SECONDS
        if self._before is not None and not quick and pace >= WORTH * self._before:
            self._most = self.limit // 2
            self._change(self._most, f"with {self.limit}, an answer takes {pace / self._before:.1f} times as long")
        elif self.limit < self._most:
            self._before = pace
            self._change(min(2 * self.limit, self._most), "answers come as fast as before")
        else:
            self._before, self._rounds = None, 1
            self._reset()

    def troubled(self, started: float, why: str) -> None:
        """Halve the number after a request, sent at `started`, that was too much for the server."""
        if started < self._since:
            return
        self._before, self._rounds = None, ROUNDS_AFTER_TROUBLE
        if self.limit > 1:
            self._change(self.limit // 2, why)
        else:
            self._reset()

    def _change(self, limit: int, why: str) -> None:
        say(f"calls at once: {self.limit} -> {limit} ({why})")
        self.limit, self._since = limit, time.monotonic()
        self._reset()

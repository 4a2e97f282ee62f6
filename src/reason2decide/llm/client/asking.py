"""Get a usable reply to one call: retry, wait for a busy server, ask again for an object, leave out what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from reason2decide.console import say
from reason2decide.data.words import STOP_WORDS, WORD
from reason2decide.llm.client.budget import Budget, likely_tokens
from reason2decide.llm.client.calls import AnyCall, Call, Usage
from reason2decide.llm.client.concurrency import Concurrency
from reason2decide.llm.client.dialects import (
    Reply,
    error_in,
    error_words,
    parsed_body,
    read_reply,
    request_body,
)
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.limits import BUSY, Pacer, backoff, retried, retry_after
from reason2decide.llm.client.loops import ends_in_a_loop
from reason2decide.llm.client.optional_parts import REFUSALS, leaving_out, reductions
from reason2decide.llm.client.structured import InvalidAnswer, asking_for, repairing, validated
from reason2decide.llm.client.transport import Answered, SilenceError, TooLargeError, Transport, TransportError
from reason2decide.llm.prompt_files import fence_codes, fenced_texts
from reason2decide.llm.settings import Limits

DETAIL_CHARACTERS = 2000  # ours: of the server's own words about an error, for the log
REASON_CHARACTERS = 200  # ours: of the same, for the screen
REDUCTION_CALLS = 3  # ours: refused calls to try without optional parts before all of them count as wrong in themselves
ANSWERED = ("looped", "refused")  # failures of the model, to a request that its server took
OBJECT_END = '"}\\` \n'  # what closes an object after its last string


class Failed(Exception):
    """A request, or a whole call, ended without a usable reply.

    The message may go into a log; `detail` has the server's words, and `reason` those of them that may be shown.
    `again` means that another attempt may succeed, `busy` that the server asks for time, `wait` how much.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        again: bool = False,
        busy: bool = False,
        wait: float | None = None,
        detail: str = "",
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.kind, self.again, self.busy, self.wait, self.detail, self.reason = kind, again, busy, wait, detail, reason

    @property
    def refuses(self) -> bool:
        """Whether the server may have refused a part of the request."""
        return self.kind in {f"http_{status}" for status in REFUSALS}


class Stopped(Exception):
    """Nothing more may be sent."""


@dataclass
class Job:
    """A call in progress; `text` is the model's last text that was not accepted."""

    key: str
    call: AnyCall
    bound: float
    attempts: int = 0
    usage: Usage = field(default_factory=Usage)
    text: str | None = None
    timeout: asyncio.Timeout = field(default_factory=lambda: asyncio.Timeout(None))


class Asker:
    """Asks one endpoint, in one event loop; `stopping` and `out_of_budget` end all calls that are not in flight."""

    def __init__(self, endpoint: Endpoint, limits: Limits, budget: Budget, transport: Transport) -> None:
        self.endpoint, self.limits, self.budget, self.transport = endpoint, limits, budget, transport
        self._api_key = endpoint.api_key()
        self.stopping = self.out_of_budget = False
        self._pacer, self._concurrency = Pacer(limits), Concurrency(limits.concurrency)
        self._settled = asyncio.Event()
        self._left_out: tuple[str, ...] = ()  # parts that this server refuses
        self._reductions_left = REDUCTION_CALLS
        self._reducing = asyncio.Lock()
        self._busy_since: float | None = None

    async def reply(self, job: Job) -> Reply:
        """Get a usable reply: for a call with a schema, one with a valid object.

        Raises:
            Failed: there is none.
            Stopped: it was not asked for.
            TimeoutError: the deadline passed.
        """
        async with job.timeout:
            body = request_body(self.endpoint, job.call)
            if isinstance(job.call, Call) and job.call.schema is not None:
                return await self._object(job, asking_for(body, job.call.schema), job.call.schema)
            return await self._persistent(job, body)

    async def _object(self, job: Job, body: dict[str, Any], schema: type[BaseModel]) -> Reply:
        codes = fence_codes(body["messages"])
        reply = await self._persistent(job, body)
        try:
            return _accepted(reply, schema, codes)
        except InvalidAnswer as error:
            job.text = reply.text
            if reply.cut_off:  # a second answer would be cut off too
                raise Failed("cut_off", "the answer ended at the token limit; raise --max-tokens") from None
            asked = repairing(body, reply.text, error)
        reply = await self._persistent(job, asked)
        try:
            return _accepted(reply, schema, codes)
        except InvalidAnswer as error:
            job.text = reply.text
            raise Failed("invalid_answer", f"not the requested object, even when asked again: {error}") from None

    async def _persistent(self, job: Job, body: dict[str, Any]) -> Reply:
        """Retry one request until it is answered.

        An attempt does not count if the server says how long to wait, or is busy for less than the limits' patience.
        """
        counted = 0
        for attempt in itertools.count(1):
            try:
                async with self._slot(job):
                    reply = await self._reduced(job, body)
                self._busy_since = None
                return reply
            except Failed as error:
                waited_for = error.wait is not None or (error.busy and self._is_patient(error))
                counted += not waited_for
                if not error.again or counted == self.limits.attempts:
                    raise
                wait = max(error.wait or 0.0, backoff(self.limits.backoff, attempt))
                deadline = job.timeout.when()
                assert deadline is not None
                if asyncio.get_running_loop().time() + wait >= deadline:
                    late = Failed(error.kind, f"{error}; the next attempt would come after the deadline")
                    late.detail, late.reason = error.detail, error.reason
                    raise late from None
                if waited_for:
                    self._pacer.hold(wait)
            await asyncio.sleep(wait)
        raise AssertionError  # the loop ends only by return or raise

    def _is_patient(self, error: Failed) -> bool:
        """Whether to go on waiting for a busy server; the first time, this is said."""
        now = time.monotonic()
        if self._busy_since is None:
            self._busy_since = now
            words = f": {error.reason}" if error.reason else ""
            say(f"the server is busy or loading ({error}{words}); waiting for up to {self.limits.patience:g} s")
        return now - self._busy_since < self.limits.patience

    async def _reduced(self, job: Job, body: dict[str, Any]) -> Reply:
        """Send a request without the parts that the server is known to refuse; find these out if it is refused."""
        left_out = self._left_out
        try:
            return await self._request(job, leaving_out(body, left_out))
        except Failed as error:
            if not error.refuses or not self._reductions_left:
                raise
            refused = error
        if refused.again:  # a fault that may have passed is not held against a part
            await asyncio.sleep(backoff(self.limits.backoff, 1))
            try:
                return await self._request(job, leaving_out(body, left_out))
            except Failed as error:
                if not error.refuses:
                    raise
        async with self._reducing:
            if left_out != self._left_out:  # another call has found them meanwhile
                return await self._request(job, leaving_out(body, self._left_out))
            if not self._reductions_left:
                raise refused
            for parts in reductions(leaving_out(body, left_out)):
                outcome: Reply | Failed
                try:
                    outcome = await self._request(job, leaving_out(body, (*left_out, *parts)))
                except Failed as failed:
                    if failed.refuses:
                        continue
                    if failed.kind not in ANSWERED:  # the connection failed: nothing is known yet
                        raise
                    outcome = failed
                self._left_out = (*left_out, *parts)
                words = f", {refused.reason}" if refused.reason else ""
                say(f"the server refuses {' and '.join(parts)} ({refused}{words}); it is asked without from now on")
                if isinstance(outcome, Failed):
                    raise outcome
                return outcome
            self._reductions_left -= 1
            raise refused

    @contextlib.asynccontextmanager
    async def _paused(self, job: Job) -> AsyncIterator[None]:
        """Within this context a call waits for its turn, which does not count for its deadline."""
        loop, deadline = asyncio.get_running_loop(), job.timeout.when()
        left = self.limits.deadline if deadline is None else deadline - loop.time()
        job.timeout.reschedule(None)
        yield
        job.timeout.reschedule(loop.time() + left)

    @contextlib.asynccontextmanager
    async def _slot(self, job: Job) -> AsyncIterator[None]:
        """Wait until fewer calls run than may run at once; this one runs within the context."""
        async with contextlib.AsyncExitStack() as stack:
            async with self._paused(job):
                await stack.enter_async_context(self._concurrency)
            yield

    async def _admitted(self, job: Job) -> None:
        """Wait for the limits per minute, and reserve what the request may cost."""
        async with self._paused(job):
            await self._pacer.admit(likely_tokens(job.call).total)
            while True:
                if self.stopping or self.out_of_budget:
                    raise Stopped
                self._settled.clear()
                granted = self.budget.reserve(job.bound)
                if granted is not None:
                    break
                await self._settled.wait()
            if not granted:
                self.out_of_budget = True
                raise Stopped

    async def _request(self, job: Job, body: dict[str, Any]) -> Reply:
        content = json.dumps(body, separators=(",", ":")).encode()
        await self._admitted(job)
        started = time.monotonic()
        job.attempts += 1
        usage: Usage | None = None  # unknown unless the server says
        try:
            answered = await self.transport.post(content)
            if answered.status != 200:
                usage = Usage()  # an error is not charged for
                raise self._of_status(job, answered)
            reply = self._read(job, answered)
            usage = reply.usage
            job.usage += usage or Usage()
            self._concurrency.answered(started, (usage or Usage()).output_tokens)
        except SilenceError as error:
            self._concurrency.troubled(started, str(error))
            raise Failed("timeout", str(error), again=True) from None
        except TooLargeError as error:
            raise Failed("too_large", str(error)) from None
        except TransportError as error:
            raise Failed("connection", str(error), again=True) from None
        except Failed as error:
            if error.kind == "http_429":
                self._concurrency.troubled(started, str(error))
            raise
        except ValueError as error:
            raise Failed("invalid_response", str(error), again=True) from None
        finally:
            self.budget.settle(job.bound, usage)
            self._settled.set()
        if reply.refused:
            job.text = reply.text
            raise Failed("refused", "the model or the server's filter declined to answer")
        if answered.looping or ends_in_a_loop(reply.text.rstrip(OBJECT_END)):
            job.text = reply.text
            advice = "try --set temperature=0.8 or --set repeat_penalty=1.1"
            raise Failed("looped", f"the model repeats itself; {advice}")
        return reply

    def _read(self, job: Job, answered: Answered) -> Reply:
        body = answered.streamed.body() if answered.streamed else parsed_body(answered.content)
        error = error_in(body)
        if error is not None:
            detail, reason = self._said(job, error, str(error))
            words = "an error in a reply of status 200"
            raise Failed("server_error", words, again=True, detail=detail, reason=reason)
        if answered.looping:
            body["choices"][0].setdefault("finish_reason", "loop")
        return read_reply(self.endpoint, job.call, body)

    def _of_status(self, job: Job, answered: Answered) -> Failed:
        """Make the failure for an error status; its code is named if it is a plain word: the rest may quote."""
        detail = answered.content.decode("utf-8", "replace")
        error: Any = None
        with contextlib.suppress(ValueError):
            error = error_in(parsed_body(answered.content))
        code = error.get("code") if isinstance(error, dict) else None
        named = f" ({code})" if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code) else ""
        again = retried(answered.status)
        wait = retry_after(answered.headers) if again else None
        detail, reason = self._said(job, error, detail)
        return Failed(
            f"http_{answered.status}",
            f"HTTP {answered.status}{named}",
            again=again,
            busy=answered.status in BUSY and wait is None,
            wait=wait,
            detail=detail,
            reason=reason,
        )

    def _said(self, job: Job, error: Any, detail: str) -> tuple[str, str]:
        """The server's words about an error, for the log and for the screen, without the key."""
        words = error_words(error)
        if self._api_key:
            detail, words = (text.replace(self._api_key, "[key]") for text in (detail, words))
        return detail[:DETAIL_CHARACTERS], without_words_of(job.call, words)


def _accepted(reply: Reply, schema: type[BaseModel], codes: frozenset[str]) -> Reply:
    validated(schema, reply.text, cut_off=reply.cut_off)
    if any(code in reply.text for code in codes):
        raise InvalidAnswer("it repeats the code of a fence", "it repeats the code of the lines around the data")
    return reply


_ESCAPE = re.compile(r"""\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|[abfnrtv0"'/])?""")


def _unescaped(text: str) -> str:
    r"""Escapes of JSON and Python as the letters they stand for, else a space: none may stick to a word.

    >>> _unescaped(r"M\u00fcller\nSmith")
    'Müller Smith'
    """
    return _ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)) if found[1] or found[2] else " ", text)


def without_words_of(call: AnyCall, reason: str) -> str:
    """The beginning of what a server says, with "..." for each word that a record's text has, except stop words.

    Servers quote requests in their errors, and a record's text must not reach a screen. Where a call has no fences, all
    that it says counts as such a text.
    """
    asked = [m["content"] for m in call.messages] if isinstance(call, Call) else call.texts()
    data = [text for content in asked for text in fenced_texts(content)] or asked
    sent = {word.casefold() for text in data for word in WORD.findall(text)} - STOP_WORDS
    shown = WORD.sub(lambda word: "..." if word.group().casefold() in sent else word.group(), _unescaped(reason))
    shown = " ".join(re.sub(r"\.{3}(?:[^\w.]*\.{3})+", "...", shown).split())
    return shown if len(shown) <= REASON_CHARACTERS else shown[:REASON_CHARACTERS].rsplit(" ", 1)[0] + " ..."

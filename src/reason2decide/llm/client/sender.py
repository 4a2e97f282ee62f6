"""Send calls in a second thread: an event loop with one worker per concurrent call, and one writer to the log.

A worker retries a call until it has a usable reply, or until attempts, time or budget run out; it takes the next call
only when the outcome is on disk. A killed process thus loses at most the calls in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import queue
import re
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx2
import openai
from pydantic import BaseModel

from reason2decide.errors import UserError
from reason2decide.llm.client.budget import Budget, likely_tokens
from reason2decide.llm.client.calls import AnyCall, Call, Failure, Usage
from reason2decide.llm.client.dialects import PATHS, Reply, read_reply, request_body
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.limits import Pacer, backoff, retried, retry_after
from reason2decide.llm.client.log import CallLog, Finished
from reason2decide.llm.client.structured import InvalidAnswer, asking_for, asking_in_words, repairing, validated
from reason2decide.llm.settings import Limits

MAX_REPLY_BYTES = 32 << 20  # ours: an answer of 4,000 tokens with 20 log-probabilities each is about 8 MiB
GRACE_SECONDS = 1.0  # ours: how long to wait for calls in flight when the user stops
FAILURES_IN_A_ROW = 16  # ours: then the server is down, and the rest would fail as slowly
DETAIL_CHARACTERS = 2000  # ours: of the server's own words about an error, for the log
# Every other call would fail too: the key, the address or the model is wrong.
HOPELESS = {
    401: "the server does not accept the key",
    403: "the server does not allow this key to use the model",
    404: "the server does not know this model or address",
}


class Unsent:
    """The result of a call that was not sent, or not completed, because the run stops."""


class _Failed(Exception):
    """A request, or a whole call, ended without a usable reply; the message may go into a log."""

    def __init__(
        self, kind: str, message: str, *, again: bool = False, detail: str = "", wait: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind, self.again, self.detail, self.wait = kind, again, detail, wait


class _Stopped(Exception):
    """Nothing more may be sent."""


class _TooLarge(Exception):
    """A reply is larger than `MAX_REPLY_BYTES`."""


@dataclass
class _Job:
    """A call in progress; `text` is the model's last text that was not accepted."""

    key: str
    call: AnyCall
    bound: float
    attempts: int = 0
    usage: Usage = field(default_factory=Usage)
    text: str | None = None
    timeout: asyncio.Timeout = field(default_factory=lambda: asyncio.Timeout(None))


class Sender:
    """A context for submitting calls and taking results, in the order they arrive.

    A result is None if the answer is in the log. `problem` says why no further call can succeed, `out_of_budget` that
    none may be sent; calls not sent then are `Unsent`.

    Raises:
        EndpointError: the key's environment variable is empty.
    """

    def __init__(self, endpoint: Endpoint, log: CallLog, limits: Limits, budget: Budget) -> None:
        self.endpoint, self.log, self.limits, self.budget = endpoint, log, limits, budget
        self.problem: str | None = None
        self.out_of_budget = False
        self._stopping = self._refuses_schema = False
        self._failed_in_a_row = 0
        self._api_key = endpoint.api_key()
        self._url = endpoint.base_url + PATHS[endpoint.dialect]
        self._pacer = Pacer(limits)
        self._settled, self._stop = asyncio.Event(), asyncio.Event()
        self._inbox: asyncio.Queue[_Job | None] = asyncio.Queue()
        self._finished: asyncio.Queue[tuple[Finished, asyncio.Future[None]] | None] = asyncio.Queue()
        self._results: queue.SimpleQueue[tuple[str, Failure | Unsent | None] | Exception] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        # A daemon thread, so that a second Ctrl-C ends the program at once.
        self._thread = threading.Thread(target=self._run, name="llm-sender", daemon=True)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def submit(self, key: str, call: AnyCall) -> None:
        """Submit a call whose answer is not in the log."""
        job = _Job(key, call, self.budget.bound(call))
        self._loop.call_soon_threadsafe(self._inbox.put_nowait, job)

    def next_result(self) -> tuple[str, Failure | Unsent | None]:
        """Wait for a completed call, and return its key and result.

        Raises:
            CallLogError: the log cannot be written.
        """
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    # --- in the second thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except Exception as error:  # a bug, or an address that the client library rejects
            self._results.put(error)

    async def _main(self) -> None:
        async with self._connect() as self._http:
            writer = asyncio.create_task(self._write())
            workers = [asyncio.create_task(self._work()) for _ in range(self.limits.concurrency)]
            await self._stop.wait()
            for _worker in workers:
                self._inbox.put_nowait(None)
            _, late = await asyncio.wait(workers, timeout=GRACE_SECONDS)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            self._finished.put_nowait(None)
            await writer

    def _connect(self) -> httpx2.AsyncClient:
        """Make the HTTP client of OpenAI's library, over aiohttp.

        The layer above it, which makes typed objects of requests and replies, is omitted: it takes 0.3 to 0.8 ms of
        processor time per call (`benchmarks/llm_client.py`), more than everything else together, and adds headers from
        the environment and about the machine.

        Each call has its own connection. On a reused one, a reply that a server sends twice would be read as the answer
        to the next call: one patient's rationale in another's record. HTTP/1.1 cannot tell them apart. A new connection
        takes 0.2 to 0.3 ms of processor time per call.
        """
        key = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"}
        return openai.DefaultAioHttpClient(
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **key},
            limits=httpx2.Limits(max_connections=self.limits.concurrency, keepalive_expiry=0),
            timeout=self.limits.read_timeout,
            verify=self.endpoint.base_url.startswith("https"),  # certificates take 30 ms to load
            follow_redirects=False,  # a redirect could send the text off this machine
            trust_env=not self.endpoint.is_loopback,  # a proxy could too
            event_hooks={"response": [_cap]},
        )

    async def _work(self) -> None:
        while job := await self._inbox.get():
            try:
                self._results.put((job.key, await self._do(job)))
            except Exception as error:  # from the log, or a bug: raised where the results are taken
                self._results.put(error)

    async def _write(self) -> None:
        """Write completed calls, all available ones in one transaction: the disk is slower than the network."""
        entry = await self._finished.get()
        while entry is not None:
            batch = [entry]
            while not self._finished.empty() and (entry := self._finished.get_nowait()) is not None:
                batch.append(entry)
            problem: UserError | None = None
            try:
                await asyncio.to_thread(self.log.add, self.endpoint, [finished for finished, _ in batch])
            except UserError as error:
                problem = error
            for _, written in batch:
                if not written.done():  # it is done if the worker was cancelled meanwhile
                    written.set_result(None) if problem is None else written.set_exception(problem)
            if entry is not None:
                entry = await self._finished.get()

    async def _do(self, job: _Job) -> Failure | Unsent | None:
        """Complete a call and write the outcome to disk."""
        started = time.monotonic()
        outcome: Reply | Failure
        detail = ""
        try:
            async with job.timeout:
                outcome = await self._answer(job)
            self._failed_in_a_row = 0
        except (_Failed, TimeoutError, _Stopped) as error:
            if isinstance(error, _Stopped):
                if job.text is None:
                    return Unsent()
                error = _Failed("invalid_answer", "the model could not be asked again because the run stops")
            if isinstance(error, TimeoutError):
                error = _Failed("deadline", f"no complete answer within {self.limits.deadline:g} s")
            outcome = Failure(job.key, error.kind, str(error), job.attempts, job.text)
            detail = error.detail
            self._judge(outcome)
        written = self._loop.create_future()
        seconds = time.monotonic() - started
        finished = Finished(job.key, job.call, outcome, job.usage, job.attempts, seconds, self._without_key(detail))
        self._finished.put_nowait((finished, written))
        await written
        if isinstance(outcome, Failure):
            self.budget.spent.failures[outcome.kind] += 1
            return outcome
        self.budget.spent.answered += 1
        return None

    def _judge(self, failure: Failure) -> None:
        """Check whether a failure means that no other call can succeed."""
        status = int(failure.kind.removeprefix("http_")) if failure.kind.startswith("http_") else None
        where = f"{self.endpoint.base_url}, model {self.endpoint.model!r}"
        if status in HOPELESS:
            self.problem = f"{HOPELESS[status]} (HTTP {status} from {where})"
            if status == 404 and not self.endpoint.base_url.endswith("/v1"):
                self.problem += f"; most servers answer under /v1: try {self.endpoint.base_url}/v1"
        elif failure.kind in ("connection", "timeout", "deadline") or (status and retried(status)):
            self._failed_in_a_row += 1
            if self._failed_in_a_row == FAILURES_IN_A_ROW:
                self.problem = (
                    f"{FAILURES_IN_A_ROW} calls in a row failed, the last with: {failure.message} ({where}). Check "
                    f"that the server runs and keeps up, then start again: all answers so far are in {self.log.path}"
                )

    def _without_key(self, detail: str) -> str:
        return detail.replace(self._api_key, "[key]") if self._api_key else detail

    async def _answer(self, job: _Job) -> Reply:
        """Get a usable reply: for a call with a schema, one with a valid object."""
        body = request_body(self.endpoint, job.call)
        if not isinstance(job.call, Call) or job.call.schema is None:
            return await self._reply(job, body)
        return await self._object(job, body, job.call.schema)

    async def _object(self, job: _Job, body: dict[str, Any], schema: type[BaseModel]) -> Reply:
        asked = asking_in_words(body, schema) if self._refuses_schema else asking_for(body, schema)
        try:
            reply = await self._reply(job, asked)
        except _Failed as error:
            if error.kind not in ("http_400", "http_422") or "response_format" not in asked:
                raise
            asked = asking_in_words(body, schema)
            reply = await self._reply(job, asked)
            self._refuses_schema = True  # since the same call without it was accepted
        try:
            validated(schema, reply.text, cut_off=reply.cut_off)
            return reply
        except InvalidAnswer as error:
            job.text = reply.text
            if reply.cut_off:  # a second answer would be cut off too
                raise _Failed("cut_off", "the answer ended at the token limit; raise max_tokens") from None
            asked = repairing(asked, reply.text, error)
        reply = await self._reply(job, asked)
        try:
            validated(schema, reply.text, cut_off=reply.cut_off)
            return reply
        except InvalidAnswer as error:
            job.text = reply.text
            raise _Failed("invalid_answer", f"not the requested object, even when asked again: {error}") from None

    async def _reply(self, job: _Job, body: dict[str, Any]) -> Reply:
        """Retry one request until it is answered. Attempts do not count if the server says how long to wait."""
        content = json.dumps(body, separators=(",", ":")).encode()
        counted = 0
        for attempt in itertools.count(1):
            await self._turn(job)
            try:
                return await self._request(job, content)
            except _Failed as error:
                counted += error.wait is None
                if not error.again or counted == self.limits.attempts:
                    raise
                wait = max(error.wait or 0.0, backoff(self.limits.backoff, attempt))
                deadline = job.timeout.when()
                assert deadline is not None
                if self._loop.time() + wait >= deadline:
                    raise _Failed(
                        error.kind, f"{error}; the next attempt would come after the deadline", detail=error.detail
                    ) from None
                if error.wait:
                    self._pacer.hold(error.wait)
            await asyncio.sleep(wait)
        raise AssertionError  # the loop ends only by return or raise

    async def _turn(self, job: _Job) -> None:
        """Wait until a request may be sent; this time does not count for the deadline."""
        deadline = job.timeout.when()
        left = self.limits.deadline if deadline is None else deadline - self._loop.time()
        job.timeout.reschedule(None)
        await self._pacer.admit(likely_tokens(job.call).total)
        while True:
            if self._stopping or self.problem or self.out_of_budget:
                raise _Stopped
            self._settled.clear()
            granted = self.budget.reserve(job.bound)
            if granted is not None:
                break
            await self._settled.wait()
        if not granted:
            self.out_of_budget = True
            raise _Stopped
        job.timeout.reschedule(self._loop.time() + left)

    async def _request(self, job: _Job, content: bytes) -> Reply:
        job.attempts += 1
        usage: Usage | None = None  # unknown unless the server says
        try:
            response = await self._http.post(self._url, content=content)
            if response.status_code != 200:
                usage = Usage()  # an error is not charged for
                raise _of_status(response.status_code, response)
            reply = read_reply(self.endpoint, job.call, response.content)
            usage = reply.usage
            job.usage += usage or Usage()
        except httpx2.ReadTimeout:
            message = f"the server was silent for {self.limits.read_timeout:g} s"
            raise _Failed("timeout", message, again=True) from None
        except (httpx2.HTTPError, aiohttp.ClientError):
            raise _Failed("connection", "the connection failed or broke", again=True) from None
        except _TooLarge:
            raise _Failed("too_large", f"the reply has more than {MAX_REPLY_BYTES >> 20} MiB", again=False) from None
        except ValueError as error:
            raise _Failed("invalid_response", str(error), again=True) from None
        finally:
            self.budget.settle(job.bound, usage)
            self._settled.set()
        if reply.refused:
            job.text = reply.text
            raise _Failed("refused", "the model or the server's filter declined to answer")
        return reply


async def _cap(response: httpx2.Response) -> None:
    """Limit a reply to `MAX_REPLY_BYTES`."""
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Capped(response.stream)


class _Capped(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                raise _TooLarge
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _of_status(status: int, response: httpx2.Response) -> _Failed:
    """Make the failure for an error status. Its code is named if it is a plain word; all else may quote the text."""
    again = retried(status)
    return _Failed(
        f"http_{status}",
        f"HTTP {status}{_code(response)}",
        again=again,
        detail=response.text[:DETAIL_CHARACTERS],
        wait=retry_after(response.headers) if again else None,
    )


def _code(response: httpx2.Response) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        code = response.json()["error"]["code"]
        if re.fullmatch(r"[a-z_]{1,40}", code):
            return f" ({code})"
    return ""

"""Send calls in a second thread: an event loop with one worker per concurrent call, and one writer to the log.

A worker retries a call until it has a usable reply, or until attempts, time or budget run out; it takes the next call
only when the outcome is on disk. A killed process thus loses at most the calls in flight.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter

from reason2decide.errors import UserError
from reason2decide.llm.client.asking import Asker, Failed, Job, Stopped
from reason2decide.llm.client.budget import Budget
from reason2decide.llm.client.calls import AnyCall, Failure
from reason2decide.llm.client.dialects import Reply
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.limits import retried
from reason2decide.llm.client.log import CallLog, Finished
from reason2decide.llm.client.transport import Transport
from reason2decide.llm.settings import Limits

GRACE_SECONDS = 1.0  # ours: how long to wait for calls in flight when the user stops
FAILURES_IN_A_ROW = 16  # ours: then the server is down, and the rest would fail as slowly
# Every other call would fail too: the key, the address or the model is wrong.
HOPELESS = {
    401: "the server does not accept the key",
    403: "the server does not allow this key to use the model",
    404: "the server does not know this model or address",
}


class Unsent:
    """The result of a call that was not sent, or not completed, because the run stops."""


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
        self._failed_in_a_row = self._answered = 0
        self._failed: Counter[str] = Counter()
        self._transport = Transport(endpoint, limits)
        self._asker = Asker(endpoint, limits, budget, self._transport)
        self._stop = asyncio.Event()
        self._inbox: asyncio.Queue[Job | None] = asyncio.Queue()
        self._finished: asyncio.Queue[tuple[Finished, asyncio.Future[None]] | None] = asyncio.Queue()
        self._results: queue.SimpleQueue[tuple[str, Failure | Unsent | None] | Exception] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        # A daemon thread, so that a second Ctrl-C ends the program at once.
        self._thread = threading.Thread(target=self._run, name="llm-sender", daemon=True)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    @property
    def out_of_budget(self) -> bool:
        """Whether the budget allows no further request."""
        return self._asker.out_of_budget

    def __exit__(self, *_: object) -> None:
        self._asker.stopping = True
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def submit(self, key: str, call: AnyCall) -> None:
        """Submit a call whose answer is not in the log."""
        job = Job(key, call, self.budget.bound(call))
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
        async with self._transport:
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

    async def _do(self, job: Job) -> Failure | Unsent | None:
        """Complete a call and write the outcome to disk."""
        started = time.monotonic()
        outcome: Reply | Failure
        detail = ""
        try:
            outcome = await self._asker.reply(job)
            self._failed_in_a_row = 0
            self._answered += 1
        except (Failed, TimeoutError, Stopped) as error:
            if isinstance(error, Stopped):
                if job.text is None:
                    return Unsent()
                error = Failed("invalid_answer", "the model could not be asked again because the run stops")
            if isinstance(error, TimeoutError):
                error = Failed("deadline", f"no complete answer within {self.limits.deadline:g} s")
            outcome = Failure(job.key, error.kind, str(error), job.attempts, job.text, error.reason)
            detail = error.detail
            self._judge(outcome)
        written = self._loop.create_future()
        seconds = time.monotonic() - started
        finished = Finished(job.key, job.call, outcome, job.usage, job.attempts, seconds, detail)
        self._finished.put_nowait((finished, written))
        await written
        if isinstance(outcome, Failure):
            self.budget.spent.failures[outcome.kind] += 1
            return outcome
        self.budget.spent.answered += 1
        return None

    def _judge(self, failure: Failure) -> None:
        """Check whether a failure means that no other call can succeed; the first such failure is the problem."""
        status = int(failure.kind.removeprefix("http_")) if failure.kind.startswith("http_") else None
        where = f"{self.endpoint.base_url}, model {self.endpoint.model!r}"
        said = f"; the server says: {failure.reason}" if failure.reason else ""
        slow = failure.kind in ("connection", "timeout", "deadline")
        mend = "Check that the server runs at this address and keeps up" if slow else "Correct the cause"
        again = f"{mend}, then start again: all answers so far are in {self.log.path}"
        self._failed[failure.kind] += 1
        problem = None
        if status in HOPELESS:
            problem = f"{HOPELESS[status]} (HTTP {status} from {where}){said}"
            if status == 404 and not self.endpoint.base_url.endswith("/v1"):
                problem += f"; most servers answer under /v1: try {self.endpoint.base_url}/v1"
        elif not self._answered and self._failed[failure.kind] == self.limits.give_up_after == self._failed.total():
            first = f"the first {self.limits.give_up_after} calls failed in the same way"
            problem = f"{first}: {failure.message} ({where}){said}. {again}"
        elif slow or (status and retried(status)):
            self._failed_in_a_row += 1
            if self._failed_in_a_row == FAILURES_IN_A_ROW:
                last = f"{FAILURES_IN_A_ROW} calls in a row failed, the last with: {failure.message}"
                problem = f"{last} ({where}){said}. {again}"
        if problem is not None and self.problem is None:
            self.problem = problem
            self._asker.stopping = True

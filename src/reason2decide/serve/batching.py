"""Dynamic batching: many requests, one thread that makes every blocking call of a model.

Calls that arrive while a batch is computed wait; the next batch is the oldest waiting call and others of the same
model, the same kind and similar length. So no call waits for a batch to fill when the server is idle, and batches grow
with the load. Streamed rationales advance by one piece between batches.

A request is admitted or refused at once. It is refused if too many are in progress, or if what they still need, by the
measured seconds per call, would leave it less than half of its time: so every admitted request can be answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from reason2decide.errors import DataError, Reason2DecideError
from reason2decide.model.decision import Decision
from reason2decide.model.reasons import Reason
from reason2decide.serve.served_model import ServedModel

Kind = Literal["decide", "explain", "stream"]
CallType = tuple[str, Kind]  # the model's name, and what is called
BatchObserver = Callable[[str, Kind, int, float], None]  # model name, kind, calls, seconds

NEWEST_SHARE = 0.2  # ours: weight of the newest batch in the running mean of seconds per call
SHARE_OF_TIME = 0.5  # ours: share of a request's time that may be spent waiting, as estimates are rough
SHORT = 200  # ours: lengths up to this many characters count as equal, as padding costs little there
LONGEST_TO_SHORTEST = 2  # ours: within a batch, so that at most half of it is padding
LOOK_AHEAD = 2  # ours: batches' worth of calls searched for similar ones; with more, too many would overtake others
# Ours: seconds that a batch may take, since all its calls wait for the last. Long decisions gain almost nothing from
# batching (they are limited by arithmetic), rationales gain much (every token reads all weights).
BATCH_SECONDS: Mapping[Kind, float] = {"decide": 0.5, "explain": 2.5}


class Overloaded(Reason2DecideError):
    """No more requests are accepted for now."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"the server is at its limit; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(Reason2DecideError):
    """The answer was not ready in time."""

    def __init__(self) -> None:
        super().__init__("the answer was not ready in time; try again when the server is less busy, or ask for less")


@dataclass(frozen=True)
class _End:
    """How a call ended: the value and the count of tokens written, or an error."""

    value: Any = None
    written: int = 0
    error: Exception | None = None


@dataclass(eq=False)
class _Call:
    """One text for the worker, and the inbox in the event loop for its pieces (of a stream) and its end."""

    kind: Kind
    model: ServedModel
    text: str
    label: str
    deadline: float
    inbox: asyncio.Queue[str | _End] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    abandoned: bool = False

    @property
    def length(self) -> int:
        return max(SHORT, len(self.text))

    def deliver(self, item: str | _End) -> None:
        """Called by the worker; once the loop is closed, nobody waits any more."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.inbox.put_nowait, item)

    async def receive(self) -> str | _End:
        """The next piece or the end.

        Raises:
            DeadlineExceeded: neither came in time.
        """
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                return await self.inbox.get()
        except TimeoutError:
            raise DeadlineExceeded from None


class Admission:
    """An admitted request: its calls of the model are no longer refused. A context manager.

    `output_tokens` counts the tokens of its rationales.
    """

    def __init__(self, batcher: Batcher, model: ServedModel, deadline: float, plan: Counter[CallType]) -> None:
        self._batcher, self._model, self._deadline, self._plan = batcher, model, deadline, plan
        self.output_tokens = 0
        self.streamed = Reason("")

    def __enter__(self) -> Admission:
        self._batcher._enter(self._plan)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batcher._leave(self._plan)

    async def decide(self, text: str) -> Decision:
        """Decide on a text.

        Raises:
            DeadlineExceeded: the decision was not ready in time.
            DataError: there is none; see `Predictor.decide`.
        """
        async with self._called("decide", text, "") as call:
            end = self._ended(call, await call.receive())
        decision: Decision = end.value
        return decision

    async def explain(self, text: str, label: str) -> Reason:
        """The reason of a text for a label; raises as `decide`."""
        async with self._called("explain", text, label) as call:
            end = self._ended(call, await call.receive())
        reason: Reason = end.value
        return reason

    async def stream(self, text: str, label: str) -> AsyncIterator[str]:
        """The rationale of a text for a label in pieces; raises as `decide`, also between two pieces.

        The whole is in `streamed` then.
        """
        async with self._called("stream", text, label) as call:
            while isinstance(item := await call.receive(), str):
                yield item
            self.streamed = self._ended(call, item).value

    @contextlib.asynccontextmanager
    async def _called(self, kind: Kind, text: str, label: str) -> AsyncIterator[_Call]:
        call = _Call(kind, self._model, text, label, self._deadline)
        self._batcher._submit(call)
        try:
            yield call
        finally:
            self._batcher._forget(call)

    def _ended(self, call: _Call, item: str | _End) -> _End:
        assert isinstance(item, _End)
        self._batcher._done(self._plan, (call.model.name, call.kind))
        if item.error is not None:
            raise item.error
        self.output_tokens += item.written
        return item


class Batcher:
    """Runs the calls of all models, one batch at a time. Its methods belong to an event loop.

    Args:
        max_requests: maximum number of requests admitted and not yet answered.
        max_batch: maximum number of calls in a batch.
        max_streams: maximum number of rationales streamed at a time; further ones wait.
        observe: called by the worker after each batch.
    """

    def __init__(
        self,
        *,
        max_requests: int,
        max_batch: int,
        max_streams: int,
        observe: BatchObserver = lambda model, kind, calls, seconds: None,
    ) -> None:
        self._max_requests, self._max_batch, self._max_streams = max_requests, max_batch, max_streams
        self._observe = observe
        self._requests = 0
        self._planned: Counter[CallType] = Counter()  # what admitted requests still need
        self._seconds: dict[CallType, float] = {}  # running mean per call
        self._waiting: list[_Call] = []  # oldest first
        self._condition = threading.Condition()  # guards `_waiting` and `_closed`
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model-worker", daemon=True)
        self._thread.start()

    @property
    def requests(self) -> int:
        """Requests admitted and not yet answered."""
        return self._requests

    @property
    def works(self) -> bool:
        """Whether the worker is alive."""
        return self._thread.is_alive()

    def admit(self, model: ServedModel, deadline: float, *, explains: int = 0, streams: int = 0) -> Admission:
        """Admit a request that needs at most one decision and the given numbers of rationales, whole or streamed.

        Args:
            deadline: when it must be answered, on the clock of `time.monotonic`.

        Raises:
            Overloaded: it cannot be accepted now.
        """
        backlog = sum(count * self._seconds.get(call, 0.0) for call, count in self._planned.items())
        if self._requests >= self._max_requests or backlog > SHARE_OF_TIME * (deadline - time.monotonic()):
            raise Overloaded(max(1, math.ceil(backlog)))
        needs: dict[Kind, int] = {"decide": 1, "explain": explains, "stream": streams}
        return Admission(self, model, deadline, Counter({(model.name, kind): count for kind, count in needs.items()}))

    async def decide(self, model: ServedModel, text: str, deadline: float) -> Decision:
        """Decide on one text, as a separate request.

        Raises:
            Overloaded, DeadlineExceeded: as `admit` and `Admission.decide`.
        """
        with self.admit(model, deadline) as request:
            return await request.decide(text)

    async def explain(self, model: ServedModel, text: str, label: str, deadline: float) -> Reason:
        """The reason of one text for a label, as a separate request; raises as `decide`."""
        with self.admit(model, deadline, explains=1) as request:
            return await request.explain(text, label)

    def close(self) -> None:
        """Stop the worker after its current step, and wait for it; waiting calls end with `DeadlineExceeded`."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    # In the event loop

    def _enter(self, plan: Counter[CallType]) -> None:
        self._requests += 1
        self._planned.update(plan)

    def _done(self, plan: Counter[CallType], call: CallType) -> None:
        plan[call] -= 1
        self._planned[call] -= 1

    def _leave(self, plan: Counter[CallType]) -> None:
        self._requests -= 1
        self._planned.subtract(plan)

    def _submit(self, call: _Call) -> None:
        with self._condition:
            if self._closed:
                raise DeadlineExceeded
            self._waiting.append(call)
            self._condition.notify()

    def _forget(self, call: _Call) -> None:
        """Drop a call that nobody waits for any more: it is not started, and a stream is not continued."""
        call.abandoned = True
        with self._condition:
            if call in self._waiting:
                self._waiting.remove(call)

    # In the worker

    def _work(self) -> None:
        streams: list[_Stream] = []
        while True:
            with self._condition:
                while not (self._waiting or streams or self._closed):
                    self._condition.wait()
                if self._closed:
                    break
                begun = self._next_streams(self._max_streams - len(streams))
                batch = self._next_batch()
            if batch:
                self._run(batch)
            streams = [stream for stream in [*streams, *map(_Stream, begun)] if not stream.call.abandoned]
            for stream in streams:
                piece = stream.advance()
                if stream.ended:
                    self._measured(stream.call, 1, stream.seconds)
                stream.call.deliver(piece)
            streams = [stream for stream in streams if not stream.ended]
        for call in [*self._waiting, *(stream.call for stream in streams)]:
            call.deliver(_End(error=DeadlineExceeded()))

    def _next_streams(self, room: int) -> list[_Call]:
        begun = [call for call in self._waiting if call.kind == "stream"][:room]
        self._take(begun)
        return begun

    def _next_batch(self) -> list[_Call]:
        """The oldest waiting call and those of its kind closest to it in length; expired calls are dropped."""
        now = time.monotonic()
        self._waiting = [call for call in self._waiting if call.deadline > now]
        oldest = next((call for call in self._waiting if call.kind != "stream"), None)
        if oldest is None:
            return []
        size = self._batch_size(oldest)
        alike = [call for call in self._waiting if call.kind == oldest.kind and call.model is oldest.model]
        alike = alike[: LOOK_AHEAD * size]
        alike.sort(key=lambda call: abs(math.log(call.length / oldest.length)))  # stable: the oldest stays first
        batch: list[_Call] = []
        shortest = longest = oldest.length
        for call in alike[:size]:
            shortest, longest = min(shortest, call.length), max(longest, call.length)
            if longest > LONGEST_TO_SHORTEST * shortest:
                break
            batch.append(call)
        self._take(batch)
        return batch

    def _batch_size(self, call: _Call) -> int:
        per_call = self._seconds.get((call.model.name, call.kind), 0.0)
        affordable = self._max_batch if per_call == 0 else int(BATCH_SECONDS[call.kind] / per_call)
        return max(1, min(self._max_batch, affordable))

    def _take(self, calls: Sequence[_Call]) -> None:
        taken = set(calls)
        self._waiting = [call for call in self._waiting if call not in taken]

    def _run(self, batch: Sequence[_Call]) -> None:
        started = time.monotonic()
        model, texts = batch[0].model, [call.text for call in batch]
        try:
            values: Sequence[Any]
            if batch[0].kind == "decide":
                values, written = model.decide(texts), [0] * len(batch)
            else:
                values = model.explain(texts, [call.label for call in batch])
                written = model.tokens([reason.text for reason in values])
            ends = [
                _End(error=value) if isinstance(value, DataError) else _End(value, count)
                for value, count in zip(values, written, strict=True)
            ]
        except Exception as error:
            ends = [_End(error=error)] * len(batch)
        self._measured(batch[0], len(batch), time.monotonic() - started)
        for call, end in zip(batch, ends, strict=True):
            call.deliver(end)

    def _measured(self, call: _Call, calls: int, seconds: float) -> None:
        before = self._seconds.get((call.model.name, call.kind), seconds / calls)
        self._seconds[call.model.name, call.kind] = before + NEWEST_SHARE * (seconds / calls - before)
        self._observe(call.model.name, call.kind, calls, seconds)


class _Stream:
    """A rationale being written, in the worker."""

    def __init__(self, call: _Call) -> None:
        self.call, self.seconds, self.ended = call, 0.0, False
        self._pieces: Iterator[str] | None = None
        self._written = ""

    def advance(self) -> str | _End:
        """Write the next piece, or the end."""
        started = time.monotonic()
        item: str | _End
        try:
            if self._pieces is None:
                self._pieces = self.call.model.stream(self.call.text, self.call.label)
            piece = next(self._pieces, None)
            if piece is None:
                (written,) = self.call.model.tokens([self._written])
                reason = self.call.model.checked(self.call.label, self._written)
                item = _End(reason, written)
            else:
                item = piece
            self._written += piece or ""
        except Exception as error:
            item = _End(error=error)
        self.seconds += time.monotonic() - started
        self.ended = isinstance(item, _End)
        return item

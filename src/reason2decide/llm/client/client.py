"""Run many calls to a model's server at once, with each paid for once and none lost.

The caller's thread reads calls, looks them up in the log and passes new ones to a second thread, where an event loop
sends them (`sender.py`). At most twice the concurrency are in transit between the two, so memory does not grow with the
number of calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from reason2decide.data.disk_index import DiskIndex
from reason2decide.errors import require
from reason2decide.llm.client.budget import Budget, BudgetReached, Estimate, estimate
from reason2decide.llm.client.calls import AnyCall, Call, Failure, ModelAnswer, Usage, call_key
from reason2decide.llm.client.dialects import read_logged_probabilities
from reason2decide.llm.client.endpoint import Endpoint, EndpointError
from reason2decide.llm.client.log import CallLog, Entry
from reason2decide.llm.client.structured import InvalidAnswer, validated
from reason2decide.llm.settings import Limits

C = TypeVar("C", bound=AnyCall)


class Client:
    """Answers calls from the log where possible, otherwise from one endpoint; `budget.spent` counts what was done."""

    def __init__(
        self, endpoint: Endpoint, log: CallLog, limits: Limits | None = None, budget: Budget | None = None
    ) -> None:
        self.endpoint, self.log = endpoint, log
        self.limits, self.budget = limits or Limits(), budget or Budget()

    def estimate(self, calls: Iterable[AnyCall]) -> Estimate:
        """Estimate what a run of these calls will take; nothing is sent. Calls in the log are free."""
        cached, seen = 0, DiskIndex()

        def new() -> Iterator[AnyCall]:
            nonlocal cached
            for call in calls:
                key = call_key(self.endpoint, call)
                if self.logged(call) or not seen.add(key):
                    cached += 1
                else:
                    yield call

        result = estimate(new(), self.budget.prices)
        return replace(result, cached=cached)

    def run(self, calls: Iterable[C]) -> Iterator[tuple[C, ModelAnswer | Failure]]:
        """Yield each call with its answer or failure, as they finish; `calls` is read no further than needed.

        A failing call is retried within `limits`, recorded, and tried again by the next run. Closing the iterator, or
        Ctrl-C, stops sending at once; all answers received are in the log.

        Raises:
            BudgetReached: after everything within the budget was yielded; the message says how many calls are left.
            EndpointError: the server refuses the key or does not know the model, or calls fail one after another;
                raised after everything already sent was yielded.
            MissingExtraError: the client library is not installed.
        """
        require("aiohttp", "llm")
        from reason2decide.llm.client.sender import Sender, Unsent

        waiting: dict[str, list[C]] = {}
        outstanding, unsent = 0, 0
        source = iter(calls)
        more = True
        with Sender(self.endpoint, self.log, self.limits, self.budget) as sender:
            while True:
                while more and outstanding < 2 * self.limits.concurrency:
                    call = next(source, None)
                    if call is None or sender.problem is not None:
                        more = False
                        break
                    key = call_key(self.endpoint, call)
                    if key not in waiting and (known := self.logged(call)):
                        self.budget.spent.cached += 1
                        if isinstance(known, Failure):
                            self.budget.spent.failures[known.kind] += 1
                        yield call, known
                    elif sender.out_of_budget:
                        unsent += 1
                    else:
                        outstanding += 1
                        waiting.setdefault(key, []).append(call)
                        if len(waiting[key]) == 1:
                            sender.submit(key, call)
                if not outstanding:
                    break
                key, failure = sender.next_result()
                asked = waiting.pop(key)
                outstanding -= len(asked)
                if isinstance(failure, Unsent):
                    unsent += len(asked)
                    continue
                for i, call in enumerate(asked):
                    if failure is not None:
                        yield call, failure
                    else:
                        entry = self.log.find(key, call.max_output_tokens())
                        assert entry is not None
                        self.budget.spent.cached += i > 0
                        yield call, self._answer(call, key, entry, cached=i > 0)
        if sender.problem is not None:
            raise EndpointError(sender.problem)
        if unsent:
            raise BudgetReached(
                f"the budget is spent, with {unsent} calls left ({self.budget.limits_in_words()}); all answers so far "
                f"are in {self.log.path} and will not be paid for again: raise the limit and start again to continue"
            )

    def logged(self, call: AnyCall) -> ModelAnswer | Failure | None:
        """What the log knows of a call: its answer, or a failure that would come again; None if it must be sent.

        A model at temperature 0 that was cut off, or repeated itself, does so again with no more tokens than before.
        """
        key, limit = call_key(self.endpoint, call), call.max_output_tokens()
        if entry := self.log.find(key, limit):
            return self._answer(call, key, entry, cached=True)
        return self.log.find_cut_off(key, limit) if call.greedy else None

    def _answer(self, call: AnyCall, key: str, entry: Entry, *, cached: bool) -> ModelAnswer | Failure:
        """Turn a call's log entry into its answer."""
        reply = entry.reply
        parsed, probabilities = None, None
        if not isinstance(call, Call):
            probabilities = read_logged_probabilities(self.endpoint.dialect, call, reply.text)
        elif call.schema is not None:
            try:
                parsed = validated(call.schema, reply.text, cut_off=reply.cut_off)
            except InvalidAnswer as error:  # it was valid when it was logged: the schema's own checks have changed
                return Failure(key, "invalid_answer", f"no longer valid: {error}", 0, reply.text)
        return ModelAnswer(
            key=key,
            text=reply.text,
            finish_reason=reply.finish_reason,
            model=reply.model,
            usage=reply.usage or Usage(),
            created=entry.created,
            parsed=parsed,
            probabilities=probabilities,
            logprobs=reply.logprobs,
            cached=cached,
        )

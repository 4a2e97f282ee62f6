"""Calculate what a run will cost, may cost, and did cost.

Only the model's own tokenizer can count tokens, and an endpoint does not provide it. So there are two figures: an
estimate of four characters per token, for people; and a bound of one token per byte, which no byte-level tokenizer
exceeds, for the hard limit. The user gives the prices: they change too often to be kept here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from reason2decide.errors import UserError
from reason2decide.llm.client.calls import AnyCall, Usage

CHARACTERS_PER_TOKEN = 4  # OpenAI's rule of thumb for English text
TOKENS_PER_MESSAGE = 16  # ours: chat templates add a few to each message
ASSUMED_OUTPUT_TOKENS = 256  # ours: a rationale of a few sentences, if no limit is set


class BudgetError(UserError):
    """The budget cannot be enforced as given."""


class BudgetReached(BudgetError):
    """The budget was spent before all calls were made; no answer is lost."""


@dataclass(frozen=True)
class Prices:
    """Money per million tokens, in the user's currency."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, usage: Usage) -> float:
        """The cost of these tokens."""
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Estimate:
    """What a run is likely to take: `calls` to be sent; those `cached` are free."""

    calls: int
    cached: int
    tokens: Usage
    cost: float


def likely_tokens(call: AnyCall) -> Usage:
    """Estimate the tokens of one call, for an answer as long as the settings allow."""
    texts = call.texts()
    output = call.max_output_tokens()
    asked = sum(map(len, texts)) // CHARACTERS_PER_TOKEN + TOKENS_PER_MESSAGE * len(texts)
    return Usage(asked, ASSUMED_OUTPUT_TOKENS if output is None else output)


def bound_tokens(call: AnyCall) -> Usage | None:
    """The most tokens that one request can take; None if the settings do not limit the answer."""
    output = call.max_output_tokens()
    if output is None:
        return None
    texts = call.texts()
    return Usage(sum(len(t.encode("utf-8", "replace")) for t in texts) + TOKENS_PER_MESSAGE * len(texts), output)


def estimate(calls: Iterable[AnyCall], prices: Prices, cached: int = 0) -> Estimate:
    """Estimate what these calls will take, without retries; `cached` others are known to be free."""
    tokens, count = Usage(), 0
    for call in calls:
        tokens += likely_tokens(call)
        count += 1
    return Estimate(count, cached, tokens, prices.cost(tokens))


@dataclass
class Spent:
    """What a client has done so far: `requests` sent (retries included), calls `answered`, `cached` and failed."""

    requests: int = 0
    answered: int = 0
    cached: int = 0
    tokens: Usage = field(default_factory=Usage)
    cost: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)


class Budget:
    """Prices, the two hard limits, and a count of what was spent.

    `max_calls` limits requests, retries included, since each may cost money. Before a request is sent, the most it
    can cost is reserved; afterwards its actual cost replaces that. A request whose reply was lost stays reserved in
    full: the server may have charged for it.
    """

    def __init__(
        self, prices: Prices | None = None, *, max_calls: int | None = None, max_cost: float | None = None
    ) -> None:
        self.prices = prices or Prices()
        if max_cost is not None and self.prices == Prices():
            raise BudgetError("a maximum cost needs prices; give the prices per million tokens too")
        self.max_calls, self.max_cost = max_calls, max_cost
        self.spent = Spent()
        self._reserved = 0.0
        self._in_flight = 0

    def bound(self, call: AnyCall) -> float:
        """The most that one request of this call can cost; 0 without prices, or without a limit on the answer.

        Raises:
            BudgetError: cost is limited, and its answer has no token limit.
        """
        if self.prices == Prices():
            return 0.0
        tokens = bound_tokens(call)
        if tokens is None and self.max_cost is None:
            return 0.0
        if tokens is None:
            raise BudgetError("a maximum cost needs a limit on answers: set max_tokens")
        return self.prices.cost(tokens)

    def reserve(self, bound: float) -> bool | None:
        """Reserve the cost of one request: True if it may be sent, None if perhaps later, False if never."""
        if self.max_calls is not None and self.spent.requests >= self.max_calls:
            return False
        if self.max_cost is not None and self.spent.cost + self._reserved + bound > self.max_cost:
            return None if self._in_flight else False
        self.spent.requests += 1
        self._reserved += bound
        self._in_flight += 1
        return True

    def settle(self, bound: float, usage: Usage | None) -> None:
        """Replace a reservation by the actual usage; None means unknown, so it counts in full."""
        self._reserved -= bound
        self._in_flight -= 1
        if usage is None:
            self.spent.cost += bound
        else:
            self.spent.tokens += usage
            self.spent.cost += self.prices.cost(usage)

    def limits_in_words(self) -> str:
        """Format the limits and how much of them is used, for messages."""
        words = []
        if self.max_calls is not None:
            words.append(f"{self.spent.requests} of {self.max_calls} requests")
        if self.max_cost is not None:
            words.append(f"cost {self.spent.cost:.4f} of {self.max_cost:g}")
        return ", ".join(words)

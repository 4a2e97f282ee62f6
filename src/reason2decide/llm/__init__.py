"""Language models behind an address: as teachers, rivals and judges.

`Client.run` takes calls and yields answers; each finished call is in a `CallLog` at once and is never paid for twice.
Nothing here is imported by training or prediction.
"""

from reason2decide.llm.budget import Budget, BudgetError, BudgetReached, Estimate, Prices, Spent
from reason2decide.llm.calls import Answer, Call, DecisionCall, Failure, Question, TokenLogprob, Usage
from reason2decide.llm.client import Client
from reason2decide.llm.endpoint import Endpoint, EndpointError, RemoteEndpointError
from reason2decide.llm.limits import Limits
from reason2decide.llm.log import CallLog, CallLogError
from reason2decide.llm.prompts import Prompt, PromptError, load_prompt, prompt_names

__all__ = [
    "Answer",
    "Budget",
    "BudgetError",
    "BudgetReached",
    "Call",
    "CallLog",
    "CallLogError",
    "Client",
    "DecisionCall",
    "Endpoint",
    "EndpointError",
    "Estimate",
    "Failure",
    "Limits",
    "Prices",
    "Prompt",
    "PromptError",
    "Question",
    "RemoteEndpointError",
    "Spent",
    "TokenLogprob",
    "Usage",
    "load_prompt",
    "prompt_names",
]

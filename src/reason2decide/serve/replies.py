"""Turn exceptions into replies: one table of what each means, and a body for each interface.

Nothing that a caller sent is quoted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from reason2decide.model.engines import NotFinite
from reason2decide.model.reading import TextTooLong, UnreadableText
from reason2decide.serve.answers import OPENAI_PATH, shown
from reason2decide.serve.audit import AuditUnavailable
from reason2decide.serve.auth import Unauthorized
from reason2decide.serve.batching import DeadlineExceeded, Overloaded
from reason2decide.serve.fhir import FhirError
from reason2decide.serve.wire import Location, Refused

CDS_PATH = "/cds-services"
AUDIT_RETRY_SECONDS = 5  # ours
CLIENT_GONE = 499  # nginx's status for it; never sent, only counted and recorded
MOST_FAULTS = 20  # ours: problems of a request that a reply lists
# Kinds of pydantic messages that quote nothing of the input, and use no word foreign to CDS Hooks.
_QUOTES_NOTHING = frozenset(
    {"missing", "literal_error", "string_type", "string_too_short", "dict_type", "list_type", "too_short", "too_long"}
)


@dataclass(frozen=True)
class Fault:
    """An error as any interface reports it; `location` and `kind` say which value is wrong, and how."""

    status: int
    message: str
    kind: str = ""
    location: Location = ("body",)
    headers: Mapping[str, str] = field(default_factory=dict)


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}


# Every error that a request may end with; any other is unforeseen.
_FAULTS: dict[type[Exception], Callable[[Any], Fault]] = {
    Refused: lambda error: Fault(error.status, str(error), error.kind, error.location),
    Unauthorized: lambda error: Fault(401, str(error), "unauthorized", headers={"WWW-Authenticate": "Bearer"}),
    FhirError: lambda error: Fault(413, str(error), "too_large"),
    TextTooLong: lambda error: Fault(413, str(error), "too_large"),
    UnreadableText: lambda error: Fault(422, str(error), "unreadable_text"),
    NotFinite: lambda error: Fault(500, str(error), "not_finite"),
    Overloaded: lambda error: Fault(503, str(error), "overloaded", headers=_retry(error.retry_after_seconds)),
    AuditUnavailable: lambda _: Fault(
        503,
        "the audit record cannot be written now, and no decision is sent without it; try again",
        "unrecorded",
        headers=_retry(AUDIT_RETRY_SECONDS),
    ),
    DeadlineExceeded: lambda error: Fault(504, str(error), "deadline_exceeded"),
    HTTPException: lambda error: Fault(error.status_code, str(error.detail), headers=dict(error.headers or {})),
}
FORESEEN: tuple[type[Exception], ...] = (RequestValidationError, *_FAULTS)


def error_reply(path: str, error: Exception) -> Response:
    """The reply to a request on a path that ended with one of the errors `FORESEEN`."""
    if isinstance(error, RequestValidationError):
        describe = _cds_message if path.startswith(CDS_PATH) else _message
        faults = [
            Fault(422, describe(problem), str(problem["type"]), tuple(problem["loc"])) for problem in error.errors()
        ]
    else:
        faults = [next(_FAULTS[kind] for kind in type(error).__mro__ if kind in _FAULTS)(error)]
    return JSONResponse(error_body(path, faults), faults[0].status, faults[0].headers)


def error_body(path: str, faults: Sequence[Fault]) -> dict[str, Any]:
    """Faults in the format of the interface at a path. OpenAI's has room for the first one only."""
    first, more = faults[0], len(faults) - MOST_FAULTS
    if path == OPENAI_PATH:
        return {
            "error": {
                "message": first.message,
                "type": "server_error" if first.status >= 500 else "invalid_request_error",
                "param": ".".join(map(str, shown(first.location)[1:])) or None,
                "code": first.kind or None,
            }
        }
    if first.status != 422:
        return {"detail": first.message}
    # The keys of CDS Hooks are the standard's own; in the other interfaces, some are the caller's words.
    place = list if path.startswith(CDS_PATH) else shown
    listed = [
        {"loc": place(fault.location), "msg": fault.message, "type": fault.kind} for fault in faults[:MOST_FAULTS]
    ]
    if more > 0:
        listed.append({"loc": ["body"], "msg": f"and {more} further problems", "type": "too_many"})
    return {"detail": listed}


def _message(problem: Mapping[str, Any]) -> str:
    """Pydantic's message for a problem, except for an unknown tag, which it would quote."""
    if problem["type"] == "union_tag_invalid":
        return f"expected 'type' to be one of {problem['ctx']['expected_tags']}"
    return str(problem["msg"])


def _cds_message(problem: Mapping[str, Any]) -> str:
    quotes_nothing = problem["type"] in _QUOTES_NOTHING
    return str(problem["msg"]) if quotes_nothing else "this is not valid in CDS Hooks 2.0"

"""CDS Hooks 2.0: a service for each model, which answers the opening of a patient's record with one card.

Source: https://cds-hooks.hl7.org/2.0/. `docs/cds_hooks.md` holds every SHALL and SHOULD on a service, with its test.

FHIR servers are never called, and access tokens are not even read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import AwareDatetime, BaseModel, Field

from reason2decide.errors import ConfigError
from reason2decide.serve.audit import AuditUnavailable
from reason2decide.serve.auth import Unauthorized
from reason2decide.serve.batching import DeadlineExceeded, Overloaded
from reason2decide.serve.cards import Card, card_of, plain
from reason2decide.serve.fhir import FhirError, FhirText, text_of

if TYPE_CHECKING:
    from reason2decide.serve.audit import AuditLog
    from reason2decide.serve.auth import Authenticator
    from reason2decide.serve.batching import Batcher
    from reason2decide.serve.served_model import ServedModel
    from reason2decide.serve.settings import ServeSettings

HOOK = "patient-view"  # the most mature hook of the catalogue; its context may name the encounter
# Ours: the encounter's own texts and no older ones, the newest first. Queries of the subset that 2.0 recommends.
PREFETCH = {
    "encounter": "Encounter/{{context.encounterId}}",
    "documents": "DocumentReference?encounter={{context.encounterId}}&_sort=-date&_count=1",
    "communications": "Communication?encounter={{context.encounterId}}&_sort=-sent&_count=5",
    "observations": "Observation?encounter={{context.encounterId}}&_sort=-date&_count=20",
}
MOST_FEEDBACK = 100  # ours: items of one request

_CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SYSTEM = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]{1,200}")
# Messages of pydantic that quote nothing of the input.
_QUOTES_NOTHING = frozenset(
    {"missing", "literal_error", "string_type", "string_too_short", "dict_type", "list_type", "too_short", "too_long"}
)


# ---- The standard's own words


class Service(BaseModel):
    """A service as discovery describes it."""

    hook: str
    title: str
    description: str
    id: str
    prefetch: dict[str, str]
    usageRequirements: str


class Discovery(BaseModel):
    """The reply of the discovery endpoint."""

    services: list[Service]


class Context(BaseModel):
    """The context of `patient-view`; `text` is ours: the note itself, as plain text. Other keys may hold resources."""

    model_config = {"extra": "allow"}

    userId: Annotated[str, Field(min_length=1)]
    patientId: Annotated[str, Field(min_length=1)]
    encounterId: str | None = None
    text: str | None = None


class ServiceRequest(BaseModel):
    """A call of a service. The FHIR server and its access token are not read."""

    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "hook": HOOK,
                    "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
                    "context": {"userId": "Practitioner/1", "patientId": "2", "text": "Chest pain since this morning."},
                }
            ]
        }
    }

    hook: Literal["patient-view"]
    hookInstance: UUID
    context: Context
    prefetch: dict[str, Any] | None = None


class Cards(BaseModel):
    """The reply of a service."""

    cards: list[Card]


class GivenCoding(BaseModel):
    """A code as a client sends it back."""

    code: str
    system: str


class OverrideReason(BaseModel):
    """Why a card was overridden. The user's comment is not read: it may hold what the audit record must not."""

    reason: GivenCoding | None = None


class Feedback(BaseModel):
    """What became of a card."""

    card: UUID
    outcome: Literal["accepted", "overridden"]
    overrideReason: OverrideReason | None = None
    outcomeTimestamp: AwareDatetime


class FeedbackRequest(BaseModel):
    """What became of several cards."""

    feedback: Annotated[list[Feedback], Field(min_length=1, max_length=MOST_FEEDBACK)]


# ---- The endpoints


def service_id(name: str) -> str:
    """The id of a model's service: its name in lower case, all but letters and digits as single hyphens.

    Raises:
        ConfigError: nothing is left.
    """
    slug = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    if not slug:
        raise ConfigError(f"the model name {name!r} gives no address for a service; use letters a-z or digits in it")
    return slug


def note_of(call: ServiceRequest) -> FhirText:
    """The text to decide on: `context.text` where it is given, else that of the resources in context and prefetch.

    Raises:
        FhirError: see there.
    """
    if call.context.text and call.context.text.strip():
        found = FhirText(call.context.text.strip(), {})
    else:
        prefetch = call.prefetch or {}
        found = text_of(*(call.context.model_extra or {}).values(), *(prefetch.get(key) for key in PREFETCH))
    # Half a character, which JSON may hold, is none to a tokenizer.
    return FhirText(found.text.encode("utf-8", "replace").decode(), found.sources, found.incomplete)


def router(
    models: Sequence[ServedModel],
    batcher: Batcher,
    authenticator: Authenticator | None,
    audit: AuditLog | None,
    settings: ServeSettings,
) -> APIRouter:
    """The discovery, service and feedback endpoints of all models; without an audit record there is no feedback.

    Raises:
        ConfigError: two models would have one service id, or one none.
    """
    services: dict[str, ServedModel] = {}
    for model in models:
        slug = service_id(model.name)
        if slug in services:
            raise ConfigError(
                f"the models {services[slug].name!r} and {model.name!r} would both be the service {slug!r}"
            )
        services[slug] = model
    route = _guarded(services, authenticator, audit, settings)
    api = APIRouter(tags=["CDS Hooks 2.0"])

    @api.get("/cds-services")
    async def discover() -> Discovery:
        """The services, one for each model."""
        return Discovery(services=[_described(slug, model) for slug, model in services.items()])

    # The routes themselves ask; this says so in the OpenAPI document.
    documented = [] if authenticator is None else [Depends(HTTPBearer(auto_error=False))]
    guarded = APIRouter(route_class=route, dependencies=documented)

    @guarded.post("/cds-services/{service}", response_model_exclude_none=True, responses=_ERRORS)
    async def call_service(service: str, call: ServiceRequest, request: Request) -> Cards:
        """One card: the decision, its rationale and the whole distribution."""
        model = services[service]
        note = note_of(call)
        if not note.text:
            raise _NoText
        request.state.row["text"] = note.text
        with batcher.admit(model, settings.deadline(), explains=int(model.explains)) as admitted:
            decision = await admitted.decide(note.text)
            rationale = await admitted.explain(note.text, decision.label) if model.explains else None
        card = card_of(decision, rationale, note, model, settings.source_url)
        request.state.row |= {"label": decision.label, "confidence": decision.confidence, "card": card.uuid}
        return Cards(cards=[card])

    if audit is not None:

        @guarded.post("/cds-services/{service}/feedback", responses=_ERRORS)
        async def feedback(service: str, given: FeedbackRequest, request: Request) -> Response:
            """Keep what became of cards."""
            for item in given.feedback:
                reason = item.overrideReason and item.overrideReason.reason
                audit.feedback(
                    caller=request.state.caller,
                    service=services[service].name,
                    card=str(item.card),
                    outcome=item.outcome,
                    outcome_at=item.outcomeTimestamp.isoformat(),
                    **(_code_only(reason) if reason else {}),
                )
            return Response()

    api.include_router(guarded)
    return api


def _described(slug: str, model: ServedModel) -> Service:
    return Service(
        hook=HOOK,
        title=plain(model.name),
        description=f"Suggests one of these decisions on a note, each with its probability: "
        f"{plain('; '.join(model.labels.values))} ({plain(model.description)})",
        id=slug,
        prefetch=PREFETCH,
        usageRequirements="Needs the text of a note: as prefetched resources of the encounter, or as plain text in "
        "context.text. Reads nothing from the FHIR server. For a person who reads the note and decides.",
    )


def _code_only(reason: GivenCoding) -> dict[str, str]:
    """The code of an override reason, unless it could be somebody's words."""
    if _CODE.fullmatch(reason.code) and _SYSTEM.fullmatch(reason.system):
        return {"reason_system": reason.system, "reason_code": reason.code}
    return {"reason_code": "other"}


# ---- What all calls have in common


class _NoText(Exception):
    """There is nothing to decide on."""


class _NoService(Exception):
    """No model has this id."""


_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No valid token"},
    404: {"description": "No such service"},
    412: {"description": "No text in context or prefetch"},
    413: {"description": "More resources or text than the service reads"},
    422: {"description": "Not a request of CDS Hooks 2.0"},
    503: {"description": "At its limit; try again after the seconds of Retry-After"},
    504: {"description": "The answer was not there in time"},
}


def _guarded(
    services: Mapping[str, ServedModel],
    authenticator: Authenticator | None,
    audit: AuditLog | None,
    settings: ServeSettings,
) -> type[APIRoute]:
    """A kind of route that asks for authentication first, says errors without quoting, and keeps the record."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            inner = super().get_route_handler()

            async def handle(request: Request) -> Response:
                caller = "anonymous"
                try:
                    if authenticator is not None:
                        audience = settings.audience(str(request.url), request.url.path)
                        caller = await authenticator.check(request, audience=audience)
                    return await recorded(request, caller)
                except (Unauthorized, AuditUnavailable) as error:
                    return _refusal(error)

            async def recorded(request: Request, caller: str) -> Response:
                began, status = time.monotonic(), 500
                model = services.get(request.path_params["service"])
                row: dict[str, Any] = {} if model is None else {"model": model.name, "model_hash": model.hash}
                request.state.caller, request.state.row = caller, row
                try:
                    try:
                        response = await inner(request) if model else _refusal(_NoService())
                    except _REFUSED as error:
                        response = _refusal(error)
                    status = response.status_code
                finally:
                    if audit is not None:
                        latency_ms = 1000 * (time.monotonic() - began)
                        audit.record(caller=caller, endpoint=self.path, status=status, latency_ms=latency_ms, **row)
                return response

            return handle

    return Guarded


_REFUSED = (RequestValidationError, _NoText, FhirError, Overloaded, DeadlineExceeded, AuditUnavailable)


def _refusal(error: Exception) -> Response:
    if isinstance(error, Unauthorized):
        return _error(401, "unauthorized", {"WWW-Authenticate": "Bearer"})
    if isinstance(error, _NoService):
        return _error(404, "there is no such service; GET /cds-services lists them")
    if isinstance(error, _NoText):
        return _error(412, f"no text to decide on: neither in context nor in the prefetched {', '.join(PREFETCH)}")
    if isinstance(error, RequestValidationError):
        return _error(422, [_without_input(own) for own in error.errors()])
    if isinstance(error, FhirError):
        return _error(413, str(error))
    if isinstance(error, Overloaded):
        return _error(503, str(error), {"Retry-After": str(error.retry_after_seconds)})
    if isinstance(error, AuditUnavailable):
        return _error(503, "the audit record cannot be kept now; try again", {"Retry-After": "5"})
    return _error(504, str(error))


def _error(status: int, what: object, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"detail": what}, status, headers)


def _without_input(error: Mapping[str, Any]) -> dict[str, Any]:
    """What is wrong and where, without what was given."""
    message = error["msg"] if error["type"] in _QUOTES_NOTHING else "this is not what CDS Hooks 2.0 asks for"
    return {"loc": list(error["loc"]), "msg": message, "type": error["type"]}

"""CDS Hooks 2.0: a service for each model, which answers the opening of a patient's record with one card.

Source: https://cds-hooks.hl7.org/2.0/. `docs/cds_hooks.md` lists every SHALL and SHOULD for services, with its test.

FHIR servers are never called, and access tokens are not even read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AwareDatetime, BaseModel, Field

from reason2decide.errors import ConfigError
from reason2decide.serve.cards import Card, card_of, override_reasons, plain
from reason2decide.serve.extension import CardFeedback
from reason2decide.serve.fhir import LONGEST_TEXT, FhirError, FhirText, patients_of, text_of, unread_of
from reason2decide.serve.recording import documented_security, note, recorded_route
from reason2decide.serve.wire import Refused, at_most

if TYPE_CHECKING:
    from reason2decide.data.records import LabelSet
    from reason2decide.serve.audit import AuditLog
    from reason2decide.serve.auth import Authenticator
    from reason2decide.serve.batching import Batcher
    from reason2decide.serve.extension import Extension
    from reason2decide.serve.served_model import ServedModel
    from reason2decide.serve.settings import ServeSettings

HOOK = "patient-view"  # the most mature hook of the catalogue; its context may name the encounter
# Ours: the texts of this encounter only, newest first. The queries keep to the subset that 2.0 recommends.
PREFETCH = {
    "encounter": "Encounter/{{context.encounterId}}",
    "documents": "DocumentReference?encounter={{context.encounterId}}&_sort=-date&_count=1",
    "communications": "Communication?encounter={{context.encounterId}}&_sort=-sent&_count=5",
    "observations": "Observation?encounter={{context.encounterId}}&_sort=-date&_count=20",
}
MOST_FEEDBACK = 100  # ours: items per request
_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No valid token"},
    404: {"description": "No such service"},
    412: {"description": "No text in context or prefetch"},
    413: {"description": "More resources or text than the service reads"},
    421: {"description": "Called by another name than the server's"},
    422: {"description": "Not a CDS Hooks 2.0 request"},
    503: {"description": "At its limit; try again after Retry-After seconds"},
    504: {"description": "The answer was not ready in time"},
}


# ---- The standard's types


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
    """The context of `patient-view`; `text` is ours: the note as plain text. Other keys may contain resources."""

    model_config = {"extra": "allow"}

    userId: Annotated[str, Field(min_length=1)]
    patientId: Annotated[str, Field(min_length=1)]
    encounterId: str | None = None
    text: str | None = None


class ServiceRequest(BaseModel):
    """A call to a service. The FHIR server and its access token are not read."""

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
    """Why a card was overridden. The user's comment goes to the store of reviews only, never to the audit record."""

    reason: GivenCoding | None = None
    userComment: str | None = None


class Feedback(BaseModel):
    """The outcome of a card."""

    card: UUID
    outcome: Literal["accepted", "overridden"]
    overrideReason: OverrideReason | None = None
    outcomeTimestamp: AwareDatetime


class FeedbackRequest(BaseModel):
    """The outcomes of several cards."""

    feedback: Annotated[list[Feedback], Field(min_length=1, max_length=MOST_FEEDBACK), at_most(MOST_FEEDBACK)]


# ---- The endpoints


def service_id(name: str) -> str:
    """The id of a model's service: its name in lower case, each run of other characters than a-z and 0-9 a hyphen.

    Raises:
        ConfigError: the name contains none of a-z and 0-9.
    """
    slug = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    if not slug:
        raise ConfigError(f"the model name {name!r} cannot form a service address; use letters a-z or digits in it")
    return slug


def note_of(call: ServiceRequest) -> FhirText:
    """The text to decide on: `context.text` if given, else that of the resources in context and prefetch.

    Raises:
        FhirError: as `text_of`, or the given text is over its bound.
        Refused: a resource is about another patient.
    """
    if call.context.text and call.context.text.strip():
        if len(call.context.text) > LONGEST_TEXT:
            raise FhirError(f"the text has more than {LONGEST_TEXT} characters; send less")
        return FhirText(call.context.text.strip(), {})
    prefetch = call.prefetch or {}
    resources = [*(call.context.model_extra or {}).values(), *(prefetch.get(key) for key in PREFETCH)]
    if patients_of(*resources) - {call.context.patientId}:
        raise Refused("the resources are about another patient than context.patientId", status=422)
    return text_of(*resources)


def router(
    models: Sequence[ServedModel],
    batcher: Batcher,
    authenticator: Authenticator | None,
    audit: AuditLog | None,
    settings: ServeSettings,
    extension: Extension | None = None,
) -> APIRouter:
    """The discovery, service and feedback endpoints of all models that read notes.

    Feedback needs an audit record or a store of reviews (`extension`), and lands in what there is.

    Raises:
        ConfigError: two models would have the same service id, or one would have none.
    """
    services: dict[str, ServedModel] = {}

    def served(service: str, request: Request) -> ServedModel:
        if service not in services:
            raise Refused("there is no such service; GET /cds-services lists them", status=404)
        note(request, services[service])
        return services[service]

    for model in (model for model in models if model.reads_notes):
        slug = service_id(model.name)
        if slug in services:
            raise ConfigError(
                f"the models {services[slug].name!r} and {model.name!r} would both have the service id {slug!r}"
            )
        services[slug] = model
    api = APIRouter(tags=["CDS Hooks 2.0"])

    @api.get("/cds-services/", include_in_schema=False)
    @api.get("/cds-services")
    async def discover() -> Discovery:
        """The services, one for each model."""
        return Discovery(services=[_described(slug, model) for slug, model in services.items()])

    of_path = Depends(served)  # a dependency: an unknown service is reported before the body is checked
    guarded = APIRouter(
        route_class=recorded_route(authenticator, audit, settings), dependencies=documented_security(authenticator)
    )

    @guarded.post("/cds-services/{service}", response_model_exclude_none=True, responses=_ERRORS)
    async def call_service(call: ServiceRequest, request: Request, model: Any = of_path) -> Cards:
        """One card: the decision, its rationale and the whole distribution."""
        given = await asyncio.to_thread(note_of, call)
        if not given.text:
            prefetched = ", ".join(PREFETCH)
            unread = f" ({'; '.join(unread_of(given))})" if given.unread else ""
            raise Refused(
                f"no text to decide on: neither in context nor in the prefetched {prefetched}{unread}", status=412
            )
        note(request, model, text=given.text)
        with batcher.admit(model, settings.deadline(), explains=int(model.explains)) as admitted:
            decision = await admitted.decide(given.text)
            reason = await admitted.explain(given.text, decision.label) if model.explains else None
        decision = model.reviewed(decision, reason)
        card = card_of(decision, reason, given, model, settings.source_url)
        note(
            request,
            model,
            label=decision.label,
            confidence=decision.confidence,
            card=card.uuid,
            tokens=decision.tokens,
            tokens_read=decision.tokens_read,
        )
        return Cards(cards=[card])

    if audit is not None or extension is not None:

        @guarded.post("/cds-services/{service}/feedback", responses=_ERRORS)
        async def feedback(given: FeedbackRequest, request: Request, model: Any = of_path) -> Response:
            """Record the outcomes of cards."""
            rows = []
            for item in given.feedback:
                given_reason = item.overrideReason or OverrideReason()
                reason = given_reason.reason
                outcome = {
                    "caller": request.state.caller,
                    "service": model.name,
                    "card": str(item.card),
                    "outcome": item.outcome,
                    "outcome_at": item.outcomeTimestamp.isoformat(),
                }
                if extension is not None:
                    code = (reason.system, reason.code) if reason else (None, None)
                    whole = CardFeedback(
                        **outcome, reason_system=code[0], reason_code=code[1], comment=given_reason.userComment
                    )
                    await asyncio.to_thread(extension.keep_card_feedback, whole)
                if audit is not None:
                    listed = _listed_code(reason, model.labels) if reason else {}
                    rows.append(audit.written(audit.feedback(**outcome, **listed)))
            await asyncio.gather(*rows)
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


def _listed_code(reason: GivenCoding, labels: LabelSet) -> dict[str, str]:
    """The code of an override reason, if it is one of those that the card offers: any other may be free text."""
    offered = {(listed.system, listed.code) for listed in override_reasons(labels)}
    if (reason.system, reason.code) in offered:
        return {"reason_system": reason.system, "reason_code": reason.code}
    return {"reason_code": "other"}

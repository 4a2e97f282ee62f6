"""The endpoints under `/v1`: the two interfaces of decision models, the list of models, and rationales."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from reason2decide.model.decision import Decision
from reason2decide.model.reasons import Reason
from reason2decide.serve import answers
from reason2decide.serve.batching import Admission, Batcher, DeadlineExceeded
from reason2decide.serve.questions import Asked, Wanted, decisions_asked, named, systemone_asked, wanted
from reason2decide.serve.recording import documented_security, note, recorded_route
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings
from reason2decide.serve.texts import input_text, text_of
from reason2decide.serve.wire import (
    DecisionsRequest,
    ExplainRequest,
    Refused,
    SystemOneRequest,
    TooManyCharacters,
)

if TYPE_CHECKING:
    from reason2decide.serve.audit import AuditLog
    from reason2decide.serve.auth import Authenticator

SYSTEM_ONE, DECISIONS, EXPLAIN = "/v1/systemone", answers.OPENAI_PATH, "/v1/explain"
INCLUDE_HEADER = "X-Decision-Include"
IncludeHeader = Annotated[
    str | None, Header(alias=INCLUDE_HEADER, description="Same as `include`, with items separated by commas.")
]
Reply = Callable[[ServedModel, Sequence[Asked], Decision, Wanted, Mapping[str, Reason], int], dict[str, Any]]
ERRORS = {
    401: "No valid token",
    404: "No model with this name",
    408: "The body came too slowly",
    413: "The body or the text is too large",
    415: "Not JSON",
    421: "Called by another name than the server's",
    422: "Not a request of this interface, or one that the model cannot answer",
    503: "At its limit, or shutting down; try again after Retry-After seconds",
    504: "The answer was not ready in time",
}
EVENT = {
    "type": "object",
    "description": "An event; its data is JSON.",
    "properties": {"event": {"enum": ["decision", "rationale", "done", "error"]}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
EVENTS_EXAMPLE = (
    'event: decision\ndata: {"label": "call an ambulance", "probabilities": {"home care": 0.1, ...}}\n\n'
    'event: rationale\ndata: {"delta": "The chest"}\n\n'
    'event: done\ndata: {"model": "triage", "label": "call an ambulance", "rationale": "The chest ...", ...}\n\n'
)


def documented(model: type, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error responses for the OpenAPI document."""
    return {status: {"description": ERRORS[status], "model": model} for status in statuses or ERRORS}


def router(
    models: Sequence[ServedModel],
    batcher: Batcher,
    authenticator: Authenticator | None,
    audit: AuditLog | None,
    settings: ServeSettings,
) -> APIRouter:
    """The `/v1` endpoints for these models."""
    served = _Served(models, batcher, settings)
    api = APIRouter(
        tags=["Decisions"],
        route_class=recorded_route(authenticator, audit, settings),
        dependencies=documented_security(authenticator),
    )

    @api.post(SYSTEM_ONE, response_model=answers.SystemOneReply, responses=documented(answers.ErrorReply))
    async def systemone(given: SystemOneRequest, request: Request, include: IncludeHeader = None) -> Response:
        """Typed questions about a state, each with a probability for every answer."""
        model = served.model(given.model)
        asked = systemone_asked(given, model.labels)
        want = _wanted(_items(given.include, include), model)
        text = served.checked(text_of(model.recipe, given.state, settings.max_text), "state")
        return await served.answer(request, model, text, asked, want, answers.systemone_reply)

    @api.post(DECISIONS, response_model=answers.DecisionsReply, responses=documented(answers.OpenAIErrorReply))
    async def decisions(given: DecisionsRequest, request: Request, include: IncludeHeader = None) -> Response:
        """Typed questions about an input, answered in their order."""
        model = served.model(given.model)
        asked = decisions_asked(given, model.labels)
        want = _wanted(_items(given.include, include), model)
        text = served.checked(input_text(given.input, settings.max_text, model.recipe), "input")
        return await served.answer(request, model, text, asked, want, answers.decisions_reply)

    streamed: dict[str, Any] = {
        "description": "The events of `stream`, or the reply",
        "content": {"text/event-stream": {"schema": EVENT, "example": EVENTS_EXAMPLE}},
    }

    @api.post(EXPLAIN, response_model=answers.ExplainReply, responses={200: streamed, **documented(answers.ErrorReply)})
    async def explain(given: ExplainRequest, request: Request) -> Response:
        """The rationale for the decided label or another, streamed or whole."""
        model = served.model(given.model)
        if not model.explains:
            raise Refused("this model writes no rationales", ("body", "model"))
        if given.label is not None and not model.explains_any_label:
            message = "the rationales of this model do not depend on a label; leave it out"
            raise Refused(message, ("body", "label"))
        if given.label is not None and given.label not in model.labels.values:
            raise Refused(
                f"this is not a label of this model; its labels are: {named(model.labels)}", ("body", "label")
            )
        key, state = ("state", given.state) if given.state is not None else ("text", given.text or "")
        text = served.checked(text_of(model.recipe, state, settings.max_text, ("body", key)), key)
        if not given.stream:
            return await served.explained(request, model, text, given.label)
        events = served.events(request, model, text, given.label)
        first = await anext(events)  # an error before it still gets its own status
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter for nginx
        return StreamingResponse(_joined(first, events), media_type="text/event-stream", headers=headers)

    @api.get("/v1/models", responses=documented(answers.ErrorReply, 401, 421, 503))
    async def list_models() -> answers.ModelsReply:
        """The models, in the formats of both interfaces."""
        return answers.ModelsReply.model_validate(answers.models_reply(models))

    @api.get("/v1/models/{name:path}", responses=documented(answers.ErrorReply, 401, 404, 421, 503))
    async def retrieve_model(name: str) -> answers.OpenAIModel:
        """One model, in OpenAI's format."""
        return answers.OpenAIModel.model_validate(answers.openai_model(served.model(name)))

    return api


class _Served:
    """The models by name, and what the endpoints do with them."""

    def __init__(self, models: Sequence[ServedModel], batcher: Batcher, settings: ServeSettings) -> None:
        self._models = {model.name: model for model in models}
        self._batcher, self._settings = batcher, settings

    def model(self, name: str) -> ServedModel:
        """The model with this name; raises `Refused` (404) if there is none."""
        if name not in self._models:
            known = ", ".join(map(repr, self._models))
            raise Refused(
                f"there is no model with this name; the models are: {known}", ("body", "model"), "model_not_found", 404
            )
        return self._models[name]

    def checked(self, text: str, key: str) -> str:
        """The text itself; raises `Refused` if it is empty or too long."""
        if not text.strip():
            raise Refused("it contains no text to decide on", ("body", key))
        most = self._settings.max_text
        if len(text) > most:
            raise TooManyCharacters(most, ("body", key))
        return text

    async def answer(
        self,
        request: Request,
        model: ServedModel,
        text: str,
        asked: Sequence[Asked],
        want: Wanted,
        reply: Reply,
    ) -> Response:
        """Decide once on the text, write the requested rationales, and answer all questions."""
        explains = want.most_rationales(asked, model.labels)
        note(request, model, text=text)
        with self._admitted(model, explains=explains) as admitted:
            decision = await admitted.decide(text)
            labels = want.explained(asked, decision)
            calls = (admitted.explain(text, label) for label in labels)
            written = await asyncio.gather(*calls, return_exceptions=True)  # none is left behind when another fails
        reasons: dict[str, Reason] = {}
        for label, reason in zip(labels, written, strict=True):
            if isinstance(reason, BaseException):
                raise reason
            reasons[label] = reason
        _note_answer(request, model, asked, decision)
        return JSONResponse(reply(model, asked, decision, want, reasons, admitted.output_tokens))

    async def explained(self, request: Request, model: ServedModel, text: str, label: str | None) -> Response:
        """The whole rationale for a label, or for the decided one."""
        note(request, model, text=text)
        with self._admitted(model, explains=1) as admitted:
            decision = await admitted.decide(text)  # also for a given label: it says whether the text can be read
            chosen = label or decision.label
            reason = await admitted.explain(text, chosen)
        _note_decision(request, model, decision, label)
        reply = _explain_reply(model, chosen, reason, admitted, decision)
        if label is None:
            reply["probabilities"] = dict(decision.probabilities)
        return JSONResponse(reply)

    async def events(self, request: Request, model: ServedModel, text: str, label: str | None) -> AsyncIterator[str]:
        """The same as server-sent events: `decision` if no label was given, `rationale` pieces, `done` or `error`."""
        note(request, model, text=text)
        with self._admitted(model, streams=1) as admitted:
            decision = await admitted.decide(text)
            chosen = label or decision.label
            _note_decision(request, model, decision, label)  # recorded before the first event leaves
            if label is None:
                read = answers.text_read(decision)
                yield _event("decision", {"label": chosen, "probabilities": dict(decision.probabilities), "text": read})
            try:
                async for piece in admitted.stream(text, chosen):
                    yield _event("rationale", {"delta": piece})
            except DeadlineExceeded as error:
                yield _event("error", {"detail": str(error)})
                return
            yield _event("done", _explain_reply(model, chosen, admitted.streamed, admitted, decision))

    def _admitted(self, model: ServedModel, **needs: int) -> AbstractContextManager[Admission]:
        return self._batcher.admit(model, self._settings.deadline(), **needs)


def _wanted(include: Sequence[str], model: ServedModel) -> Wanted:
    return wanted(
        include,
        model.labels,
        explains=model.explains,
        any_label=model.explains_any_label,
        defers=model.defers_by_reasons,
    )


def _items(body: Sequence[str] | None, header: str | None) -> list[str]:
    return [*(body or ()), *(item.strip() for item in (header or "").split(",") if item.strip())]


def _note_decision(request: Request, model: ServedModel, decision: Decision, label: str | None = None) -> None:
    """Note a decision for the record, or only the given label that is explained."""
    chosen = {"label": decision.label, "confidence": decision.confidence} if label is None else {"label": label}
    note(request, model, tokens=decision.tokens, tokens_read=decision.tokens_read, **chosen)


def _note_answer(request: Request, model: ServedModel, asked: Sequence[Asked], decision: Decision) -> None:
    """Note what the caller is answered; of several questions, what the model decides by itself."""
    label, confidence = decision.label, decision.confidence
    if len(asked) == 1:
        label = asked[0].chosen(decision)
        confidence = asked[0].distribution(decision)[label]
    note(request, model, tokens=decision.tokens, tokens_read=decision.tokens_read, label=label, confidence=confidence)


def _explain_reply(
    model: ServedModel, label: str, reason: Reason, admitted: Admission, decision: Decision
) -> dict[str, Any]:
    usage = {"input_tokens": decision.tokens, "output_tokens": admitted.output_tokens}
    read = answers.text_read(decision)
    reply = {"model": model.name, "text": read, "label": label, "rationale": reason.text, "usage": usage}
    return reply | answers.support_of(reason)


def _event(kind: str, data: Mapping[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


async def _joined(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for event in rest:
        yield event

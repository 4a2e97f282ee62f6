"""The web application: models, endpoints, limits, errors. Any ASGI server runs it; `running` is ours."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from reason2decide.errors import ConfigError
from reason2decide.serve import answers, cds_hooks, endpoints
from reason2decide.serve.audit import AuditUnavailable
from reason2decide.serve.auth import Unauthorized
from reason2decide.serve.batching import Batcher, DeadlineExceeded, Overloaded
from reason2decide.serve.guard import Door, Guard
from reason2decide.serve.metrics import Metrics
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings
from reason2decide.serve.wire import Refused
from reason2decide.version import __version__

if TYPE_CHECKING:
    from reason2decide.serve.audit import AuditLog
    from reason2decide.serve.auth import Authenticator

WARM_UP_SECONDS = 600.0  # ours: for the first calls of each model, before the server is ready
AUDIT_RETRY_SECONDS = 5  # ours
_Bearer = Annotated[Any, Depends(HTTPBearer(auto_error=False))]  # for the OpenAPI document


class Health(BaseModel):
    status: str


def create_app(
    models: Sequence[ServedModel],
    settings: ServeSettings,
    *,
    authenticator: Authenticator | None = None,
    audit: AuditLog | None = None,
) -> FastAPI:
    """The application that serves these models; its `state.door` tells and decides who is let in.

    Args:
        authenticator: who may call; without one everybody, so bind to loopback only.
        audit: the record of decisions; closed with the application.

    Raises:
        ConfigError: no model, or two of one name.
    """
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"expected models of different names, got {names}; give each a name of its own (NAME=PATH)")
    door, metrics = Door(), Metrics(lambda: batcher.requests)
    batcher = Batcher(
        max_requests=settings.max_queue,
        max_batch=settings.max_batch,
        max_streams=settings.max_streams,
        observe=metrics.batch,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for model in models:
            await _warm_up(batcher, model)
        yield
        await asyncio.to_thread(batcher.close)
        if audit is not None:
            await asyncio.to_thread(audit.close)

    app = FastAPI(
        title="reason2decide",
        version=__version__,
        description="Decisions with calibrated probabilities, and the rationale for them.",
        lifespan=lifespan,
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.door = door
    app.add_middleware(Guard, settings=settings, door=door, observe=metrics.request)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", endpoints.INCLUDE_HEADER],
        expose_headers=["Retry-After", "X-Request-Id"],
    )
    _add_error_handlers(app)
    authenticated = Depends(_authentication(authenticator, settings))
    _add_operation_routes(app, door, batcher, metrics, authenticated)
    app.include_router(endpoints.router(models, batcher, audit, settings, authenticated))
    app.include_router(cds_hooks.router(models, batcher, authenticator, audit, settings))
    return app


async def _warm_up(batcher: Batcher, model: ServedModel) -> None:
    """The first call of a model is slow; and a text of full length shows what a call costs at most, so that a server
    that has just begun does not admit more than it can answer."""
    deadline, text = time.monotonic() + WARM_UP_SECONDS, model.longest_text
    label = (await batcher.decide(model, text, deadline)).label
    if model.explains:
        with batcher.admit(model, deadline, explains=1, streams=1) as request:
            await request.explain(text, label)
            async for _ in request.stream(text, label):
                pass


def _authentication(authenticator: Authenticator | None, settings: ServeSettings) -> Callable[..., Any]:
    async def anybody(request: Request) -> None:
        request.state.caller = "anonymous"

    async def known(request: Request, _: _Bearer) -> None:
        assert authenticator is not None
        audience = settings.audience(str(request.url), request.url.path)
        request.state.caller = await authenticator.check(request, audience=audience)

    return anybody if authenticator is None else known


def _add_operation_routes(app: FastAPI, door: Door, batcher: Batcher, metrics: Metrics, authenticated: Any) -> None:
    unwell: dict[int | str, dict[str, Any]] = {503: {"model": Health}}

    @app.get("/health/live", response_model=Health, responses=unwell, tags=["Operation"])
    async def live() -> Response:
        """Whether the process works; where it does not, it should be started again."""
        return JSONResponse({"status": "live"}) if batcher.works else JSONResponse({"status": "dead"}, 503)

    @app.get("/health/ready", response_model=Health, responses=unwell, tags=["Operation"])
    async def ready() -> Response:
        """Whether requests should be sent here: not while it shuts down."""
        return JSONResponse({"status": "draining"}, 503) if door.draining else JSONResponse({"status": "ready"})

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get(
        "/metrics",
        response_class=Response,
        responses=text | endpoints.documented(answers.ErrorReply, 401),
        dependencies=[authenticated],
        tags=["Operation"],
    )
    async def scrape() -> Response:
        """Counts, depths and times in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_error_handlers(app: FastAPI) -> None:
    def answer(
        request: Request, status: int, message: str, kind: str = "", headers: Mapping[str, str] | None = None
    ) -> Response:
        return JSONResponse(answers.error_body(request.url.path, status, message, kind=kind), status, headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        body = answers.error_body(request.url.path, error.status, str(error), error.location, error.kind)
        return JSONResponse(body, error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        bodies = [
            answers.error_body(request.url.path, 422, _message(own), tuple(own["loc"]), str(own["type"]))
            for own in error.errors()
        ]
        problems = [problem for body in bodies for problem in body.get("detail", ())]
        return JSONResponse({"detail": problems} if problems else bodies[0], 422)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        return answer(request, error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(Unauthorized)
    async def unauthorized(request: Request, error: Unauthorized) -> Response:
        return answer(request, 401, str(error), "unauthorized", {"WWW-Authenticate": "Bearer"})

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> Response:
        return answer(request, 503, str(error), "overloaded", {"Retry-After": str(error.retry_after_seconds)})

    @app.exception_handler(AuditUnavailable)
    async def unrecorded(request: Request, error: AuditUnavailable) -> Response:
        message = "the audit record cannot be kept now, and no decision goes without it; try again"
        return answer(request, 503, message, "unrecorded", {"Retry-After": str(AUDIT_RETRY_SECONDS)})

    @app.exception_handler(DeadlineExceeded)
    async def late(request: Request, error: DeadlineExceeded) -> Response:
        return answer(request, 504, str(error), "deadline_exceeded")


def _message(error: Mapping[str, Any]) -> str:
    """What pydantic says of a problem; of an unknown tag it would quote the tag."""
    if error["type"] == "union_tag_invalid":
        return f"expected 'type' to be one of {error['ctx']['expected_tags']}"
    return str(error["msg"])

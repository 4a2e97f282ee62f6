"""The web application: models, endpoints, limits, errors. Any ASGI server can run it; `running` uses uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from reason2decide.errors import ConfigError
from reason2decide.serve import answers, cds_hooks, endpoints
from reason2decide.serve.batching import Batcher
from reason2decide.serve.guard import Door, Guard
from reason2decide.serve.landing import landing_routes
from reason2decide.serve.metrics import Metrics
from reason2decide.serve.recording import documented_security, recorded_route
from reason2decide.serve.replies import error_reply
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings
from reason2decide.version import __version__

if TYPE_CHECKING:
    from reason2decide.serve.audit import AuditLog
    from reason2decide.serve.auth import Authenticator
    from reason2decide.serve.extension import Extension

WARM_UP_SECONDS = 600.0  # ours: limit for the first calls of each model, before the server is ready


class Health(BaseModel):
    status: str


def create_app(
    models: Sequence[ServedModel],
    settings: ServeSettings,
    *,
    authenticator: Authenticator | None = None,
    audit: AuditLog | None = None,
    extension: Extension | None = None,
) -> FastAPI:
    """The application that serves these models; its `state.door` counts requests and can stop letting them in.

    Args:
        authenticator: checks callers; without one anyone may call, so bind to loopback only.
        audit: records decisions; closed with the application.
        extension: pages beside the endpoints; closed with the application.

    Raises:
        ConfigError: no model, or two with the same name.
    """
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"expected models with different names, got {names}; give each its own name (NAME=PATH)")
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
        background = None if extension is None else asyncio.create_task(extension.run())
        yield
        if extension is not None and background is not None:
            background.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await background
            await asyncio.to_thread(extension.close)
        await asyncio.to_thread(batcher.close)
        if audit is not None:
            await asyncio.to_thread(audit.close)

    app = FastAPI(
        title="reason2decide",
        version=__version__,
        description="Decisions with calibrated probabilities, and the rationale for them.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name this server's own address, and not the proxy's
    )
    app.state.door = door
    app.add_middleware(
        Guard,
        settings=settings,
        door=door,
        observe=metrics.request,
        authenticator=authenticator,
        own_door=None if extension is None else extension.prefix,
    )
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors,
        allow_private_network=bool(settings.cors),  # else a browser does not let a public page call a hospital's server
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", endpoints.INCLUDE_HEADER],
        expose_headers=["Retry-After", "X-Request-Id"],
    )
    app.add_exception_handler(HTTPException, lambda request, error: error_reply(request.url.path, error))
    app.include_router(_operation_routes(door, batcher, metrics, authenticator, audit, settings))
    app.include_router(landing_routes(models, authenticator, extension))
    app.include_router(endpoints.router(models, batcher, authenticator, audit, settings))
    app.include_router(cds_hooks.router(models, batcher, authenticator, audit, settings, extension))
    if extension is not None:
        app.include_router(extension.router(batcher, settings, audit))
    return app


async def _warm_up(batcher: Batcher, model: ServedModel) -> None:
    """Make each kind of call once, since a model's first call is slow. A text of full length shows the maximum cost of
    a call, so that a freshly started server does not admit more than it can answer."""
    deadline, text = time.monotonic() + WARM_UP_SECONDS, model.longest_text
    label = (await batcher.decide(model, text, deadline)).label
    if model.explains:
        with batcher.admit(model, deadline, explains=1, streams=1) as request:
            await request.explain(text, label)
            async for _ in request.stream(text, label):
                pass


def _operation_routes(
    door: Door,
    batcher: Batcher,
    metrics: Metrics,
    authenticator: Authenticator | None,
    audit: AuditLog | None,
    settings: ServeSettings,
) -> APIRouter:
    api = APIRouter(tags=["Operation"])
    # Scraping needs a token too, but is not recorded: it reveals nothing about any case.
    guarded = APIRouter(
        route_class=recorded_route(authenticator, None, settings), dependencies=documented_security(authenticator)
    )
    unwell: dict[int | str, dict[str, Any]] = {503: {"model": Health}}

    @api.get("/health/live", response_model=Health, responses=unwell)
    async def live() -> Response:
        """Whether the process works; if not, restart it."""
        return JSONResponse({"status": "live"}) if batcher.works else JSONResponse({"status": "dead"}, 503)

    @api.get("/health/ready", response_model=Health, responses=unwell)
    async def ready() -> Response:
        """Whether to send requests here: not while the server shuts down, or the audit record cannot be written."""
        if door.draining:
            return JSONResponse({"status": "draining"}, 503)
        if audit is not None and not audit.works:
            return JSONResponse({"status": "unrecorded"}, 503)
        return JSONResponse({"status": "ready"})

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @guarded.get(
        "/metrics", response_class=Response, responses=text | endpoints.documented(answers.ErrorReply, 401, 421)
    )
    async def scrape() -> Response:
        """Counts, depths and times in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    api.include_router(guarded)
    return api

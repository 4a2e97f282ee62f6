"""The wrapper of every route: it authenticates the caller, answers foreseen errors and records the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Depends, Request, Response
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from reason2decide.serve.replies import CLIENT_GONE, FORESEEN, error_reply
from reason2decide.serve.settings import ServeSettings

if TYPE_CHECKING:
    from reason2decide.serve.audit import AuditLog
    from reason2decide.serve.auth import Authenticator
    from reason2decide.serve.served_model import ServedModel

JSON_BODY = "json_body"  # in a request's state: the value of its body, parsed and checked by `guard`
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _ParsedRequest(Request):
    """A request whose body is not parsed a second time."""

    async def json(self) -> Any:
        state = self.scope.get("state", {})
        return state[JSON_BODY] if JSON_BODY in state else await super().json()


def recorded_route(
    authenticator: Authenticator | None, audit: AuditLog | None, settings: ServeSettings
) -> type[APIRoute]:
    """A kind of route that records every authenticated request, whatever its outcome, before its reply is sent.

    Args:
        authenticator: checks callers; None lets everyone in as `anonymous`.
        audit: the record; None records nothing.
    """

    class RecordedRoute(APIRoute):
        def get_route_handler(self) -> Handler:
            inner, endpoint = super().get_route_handler(), self.path

            async def handle(received: Request) -> Response:
                request = _ParsedRequest(received.scope, received.receive)
                try:
                    await authenticate(request, authenticator, settings)
                    return await recorded(request)
                except FORESEEN as error:
                    return error_reply(request.url.path, error)

            async def recorded(request: Request) -> Response:
                began, status = time.monotonic(), 500
                request.state.row = {}
                try:
                    try:
                        response = await inner(request)
                    except FORESEEN as error:
                        response = error_reply(request.url.path, error)
                    status = response.status_code
                    return response
                except asyncio.CancelledError:
                    status = CLIENT_GONE
                    raise
                finally:
                    if audit is not None:
                        row = audit.record(
                            caller=request.state.caller,
                            endpoint=endpoint,
                            status=status,
                            latency_ms=1000 * (time.monotonic() - began),
                            **request.state.row,
                        )
                        if status != CLIENT_GONE:  # nobody waits for it any more
                            await audit.written(row)

            return handle

    return RecordedRoute


async def authenticate(request: Request, authenticator: Authenticator | None, settings: ServeSettings) -> None:
    """Name the caller of a request in its state, once: `guard` asks before the body is read, a route again.

    Raises:
        Unauthorized, AuditUnavailable: as `Authenticator.check`.
    """
    if getattr(request.state, "caller", None) is not None:
        return
    request.state.caller = "anonymous"
    if authenticator is not None:
        request.state.caller = None
        audience = settings.audience(str(request.url), request.url.path)
        request.state.caller = await authenticator.check(request, audience=audience)


def note(request: Request, model: ServedModel, **values: Any) -> None:
    """Note for the record the model of a request, and what else `AuditLog.record` takes once it is known."""
    request.state.row |= {"model": model.name, "model_hash": model.hash, **values}


def documented_security(authenticator: Authenticator | None) -> Sequence[Dependency]:
    """The security scheme for the OpenAPI document only: the routes themselves check tokens."""
    return [] if authenticator is None else [Depends(HTTPBearer(auto_error=False))]

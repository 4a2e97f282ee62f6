"""Middleware before every route: authentication, bounds on bodies, draining, counting, and no text in logs.

The caller is authenticated before anything of the body is decompressed or parsed. A body is read whole, within its
bounds of size and time, and parsed once (`bodies.py`); a route finds its value in the request's state. A request whose
client has disconnected is cancelled. An unforeseen error is logged by type and location, never with its message, which
may quote a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import Request, Response

from reason2decide.serve.bodies import json_of
from reason2decide.serve.recording import JSON_BODY, authenticate
from reason2decide.serve.replies import CLIENT_GONE, FORESEEN, Fault, error_body, error_reply
from reason2decide.serve.settings import ServeSettings
from reason2decide.serve.wire import Refused

if TYPE_CHECKING:
    from reason2decide.serve.auth import Authenticator

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Observer = Callable[[str, int, float], None]  # route, status, seconds

OPEN = ("/health/live", "/health/ready", "/cds-services", "/cds-services/", "/openapi.json")  # without a token
LANDING = "/"  # without a token too, but not under any name: it lists the models where callers need none
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ALWAYS_ANSWERED = ("/health/live", "/health/ready", "/metrics")  # also while draining
# Ours: a body up to this many times the bound is read to its end and discarded, so that its sender gets the answer:
# closing a connection while the client still sends resets it.
READ_ANYWAY = 16
REQUEST_ID_HEADERS = (b"x-request-id", b"x-typesafe-request-id")  # as openai and typesafe-sdk read it
DRAINING_RETRY_SECONDS = 5  # ours

_log = logging.getLogger(__name__)


@dataclass
class Door:
    """Whether requests are let in, and how many are inside."""

    draining: bool = False
    inside: int = 0


class Guard:
    """ASGI middleware; see the module.

    Args:
        observe: called for every answer.
        own_door: prefix of paths that let people in themselves, whose bodies are forms, and which are answered while
            draining too.
    """

    def __init__(
        self,
        app: App,
        *,
        settings: ServeSettings,
        door: Door,
        observe: Observer,
        authenticator: Authenticator | None = None,
        own_door: str | None = None,
    ) -> None:
        self._app, self._settings, self._door, self._observe = app, settings, door, observe
        self._authenticator, self._own_door = authenticator, own_door
        public = urlsplit(settings.public_url or "").netloc.lower()
        self._hosts = {*LOOPBACK_NAMES, settings.host.lower(), public, public.rpartition(":")[0]} - {""}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, answer = time.monotonic(), _Answer(send, self._door)
        always = scope["path"] in ALWAYS_ANSWERED
        self._door.inside += not always
        try:
            await self._handle(scope, receive, answer, always)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("%s at %s, line %s", type(error).__name__, place.filename, place.lineno)
            if answer.status is None:
                message = "the server met an unforeseen error; its log says where"
                await answer.error(scope, Refused(message, (), "internal_error", 500))
        finally:
            self._door.inside -= not always
            route = getattr(scope.get("route"), "path", None) or "other"
            self._observe(route, answer.status or CLIENT_GONE, time.monotonic() - started)

    async def _handle(self, scope: MutableMapping[str, Any], receive: Receive, answer: _Answer, always: bool) -> None:
        # What people have typed is kept until the end.
        if self._door.draining and not always and not self._has_own_door(scope):
            await answer.error(scope, Refused("the server is shutting down", (), "draining", 503))
            return
        try:
            self._require_known_host(scope)
            refusal = await self._refusal(scope)
            body = await self._body(scope, receive, keep=refusal is None)
            if body is None:
                return
            if refusal is not None:  # only now, so that the sender gets it: all of its body was read, and discarded
                await refusal(scope, receive, answer)
                return
            if body and not self._has_own_door(scope):
                kind, encoding = (
                    _header(scope, name).decode("latin-1") for name in (b"content-type", b"content-encoding")
                )
                scope.setdefault("state", {})[JSON_BODY] = json_of(body, kind, encoding, self._settings)
        except Refused as refused:
            await answer.error(scope, refused, close=refused.status in (408, 413))
            return
        await _until_gone(self._app, scope, body, receive, answer)

    def _require_known_host(self, scope: MutableMapping[str, Any]) -> None:
        """Refuse another name than this server's where anyone may call: a web page whose own name was made to mean this
        machine (DNS rebinding) could otherwise read its answers.

        Raises:
            Refused: the `Host` header names another server.
        """
        host = _header(scope, b"host").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        known = not host or not {host, name}.isdisjoint(self._hosts)  # every browser sends one
        if self._authenticator is None and scope["path"] not in OPEN and not known:
            raise Refused(
                "this name is not the server's; call it by its address, or name it with --public-url", (), "host", 421
            )

    def _has_own_door(self, scope: MutableMapping[str, Any]) -> bool:
        path, prefix = scope["path"], self._own_door
        return prefix is not None and (path == prefix or path.startswith(f"{prefix}/"))

    async def _refusal(self, scope: MutableMapping[str, Any]) -> Response | None:
        """The reply to a caller who may not ask; None if the caller may."""
        if scope["path"] in (*OPEN, LANDING) or self._has_own_door(scope):
            return None
        request = Request(scope)
        try:
            await authenticate(request, self._authenticator, self._settings)
        except FORESEEN as error:
            return error_reply(scope["path"], error)
        return None

    async def _body(self, scope: MutableMapping[str, Any], receive: Receive, *, keep: bool) -> bytes | None:
        """The whole body, or an empty one if it is not kept; None if the client has disconnected.

        Raises:
            Refused: it is too large or too slow.
        """
        most = self._settings.max_body_bytes
        too_large = Refused(f"the body is larger than {most} bytes; send less", (), "too_large", 413)
        announced = _header(scope, b"content-length")
        if announced.isdigit() and int(announced) > READ_ANYWAY * most:
            raise too_large
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= most:
                        body += part if keep else b""
                    elif size > READ_ANYWAY * most or not message.get("more_body", False):
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._settings.body_seconds
            raise Refused(f"the body did not arrive within {seconds:g} s", (), "too_slow", 408) from None


class _Answer:
    """The `send` of a request, which remembers the status; while draining, each answer closes its connection."""

    def __init__(self, send: Send, door: Door) -> None:
        self._send, self._door = send, door
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            request_id = uuid.uuid4().hex.encode()
            message["headers"] = [*message.get("headers", ()), *((name, request_id) for name in REQUEST_ID_HEADERS)]
            if self._door.draining:
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    async def error(self, scope: MutableMapping[str, Any], refused: Refused, *, close: bool = False) -> None:
        fault = Fault(refused.status, str(refused), refused.kind, refused.location)
        content = error_body(scope["path"], [fault])
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if refused.status == 503:
            headers.append((b"retry-after", str(DRAINING_RETRY_SECONDS).encode()))
        if close and not self._door.draining:
            headers.append((b"connection", b"close"))
        await self({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


async def _until_gone(app: App, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
    """Run an app on a request whose body was read before; cancel it when the client disconnects."""
    gone = asyncio.ensure_future(receive())  # after the body nothing else can come
    read = False

    async def again() -> Message:
        nonlocal read
        if not read:
            read = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.shield(gone)

    task = asyncio.ensure_future(app(scope, again, send))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        task.cancel()
        gone.cancel()


def _header(scope: MutableMapping[str, Any], name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")

"""The server process: its address, bounds on connections, and graceful shutdown.

On SIGTERM or Ctrl-C the server keeps listening and answers the requests it let in; later ones get 503, and so does
`/health/ready`. When all are answered, or the grace period is over, it closes. A second signal closes it at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from reason2decide.console import say, warn
from reason2decide.data.cases import described
from reason2decide.errors import UserError
from reason2decide.serve.app import create_app
from reason2decide.serve.audit import AuditLog, AuditUnavailable
from reason2decide.serve.auth import Authenticator
from reason2decide.serve.extension import Extension
from reason2decide.serve.guard import Door
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

LAST_MOMENT = 0.2  # ours: seconds between the last new connection and the closing of idle ones
MOST_PIPELINED = 16  # ours: requests of a connection that wait for the one before
CHUNK_OVERHEAD = 8  # a chunk of one byte has five around it
LAST_SECONDS = 2  # ours: for responses being sent, after the grace period
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json\r\n"
    b'content-length: 33\r\nconnection: close\r\n\r\n{"detail":"too many connections"}'
)
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class AddressError(UserError):
    """The server cannot listen on the given address."""


def serve(
    models: Sequence[tuple[str, Path]],
    settings: ServeSettings,
    extended: Callable[[Sequence[ServedModel]], Extension | None] = lambda models: None,
) -> None:
    """Load models by name and serve them until a signal; address, files and tokens are checked before models load.

    Args:
        extended: makes the pages beside the endpoints, of the loaded models.

    Raises:
        UserError: an address, a file, a model or a name cannot be used.
    """
    settings.require_safe_address()
    with bind(settings) as listening:
        audit = AuditLog(settings.audit, settings.retention_days) if settings.audit is not None else None
        authenticator = Authenticator(settings, audit) if settings.authenticates else None
        rates = {"error_rate": settings.error_rate, "miscoverage": settings.miscoverage}
        loaded = [ServedModel(name, path, settings.reading, settings.reasons, **rates) for name, path in models]
        for model in loaded:
            if model.predictor.caution:
                warn(model.predictor.caution)
            if not model.reads_notes:
                say(f"{model.name} is no CDS Hooks service, since charts have notes, and {described(model.recipe)}")
        extension = extended(loaded)
        run_server(loaded, settings, listening, authenticator=authenticator, audit=audit, extension=extension)


def bind(settings: ServeSettings) -> socket.socket:
    """A socket at the server's address, not listening yet.

    Raises:
        AddressError: the address is in use, not permitted or not one of this machine.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        # Connections that an earlier server left in TIME_WAIT do not block the address; a listening server does.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise _explained(error, where) from None
    return listening


def run_server(
    models: Sequence[ServedModel],
    settings: ServeSettings,
    listening: socket.socket | None = None,
    *,
    authenticator: Authenticator | None = None,
    audit: AuditLog | None = None,
    extension: Extension | None = None,
) -> None:
    """Serve until a signal.

    Args:
        listening: the socket from `bind`; without it, the address is bound here.

    Raises:
        ConfigError: other machines could call without authentication, or two models have the same name.
        AddressError: as `bind`.
    """
    if authenticator is None:
        settings.require_safe_address()
    app = create_app(models, settings, authenticator=authenticator, audit=audit, extension=extension)
    listening = listening or bind(settings)
    host, port = listening.getsockname()[:2]
    config = uvicorn.Config(
        app,
        http=_protocol(settings),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    logging.getLogger("asyncio").addFilter(OncePerSecond())
    names = ", ".join(model.name for model in models)
    at = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    say(f"serving {names} at {at}" + (f"; pages for people at {at}{extension.prefix}" if extension else ""))
    try:
        _Server(config, app.state.door, settings.grace_seconds).run(sockets=[listening])
    except OSError as error:  # another program has started to listen since
        raise _explained(error, f"{host}:{port}") from None
    if audit is not None and audit.unwritten:
        raise AuditUnavailable(f"{audit.unwritten} rows were never written to the audit record {audit.path}")


class OncePerSecond(logging.Filter):
    """Lets one message a second through: asyncio logs each connection that it cannot accept, with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self._last < 1:
            return False
        self._last = record.created
        record.exc_info = None
        return True


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, door: Door, grace_seconds: float) -> None:
        super().__init__(config)
        self._door, self._grace = door, grace_seconds
        self._end: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._door.draining:
            self.should_exit = self.force_exit = True
        self._door.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._door.draining and self._end is None:
            self._end = time.monotonic() + self._grace  # checked from the next tick on: what is being read is let in
        elif self._end is not None:
            self.should_exit |= self._door.inside == 0 or time.monotonic() > self._end
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # No new connections; requests that arrive on open ones in a last moment still get 503.
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_MOMENT)
        await super().shutdown(sockets)


def _protocol(settings: ServeSettings) -> type[asyncio.Protocol]:
    addresses: Counter[str] = Counter()  # open connections of each

    class Bounded(HttpToolsProtocol):
        """HTTP with bounds that uvicorn lacks.

        On connections, in all and of an address; on the size and time of a head; on what is neither head nor body; on
        requests sent before the answer to the first; on the time to read an answer.
        """

        _heads = _head_bytes = 0  # heads read, bytes of the one being read
        _body_bytes = _other_bytes = 0  # of a body, and of chunk sizes, extensions and trailers around it
        _in_head = True
        _too_slow: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _address = ""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()
            self._address = str((transport.get_extra_info("peername") or [""])[0])
            addresses[self._address] += 1
            if (
                len(self.connections) > settings.max_connections
                or addresses[self._address] > settings.max_connections_of_address
            ):
                self._refuse(_REFUSED)

        def data_received(self, data: bytes) -> None:
            was_in_head, heads = self._in_head, self._heads
            if was_in_head:
                self._await_head()
            else:
                self._other_bytes += len(data)
            super().data_received(data)
            if self._other_bytes > settings.max_head_bytes + CHUNK_OVERHEAD * self._body_bytes:
                self._refuse(b"")
            if was_in_head and self._in_head and self._heads == heads:
                self._head_bytes += len(data)
                if self._head_bytes > settings.max_head_bytes:
                    self._refuse(_HEAD_TOO_LARGE)

        def on_headers_complete(self) -> None:
            self._in_head, self._head_bytes = False, 0
            self._body_bytes = self._other_bytes = 0
            self._heads += 1
            self._stop_waiting()
            super().on_headers_complete()
            if len(self.pipeline) > MOST_PIPELINED:
                self._refuse(b"")

        def on_body(self, body: bytes) -> None:
            self._body_bytes += len(body)
            self._other_bytes -= len(body)
            super().on_body(body)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(settings.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()

        def on_message_complete(self) -> None:
            self._in_head = True
            super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            if self._unread is not None:
                self._unread.cancel()
            addresses[self._address] -= 1
            if not addresses[self._address]:
                del addresses[self._address]
            super().connection_lost(exc)

        def _await_head(self) -> None:
            if self._too_slow is None:
                self._too_slow = self.loop.call_later(settings.head_seconds, self._refuse, b"")

        def _stop_waiting(self) -> None:
            if self._too_slow is not None:
                self._too_slow.cancel()
                self._too_slow = None

        def _refuse(self, response: bytes) -> None:
            if not self.transport.is_closing():
                self.transport.write(response)
                self.transport.close()

    return Bounded


def _explained(error: OSError, where: str) -> AddressError:
    if error.errno == errno.EADDRINUSE:
        return AddressError(f"{where} is in use by another program; stop it, or give another --port")
    return AddressError(f"cannot listen on {where}: {error.strerror}; give another --host or --port")

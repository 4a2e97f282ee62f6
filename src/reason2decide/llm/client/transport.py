"""Send one request over HTTP and read its reply, streamed or whole, within limits of silence and size."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType

import aiohttp

from reason2decide.llm.client.dialects import PATHS
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.loops import LEAST_CHARACTERS, ends_in_a_loop
from reason2decide.llm.client.streaming import StreamedCompletion
from reason2decide.llm.settings import Limits

MAX_REPLY_BYTES = 32 << 20  # ours: an answer of 4,000 tokens with 20 log-probabilities each is about 8 MiB


class TransportError(Exception):
    """A request got no whole reply; the message quotes nothing of it."""


class SilenceError(TransportError):
    """The server sent nothing for too long."""


class TooLargeError(TransportError):
    """A reply is larger than `MAX_REPLY_BYTES`."""


@dataclass(frozen=True)
class Answered:
    """A server's reply: its bytes or, where it was streamed, what they say.

    `looping` means that the model repeated itself, so that the rest of the stream was not read.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = b""
    streamed: StreamedCompletion | None = None
    looping: bool = False


class Transport:
    """A context with the connections to one endpoint.

    Each call has its own connection. On a reused one, a reply that a server sends twice would be read as the answer to
    the next call: one patient's rationale in another's record. HTTP/1.1 cannot tell them apart.
    """

    def __init__(self, endpoint: Endpoint, limits: Limits) -> None:
        self._endpoint, self._limits = endpoint, limits
        self._url = endpoint.base_url + PATHS[endpoint.dialect]

    async def __aenter__(self) -> Transport:
        api_key = self._endpoint.api_key()
        key = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._limits.concurrency, force_close=True),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._limits.read_timeout, sock_read=self._limits.read_timeout
            ),
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **key},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=not self._endpoint.is_loopback,  # a proxy could send the text off this machine
        )
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._session.close()

    async def post(self, body: bytes) -> Answered:
        """Send a request and read the reply.

        Raises:
            TransportError: there is no whole reply.
            ValueError: it is no stream of the protocol.
        """
        try:
            # A redirect is not followed: it could send the text off this machine.
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                if response.status == 200 and response.content_type == "text/event-stream":
                    return await self._stream(response)
                content = b"".join([chunk async for chunk in _capped(response)])
                return Answered(response.status, response.headers, content)
        except aiohttp.ServerTimeoutError:
            raise SilenceError(f"the server was silent for {self._limits.read_timeout:g} s") from None
        except aiohttp.ClientError:
            raise TransportError("the connection failed or broke") from None

    async def _stream(self, response: aiohttp.ClientResponse) -> Answered:
        streamed, rest, looked_at = StreamedCompletion(), b"", 0
        async for chunk in _capped(response):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                streamed.feed(line.decode("utf-8", "replace").rstrip("\r"))
            if len(streamed.newest) < looked_at:  # the reasoning has ended and the answer begins
                looked_at = 0
            if len(streamed.newest) >= looked_at + LEAST_CHARACTERS:
                looked_at = len(streamed.newest)
                if ends_in_a_loop(streamed.newest):
                    return Answered(response.status, response.headers, streamed=streamed, looping=True)
        if not streamed.finished:
            raise TransportError("the connection failed or broke")
        return Answered(response.status, response.headers, streamed=streamed)


async def _capped(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_REPLY_BYTES:
            raise TooLargeError(f"the reply has more than {MAX_REPLY_BYTES >> 20} MiB")
        yield chunk

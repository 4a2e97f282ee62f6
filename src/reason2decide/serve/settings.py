"""Every setting of the server, each default with its source."""

from __future__ import annotations

import ipaddress
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from reason2decide.errors import ConfigError


@dataclass(frozen=True)
class ServeSettings:
    """How the server listens, what it accepts and how much of it; times in seconds unless named otherwise.

    Raises:
        ConfigError: a number or an address that cannot be.
    """

    host: str = "127.0.0.1"  # ours: nothing leaves the machine unless somebody says so
    port: int = 8080  # ours
    public_url: str | None = None  # where clients reach the server, if through a proxy; token audiences begin with it
    tokens: Path | None = None  # lines of NAME:SHA256, see `auth`
    jwt_issuers: Path | None = None  # issuers and their keys, see `auth`
    audit: Path | None = None  # SQLite file of the audit record
    retention_days: int = 365  # ours: local rules decide; older rows of the audit record are deleted
    cors_origins: tuple[str, ...] = ()  # web pages that may call, as CDS Hooks' browser clients do
    source_url: str | None = None  # link of a CDS card's source, if it has one

    max_queue: int = 256  # ours: requests accepted and not yet answered
    max_batch: int = 32  # `predictor.BATCH_SIZE`
    max_streams: int = 8  # ours: rationales written token by token at a time
    deadline_ms: int = 10_000  # the time that typesafe-sdk 0.7 waits for a reply
    grace_seconds: float = 30.0  # Kubernetes' terminationGracePeriodSeconds: accepted requests are answered within it

    max_body_bytes: int = 2**20  # ours: prefetched documents of a CDS client among them
    max_text: int = 256 * 1024  # characters; OpenAI's decisions take JSON inputs of so many bytes
    max_nesting: int = 32  # container levels of a body: OpenAI's decisions
    max_head_bytes: int = 64 * 1024  # h11's bound on a request's line and headers
    max_connections: int = 512  # ours: with the largest body each, 512 MiB
    head_seconds: float = 10.0  # ours: to send a request's line and headers
    body_seconds: float = 10.0  # ours: to send its body
    keep_alive_seconds: int = 30  # ours: an idle connection is kept; typesafe-sdk pools them as long

    def __post_init__(self) -> None:
        positive = ("retention_days", "max_queue", "max_batch", "max_streams", "deadline_ms", "max_connections")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"the port is {self.port}; expected 0 (any free one) to 65535")
        for name in ("public_url", "source_url"):
            url = getattr(self, name)
            if url is not None and not url.startswith(("http://", "https://")):
                raise ConfigError(f"{name} is {url!r}; expected a whole address, as in https://triage.example.org")

    def deadline(self) -> float:
        """When a request that begins now must be answered, on the clock of `time.monotonic`."""
        return time.monotonic() + self.deadline_ms / 1000

    def audience(self, url: str, path: str) -> str:
        """What a token for this call must name: the URL called, as a client outside a proxy wrote it."""
        return url.split("?")[0] if self.public_url is None else self.public_url.rstrip("/") + path

    @property
    def authenticates(self) -> bool:
        """Whether callers must show a token."""
        return self.tokens is not None or self.jwt_issuers is not None

    def require_safe_address(self) -> None:
        """Refuse to be reached from other machines without authentication.

        Raises:
            ConfigError: the host is no loopback address and nobody is asked for a token, or it cannot be resolved.
        """
        if not self.authenticates and not _is_loopback(self.host):
            raise ConfigError(
                f"the host {self.host} can be reached from other machines, and no authentication is configured; "
                "give --tokens FILE or --jwt-issuers FILE, or keep to --host 127.0.0.1"
            )


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"the host {host!r} cannot be resolved ({error.strerror}); give an address") from None
    return all(ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback for *_, address in found)

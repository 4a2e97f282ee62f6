"""Every setting of the server, each default with its source."""

from __future__ import annotations

import ipaddress
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from reason2decide.errors import ConfigError
from reason2decide.model.operating_point import ERROR_RATE, MISCOVERAGE
from reason2decide.model.reading import INPUT_TOKENS_HELP, LEAST_INPUT, LONG_TEXTS_HELP, LongTexts, ReadingSettings
from reason2decide.model.reasons import ReasonSettings

MOST_DAYS = 36500  # ours: a hundred years, which a date can be moved back


@dataclass(frozen=True)
class ServeSettings(ReasonSettings):
    """Where the server listens, what it accepts and how much of it; times in seconds unless named otherwise.

    Raises:
        ConfigError: a number is out of range, or an address is not a URL.
    """

    host: str = field(  # ours: other machines cannot call unless it is changed
        default="127.0.0.1",
        metadata={"help": "Address to listen on; any but loopback needs --tokens or --jwt-issuers."},
    )
    port: int = field(
        default=8080, metadata={"help": "Port to listen on; 0 picks a free one.", "min": 0, "max": 65535}
    )  # ours
    public_url: str | None = field(
        default=None, metadata={"help": "URL that callers use, if through a proxy; token audiences begin with it."}
    )
    tokens: Path | None = field(  # lines of NAME:SHA256, see `auth`
        default=None, metadata={"help": "Callers' tokens: lines printed by `r2d serve-token`.", "metavar": "FILE"}
    )
    jwt_issuers: Path | None = field(  # see `auth`
        default=None, metadata={"help": "TOML file of JSON web token issuers and their key files.", "metavar": "FILE"}
    )
    audit: Path | None = field(default=None, metadata={"help": "SQLite record of every decision.", "metavar": "FILE"})
    retention_days: int = field(  # ours: local rules decide
        default=365, metadata={"help": "Days to keep rows of the audit record.", "min": 1, "max": MOST_DAYS}
    )
    cors: tuple[str, ...] = field(  # as CDS Hooks' browser clients need
        default=(), metadata={"help": "Origin of web pages that may call; may be repeated.", "metavar": "ORIGIN"}
    )
    source_url: str | None = field(
        default=None, metadata={"help": "Page about the model that CDS cards link to.", "metavar": "URL"}
    )
    error_rate: float = field(
        default=ERROR_RATE,
        metadata={"help": "Target error rate of decisions that are not deferred to a person.", "min": 0, "max": 1},
    )
    miscoverage: float = field(
        default=MISCOVERAGE,
        metadata={"help": "Share of prediction sets that may miss the correct label.", "min": 0, "max": 1},
    )
    long_texts: LongTexts = field(  # ours: a red flag may stand at the end of a note
        default="defer", metadata={"help": LONG_TEXTS_HELP}
    )
    input_tokens: int | None = field(default=None, metadata={"help": INPUT_TOKENS_HELP, "min": LEAST_INPUT})
    max_queue: int = field(  # ours
        default=256, metadata={"help": "Maximum number of requests in progress; further ones get 503.", "min": 1}
    )
    deadline_ms: int = field(  # the time that typesafe-sdk 0.7 waits for a reply
        default=10_000, metadata={"help": "Milliseconds to answer a request in; after that it gets 504.", "min": 1}
    )

    max_batch: int = 32  # `batches.BATCH_SIZE`
    max_streams: int = 8  # ours: rationales streamed at the same time
    grace_seconds: float = 30.0  # Kubernetes' terminationGracePeriodSeconds: accepted requests are answered within it

    max_body_bytes: int = 2**20  # ours: includes the prefetched documents of a CDS client
    max_text: int = 256 * 1024  # characters; OpenAI's decisions accept JSON inputs of this many bytes
    max_nesting: int = 32  # container levels of a body; as OpenAI's decisions
    max_values: int = 20_000  # ours: of a body, twice those of a state; each may become an object, or an error
    max_head_bytes: int = 64 * 1024  # h11's bound on a request's line and headers
    max_connections: int = 512  # ours: with the largest body each, 512 MiB
    max_connections_of_address: int = 256  # ours: half of them; a proxy has one address for all its clients
    write_seconds: float = 20.0  # ours: for a client to read on when it has stopped reading
    head_seconds: float = 10.0  # ours: to send a request's line and headers
    body_seconds: float = 10.0  # ours: to send its body
    keep_alive_seconds: int = 30  # ours: an idle connection is kept; typesafe-sdk pools them for the same time

    def __post_init__(self) -> None:
        super().__post_init__()
        ReadingSettings(self.long_texts, self.input_tokens)  # an impossible one is refused
        positive = ("retention_days", "max_queue", "max_batch", "max_streams", "deadline_ms", "max_connections")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.retention_days > MOST_DAYS:
            raise ConfigError(f"retention_days is {self.retention_days}; expected at most {MOST_DAYS}, a hundred years")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"the port is {self.port}; expected 0 (any free one) to 65535")
        for name in ("public_url", "source_url"):
            url = getattr(self, name)
            if url is not None and not url.startswith(("http://", "https://")):
                raise ConfigError(f"{name} is {url!r}; expected a full URL, as in https://triage.example.org")

    @property
    def reading(self) -> ReadingSettings:
        """How texts over the prompt's limit are read."""
        return ReadingSettings(self.long_texts, self.input_tokens)

    def deadline(self) -> float:
        """When a request that begins now must be answered, on the clock of `time.monotonic`."""
        return time.monotonic() + self.deadline_ms / 1000

    def audience(self, url: str, path: str) -> str:
        """The audience that a token for this call must have: the URL called, as a client outside a proxy wrote it."""
        return url.split("?")[0] if self.public_url is None else self.public_url.rstrip("/") + path

    @property
    def authenticates(self) -> bool:
        """Whether callers must show a token."""
        return self.tokens is not None or self.jwt_issuers is not None

    def require_safe_address(self) -> None:
        """Refuse to be reached from other machines without authentication.

        Raises:
            ConfigError: the host is not a loopback address and no token is required, or it cannot be resolved.
        """
        if not self.authenticates and not _is_loopback(self.host):
            raise ConfigError(
                f"the host {self.host} can be reached from other machines, and no authentication is configured; "
                "give --tokens FILE or --jwt-issuers FILE, or use --host 127.0.0.1"
            )


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"the host {host!r} cannot be resolved ({error.strerror}); give an address") from None
    return all(ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback for *_, address in found)

"""Define where a language model is served, and let text leave this machine only if the user allows it."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

from reason2decide.errors import UserError

# chat: OpenAI's chat completions. systemone: typed questions with probabilities, as transformers serves them.
# decisions: OpenAI's decisions API. Each is one path under the base URL (`dialects.PATHS`).
Dialect = Literal["chat", "systemone", "decisions"]


class EndpointError(UserError):
    """A server cannot be used: wrong address, model or key, or it does not answer."""


class RemoteEndpointError(EndpointError):
    """The endpoint is on another machine and the user has not allowed that."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible URL, such as http://localhost:11434/v1.

    `api_key_variable` names the environment variable with the key: the key itself is not a field, so it is in no repr,
    log or error.

    Raises:
        RemoteEndpointError: the host is not this machine and `allow_remote` is false.
        EndpointError: the URL or the dialect cannot be used.
    """

    base_url: str
    model: str
    api_key_variable: str | None = None
    dialect: Dialect = "chat"
    allow_remote: bool = False

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.base_url)
            port = url.port
        except ValueError as error:
            raise EndpointError(
                f"the base URL is not an http address ({error}), such as http://localhost:11434/v1"
            ) from None
        if "@" in url.netloc or url.query or url.fragment:
            # The URL is not repeated: the part before the @ or after the ? may be a key.
            raise EndpointError(
                "the base URL contains a user name, a password or a query; give the plain address, and name the "
                "environment variable with the key"
            )
        if url.scheme not in ("http", "https") or not url.hostname:
            raise EndpointError(
                f"the base URL {self.base_url!r} is not an http address, such as http://localhost:11434/v1"
            )
        if url.hostname in ("0.0.0.0", "::"):
            raise EndpointError(
                f"{url.hostname} is where a server listens, not an address to call; if it runs on this machine, give "
                f"{url.scheme}://127.0.0.1{f':{port}' if port else ''}{url.path or '/v1'}"
            )
        if self.dialect not in get_args(Dialect):
            raise EndpointError(f"the dialect is {self.dialect!r}; expected one of {', '.join(get_args(Dialect))}")
        if not self.is_loopback and not self.allow_remote:
            raise RemoteEndpointError(
                f"{url.hostname} is not this machine: the text of every record would be sent there, and patient text "
                "must not leave the building by accident. If you may send it, use --allow-remote; otherwise serve "
                "a model here and give its address, such as http://localhost:11434/v1"
            )
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    @property
    def is_loopback(self) -> bool:
        """Whether the host name alone means this machine: localhost, 127.0.0.0/8 or ::1; no name is looked up."""
        host = urlsplit(self.base_url).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def api_key(self) -> str | None:
        """Read the key from its environment variable; None if no variable is named.

        Raises:
            EndpointError: the variable is not set or empty.
        """
        if self.api_key_variable is None:
            return None
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key:
            raise EndpointError(
                f"the environment variable {self.api_key_variable} is empty; set it to the server's key"
            )
        return key

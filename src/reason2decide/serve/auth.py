"""Who may call: static bearer tokens, and JSON web tokens of allowlisted issuers (CDS Hooks 2.0, Trusting CDS Clients).

Tokens are listed in a file as NAME:SHA256, one per line, so the file contains no secret. Issuers are listed in a TOML
file, with their public keys next to it:

    [issuers]
    "https://ehr.example.org/" = "ehr.jwks.json"    # a JWK Set, or a PEM public key

Both are read once, at start. Keys are never fetched: a `jku` in a token is ignored. A refusal never says why.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reason2decide.errors import ConfigError, Reason2DecideError, require
from reason2decide.syntax import Malformed, parse_json, parse_toml

if TYPE_CHECKING:
    from starlette.requests import Request

    from reason2decide.serve.audit import AuditLog
    from reason2decide.serve.settings import ServeSettings

LEEWAY_SECONDS = 10  # ours: how far the clocks of two servers may differ
# A token's jti is remembered until it expires, so tokens must. Source: CDS Hooks, implementation best practices.
LONGEST_LIFE_SECONDS = 3600
LONGEST_TOKEN = 8192  # ours: characters
LONGEST_JTI = 256  # ours: characters
LEAST_RSA_BITS = 2048  # NIST SP 800-131A
_ALGORITHMS = {"RSA": "RS384", "EC": "ES384"}  # by key type; CDS Hooks 2.0 recommends these two
REQUIRED_CLAIMS = ("iss", "aud", "exp", "iat", "jti")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_log = logging.getLogger(__name__)


class Unauthorized(Reason2DecideError):
    """The caller is not authenticated: 401, without a reason."""

    def __init__(self) -> None:
        super().__init__("unauthorized")


def new_token(name: str) -> tuple[str, str]:
    """A new bearer token of 256 random bits, and its line for the token file.

    Raises:
        ConfigError: the name is not valid in that file.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a token; use at most 64 characters: A-Z, a-z, 0-9, '.', '_', '-'")
    token = secrets.token_urlsafe(32)
    return token, f"{name}:{hashlib.sha256(token.encode()).hexdigest()}"


class Authenticator:
    """Names the caller of a request, or refuses it; without tokens and issuers everyone is `anonymous`.

    Args:
        audit: stores each used `jti`, so that a restart does not lose it; without it, they are kept in memory.

    Raises:
        ConfigError: a file cannot be used, or there are issuers but no public URL: an audience cannot be checked
            against what a caller claims in its `Host` header.
        MissingExtraError: there are issuers, but PyJWT is not installed.
    """

    def __init__(self, settings: ServeSettings, audit: AuditLog | None = None) -> None:
        self._tokens = _read_tokens(settings.tokens) if settings.tokens else {}
        self._issuers = _read_issuers(settings.jwt_issuers) if settings.jwt_issuers else {}
        self._used = audit or _UsedTokens()
        if self._issuers and not (settings.public_url or "").startswith(("https://", "http://")):
            raise ConfigError(
                "JSON web tokens are issued for the address of one server, so it must know its own: give the public "
                "URL that callers use, for instance https://cds.example.org"
            )

    @property
    def required(self) -> bool:
        """Whether callers must show a token."""
        return bool(self._tokens or self._issuers)

    async def check(self, request: Request, *, audience: str) -> str:
        """The caller's name: the name of the static token, or the issuer of the JSON web token.

        Args:
            audience: the URL called, as `ServeSettings.audience` gives it.

        Raises:
            Unauthorized: no token, or one that is not accepted.
            AuditUnavailable: whether the token was used before cannot be determined now.
        """
        if not self.required:
            return "anonymous"
        given = request.headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        token = token.strip()
        if scheme.lower() != "bearer" or not 0 < len(token) <= LONGEST_TOKEN:
            raise Unauthorized
        name = self._name_of(token)
        if name is not None:
            return name
        if self._issuers and token.count(".") == 2:
            return await self._issuer_of(token, audience)
        raise Unauthorized

    def _name_of(self, token: str) -> str | None:
        digest = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
        found = None
        for name, expected in self._tokens.items():  # compare all of them, even after a match
            if hmac.compare_digest(digest, expected):
                found = name
        return found

    async def _issuer_of(self, token: str, audience: str) -> str:
        try:
            claims = self._verified(token, audience)
        except Exception as error:  # whatever the library raises, the token is refused
            _log.info("a JSON web token was refused: %s", type(error).__name__)
            raise Unauthorized from None
        issuer, expires = str(claims["iss"]), int(claims["exp"]) + LEEWAY_SECONDS + 1
        key = hashlib.sha256(json.dumps([issuer, claims["jti"]]).encode()).hexdigest()
        if not await self._used.use_once(key, expires):
            _log.info("a JSON web token was refused: it was already used")
            raise Unauthorized
        return issuer

    def _verified(self, token: str, audience: str) -> Mapping[str, Any]:
        """The claims of a token, not checked for reuse; any fault raises an exception of any type."""
        jwt = require("jwt", "serve")
        header = jwt.get_unverified_header(token)
        if header["typ"].upper() != "JWT":
            raise ValueError("typ")
        issuer = jwt.decode(token, options={"verify_signature": False})["iss"]
        # The algorithm is a property of the key: what the token says about it is never trusted.
        (key,) = (listed for listed in self._issuers[issuer] if listed.kid is None or listed.kid == header["kid"])
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key.public,
            algorithms=[key.algorithm],
            issuer=issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": list(REQUIRED_CLAIMS), "verify_aud": False},
        )
        # A token for several audiences could be replayed here by another of them.
        if claims["aud"] not in (audience, [audience]):
            raise ValueError("aud")
        issued, expires = int(claims["iat"]), int(claims["exp"])
        if expires > min(time.time(), issued) + LONGEST_LIFE_SECONDS + LEEWAY_SECONDS:
            raise ValueError("exp")
        if not 0 < len(claims["jti"]) <= LONGEST_JTI:
            raise ValueError("jti")
        return claims


class _UsedTokens:
    """Keys of used tokens until they expire; for a server without an audit record."""

    def __init__(self) -> None:
        self._expires: dict[str, int] = {}
        self._cleaned = time.time()

    async def use_once(self, key: str, expires: int) -> bool:
        now = time.time()
        if now > self._cleaned + 60:
            self._expires = {used: until for used, until in self._expires.items() if until >= now}
            self._cleaned = now
        first = key not in self._expires
        self._expires.setdefault(key, expires)
        return first


# ---- Files


@dataclass(frozen=True, slots=True)
class _Key:
    """A public key of an issuer; without a `kid` (a PEM file), it is for all of the issuer's tokens."""

    kid: str | None
    algorithm: str
    public: Any


def _read_tokens(path: Path) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, digest = line.strip().partition(":")
        # The line itself is not shown: it may contain a token by mistake.
        if not _NAME.fullmatch(name) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ConfigError(f"{path}, line {number}: expected NAME:SHA256, as `r2d serve-token` prints it")
        if name in tokens:
            raise ConfigError(f"{path}, line {number}: {name!r} occurs twice; give each token its own name")
        tokens[name] = digest
    if not tokens:
        raise ConfigError(f"{path} contains no tokens; add a line that `r2d serve-token NAME` prints")
    return tokens


def _read_issuers(path: Path) -> dict[str, Sequence[_Key]]:
    try:
        issuers = parse_toml(_read(path))["issuers"]
        files = {str(issuer): path.parent / file for issuer, file in issuers.items()}
    except (Malformed, KeyError, AttributeError, TypeError):
        files = {}
    if not files:
        raise ConfigError(f'{path}: expected a TOML table [issuers] of lines like "https://ehr.example.org/" = "FILE"')
    return {issuer: _read_keys(file) for issuer, file in files.items()}


def _read_keys(path: Path) -> Sequence[_Key]:
    text = _read(path)
    if "-----BEGIN" in text:
        serialization = require("cryptography.hazmat.primitives.serialization", "serve")
        try:
            public = serialization.load_pem_public_key(text.encode())
        except ValueError:
            raise ConfigError(f"{path} is not a PEM public key; give the issuer's public key") from None
        return [_key(None, public, path)]
    try:
        entries = [dict(entry) for entry in parse_json(text)["keys"]]
        suitable = [entry for entry in entries if _suits(entry)]
        kids = [str(entry["kid"]) for entry in suitable]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{path} is neither a PEM public key nor a JWK Set whose keys have a kid") from None
    if any(entry["kty"] == "oct" or "d" in entry for entry in entries):
        raise ConfigError(f"{path} contains a secret key; give only the issuer's public keys")
    if not kids or len(set(kids)) < len(kids):
        raise ConfigError(f"{path}: expected keys for RS384 or ES384, each with its own kid; got the kids {kids}")
    jwt = require("jwt", "serve")
    try:
        read = [(entry["kid"], jwt.PyJWK(entry, _ALGORITHMS[entry["kty"]]).key) for entry in suitable]
    except jwt.PyJWTError:
        raise ConfigError(f"{path}: one of the keys {kids} cannot be read; ask the issuer for its JWK Set") from None
    return [_key(kid, public, path) for kid, public in read]


def _suits(entry: Mapping[str, Any]) -> bool:
    """Whether a key of a JWK Set fits our algorithms; a set may contain others, for other servers."""
    algorithm = _ALGORITHMS.get(entry["kty"])
    return (
        algorithm is not None
        and entry.get("crv", "P-384") == "P-384"
        and entry.get("use", "sig") == "sig"
        and entry.get("alg", algorithm) == algorithm
    )


def _key(kid: str | None, public: Any, path: Path) -> _Key:
    """The key with the one algorithm that its type allows.

    Raises:
        ConfigError: it is of another type, or too short.
    """
    ec = require("cryptography.hazmat.primitives.asymmetric.ec", "serve")
    rsa = require("cryptography.hazmat.primitives.asymmetric.rsa", "serve")
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP384R1):
        return _Key(kid, "ES384", public)
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= LEAST_RSA_BITS:
        return _Key(kid, "RS384", public)
    raise ConfigError(
        f"{path}: expected a key on the curve P-384 (ES384), or an RSA key of at least {LEAST_RSA_BITS} bits (RS384)"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read {path}: {reason}") from None

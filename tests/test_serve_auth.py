"""Who may call: every way in which a token is refused, and that a refusal says nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from reason2decide.errors import ConfigError
from reason2decide.serve.audit import AuditLog, AuditUnavailable
from reason2decide.serve.auth import LEEWAY_SECONDS, LONGEST_LIFE_SECONDS, Authenticator, Unauthorized, new_token
from reason2decide.serve.settings import ServeSettings

ISSUER, PEM_ISSUER = "https://ehr.example.org/", "https://clinic.example.org/"
PUBLIC = "https://cds.example.org"
AUDIENCE = PUBLIC + "/cds-services/triage"
EC, RSA = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
STRANGER = ec.generate_private_key(ec.SECP384R1())


def jwk(key: Any, kid: str, **more: str) -> dict[str, Any]:
    maker = jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else jwt.algorithms.RSAAlgorithm
    return {**dict(json.loads(maker.to_jwk(key.public_key()))), "kid": kid, **more}


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "ascii")


def private_pem(key: Any) -> str:
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "ascii")


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> ServeSettings:
    folder = tmp_path_factory.mktemp("auth")
    keys = [
        jwk(EC, "ec", alg="ES384", use="sig"),
        jwk(RSA, "rsa"),
        jwk(RSA, "for encryption", use="enc"),
        jwk(RSA, "rs256", alg="RS256"),
        jwk(ec.generate_private_key(ec.SECP256R1()), "es256"),
        {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "AA"},
    ]
    (folder / "ehr.json").write_text(json.dumps({"keys": keys}))
    (folder / "clinic.pem").write_text(pem(RSA))
    (folder / "issuers.toml").write_text(f'[issuers]\n"{ISSUER}" = "ehr.json"\n"{PEM_ISSUER}" = "clinic.pem"\n')
    (folder / "tokens").write_text(f"# a comment\n\n{TOKEN_LINE}\nother:{'0' * 64}\n")
    return ServeSettings(tokens=folder / "tokens", jwt_issuers=folder / "issuers.toml", public_url=PUBLIC)


TOKEN, TOKEN_LINE = new_token("ward-3")


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    own = {"iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 300, "jti": f"id-{time.perf_counter_ns()}"}
    return {key: value for key, value in {**own, **changes}.items() if value is not None}


def token(key: Any = EC, algorithm: str = "ES384", kid: str | None = "ec", typ: Any = "JWT", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={"typ": typ} | ({"kid": kid} if kid else {}))


def segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def hmac_token(secret: str) -> str:
    """By hand: the library itself refuses to sign so."""
    signed = f"{segment({'alg': 'HS384', 'typ': 'JWT', 'kid': 'ec'})}.{segment(claims())}"
    mac = hmac.new(secret.encode(), signed.encode(), "sha384").digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def tampered(**changes: Any) -> str:
    head, body, signature = token().split(".")
    own = json.loads(base64.urlsafe_b64decode(body + "=="))
    return f"{head}.{segment({**own, **changes})}.{signature}"


def request(*authorization: str) -> Request:
    headers = [(b"authorization", value.encode("latin-1")) for value in authorization]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b""})


def check(authenticator: Authenticator, *authorization: str, audience: str = AUDIENCE) -> str:
    return asyncio.run(authenticator.check(request(*authorization), audience=audience))


# ---- Static tokens


def test_a_new_token_is_known_by_its_name(configured: ServeSettings) -> None:
    authenticator = Authenticator(configured)
    assert check(authenticator, f"Bearer {TOKEN}") == "ward-3"
    assert check(authenticator, f"bearer  {TOKEN} ") == "ward-3"
    assert check(authenticator, f"Bearer {TOKEN}", audience="anything") == "ward-3"


def test_a_new_token_is_random_and_its_line_holds_no_secret() -> None:
    value, line = new_token("a")
    assert line == f"a:{hashlib.sha256(value.encode()).hexdigest()}"
    assert len(value) >= 43 and value not in line and new_token("a")[0] != value
    for name in ("", "a:b", "a b", "x" * 65, "-a", "a\n"):
        with pytest.raises(ConfigError, match="cannot name a token"):
            new_token(name)


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("",),
        ("Bearer",),
        ("Bearer ",),
        (TOKEN,),
        (f"Basic {TOKEN}",),
        (f"Bearer {TOKEN}x",),
        (f"Bearer {TOKEN[:-1]}",),
        (f"Bearer {hashlib.sha256(TOKEN.encode()).hexdigest()}",),
        (f"Bearer {TOKEN}", f"Bearer {TOKEN}"),
        ("Bearer " + "x" * 10_000,),
        ("Bearer \xff\xfe",),
    ],
)
def test_other_credentials_are_refused(configured: ServeSettings, given: tuple[str, ...]) -> None:
    with pytest.raises(Unauthorized) as caught:
        check(Authenticator(configured), *given)
    assert str(caught.value) == "unauthorized"


def test_without_configuration_everybody_is_anonymous() -> None:
    authenticator = Authenticator(ServeSettings())
    assert not authenticator.required and check(authenticator) == "anonymous"


# ---- JSON web tokens


@pytest.mark.parametrize(
    "make",
    [
        lambda: token(),
        lambda: token(RSA, "RS384", "rsa"),
        lambda: token(aud=[AUDIENCE]),
        lambda: token(RSA, "RS384", None, iss=PEM_ISSUER),
        lambda: token(RSA, "RS384", "any kid", iss=PEM_ISSUER),
        lambda: token(typ="jwt", nbf=int(time.time()), tenant="t", sub="s"),
        lambda: token(iat=int(time.time()) + LEEWAY_SECONDS - 3),  # clocks differ
        lambda: token(exp=int(time.time()) - LEEWAY_SECONDS + 3),
    ],
)
def test_a_token_of_an_allowlisted_issuer_is_accepted(configured: ServeSettings, make: Callable[[], str]) -> None:
    assert check(Authenticator(configured), f"Bearer {make()}") in (ISSUER, PEM_ISSUER)


def _token_without(name: str) -> str:
    return jwt.encode({key: value for key, value in claims().items() if key != name}, EC, "ES384", {"kid": "ec"})


HUGE = base64.urlsafe_b64encode(f'{{"iss": "{ISSUER}", "exp": {"9" * 5000}}}'.encode()).decode().rstrip("=")
REFUSED: dict[str, Callable[[], str]] = {
    "alg none": lambda: f"{segment({'alg': 'none', 'typ': 'JWT', 'kid': 'ec'})}.{segment(claims())}.",
    "alg None": lambda: f"{segment({'alg': 'None', 'typ': 'JWT', 'kid': 'ec'})}.{segment(claims())}.",
    "no alg": lambda: f"{segment({'typ': 'JWT', 'kid': 'ec'})}.{segment(claims())}.AAAA",
    "HMAC": lambda: hmac_token("a secret of sufficient length for any rule that there is in libraries"),
    "HMAC with the public key": lambda: hmac_token(pem(EC)),
    "HMAC with the JWK": lambda: hmac_token(json.dumps(jwk(EC, "ec"))),
    "RS256": lambda: token(RSA, "RS256", "rsa"),
    "RS256 of a set": lambda: token(RSA, "RS256", "rs256"),
    "PS384": lambda: token(RSA, "PS384", "rsa"),
    "key for encryption": lambda: token(RSA, "RS384", "for encryption"),
    "wrong key": lambda: token(STRANGER),
    "another key of the issuer": lambda: token(RSA, "RS384", "ec"),
    "another issuer's key": lambda: token(EC, kid=None, iss=PEM_ISSUER),
    "unknown kid": lambda: token(kid="x"),
    "no kid": lambda: token(kid=None),
    "a jku": lambda: jwt.encode(claims(), STRANGER, "ES384", {"kid": "x", "jku": "https://evil.example/keys"}),
    "a jwk": lambda: jwt.encode(claims(), STRANGER, "ES384", {"kid": "ec", "jwk": jwk(STRANGER, "ec")}),
    "typ": lambda: token(typ="at+jwt"),
    "no typ": lambda: token(typ=None),
    "crit": lambda: jwt.encode(claims(), EC, "ES384", {"kid": "ec", "crit": ["x"], "x": 1}),
    "wrong audience": lambda: token(aud="https://other.example.org/cds-services/triage"),
    "audience of discovery": lambda: token(aud=PUBLIC + "/cds-services"),
    "audience with a slash": lambda: token(aud=AUDIENCE + "/"),
    "audience with a query": lambda: token(aud=AUDIENCE + "?a"),
    "audience in capitals": lambda: token(aud=AUDIENCE.upper()),
    "several audiences": lambda: token(aud=[AUDIENCE, "https://other.example.org"]),
    "empty audiences": lambda: token(aud=[]),
    "expired": lambda: token(exp=int(time.time()) - LEEWAY_SECONDS - 1),
    "not yet valid": lambda: token(nbf=int(time.time()) + 60),
    "of a year ago": lambda: token(iat=int(time.time()) - 365 * 86_400),
    "of the future": lambda: token(iat=int(time.time()) + 60),
    "too long a life": lambda: token(exp=int(time.time()) + LONGEST_LIFE_SECONDS + 60),
    "exp infinite": lambda: token(exp=float("inf")),
    "exp no number": lambda: token(exp="never"),
    "unknown issuer": lambda: token(iss="https://evil.example/"),
    "issuer almost": lambda: token(iss=ISSUER.rstrip("/")),
    **{f"no {name}": partial(_token_without, name) for name in ("iss", "aud", "exp", "iat", "jti")},
    "empty jti": lambda: token(jti=""),
    "long jti": lambda: token(jti="x" * 257),
    "payload changed": lambda: tampered(exp=int(time.time()) + 600),
    "issuer changed": lambda: tampered(iss=PEM_ISSUER),
    "header changed": lambda: ".".join([segment({"alg": "ES384", "typ": "JWT", "kid": "ec"}), *token().split(".")[1:]]),
    "signature changed": lambda: token()[:-8] + "AAAAAAAA",
    "signature empty": lambda: token().rsplit(".", 1)[0] + ".",
    "signature zero": lambda: token().rsplit(".", 1)[0] + "." + "A" * 128,
    "deeply nested": lambda: f"{base64.urlsafe_b64encode(b'[' * 6000).decode().rstrip('=')}.e30.",
    "huge number": lambda: f"{segment({'alg': 'ES384', 'typ': 'JWT', 'kid': 'ec'})}.{HUGE}.AAAA",
    "no JSON": lambda: "a.b.c",
    "not text": lambda: "\xff.\xfe.\xfd",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_token_is_refused_without_a_reason(
    configured: ServeSettings, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    caplog.set_level(logging.DEBUG)
    given_token = REFUSED[case]()
    with pytest.raises(Unauthorized) as caught:
        check(Authenticator(configured), f"Bearer {given_token}")
    assert str(caught.value) == "unauthorized"
    assert caught.value.__context__ is None or caught.value.__suppress_context__  # no traceback tells more
    for part in filter(None, given_token.split(".")):
        assert len(part) < 2 or part not in caplog.text


def test_a_token_is_used_once(configured: ServeSettings) -> None:
    authenticator = Authenticator(configured)
    first, second = token(), token()
    assert check(authenticator, f"Bearer {first}") == ISSUER
    for _ in range(2):
        with pytest.raises(Unauthorized):
            check(authenticator, f"Bearer {first}")
    assert check(authenticator, f"Bearer {second}") == ISSUER


def test_the_jti_counts_whatever_else_is_in_the_token(configured: ServeSettings) -> None:
    authenticator = Authenticator(configured)
    assert check(authenticator, f"Bearer {token(jti='1')}") == ISSUER
    with pytest.raises(Unauthorized):
        check(authenticator, f"Bearer {token(RSA, 'RS384', 'rsa', jti='1', tenant='x')}")
    # an issuer's identifiers are its own
    assert check(authenticator, f"Bearer {token(RSA, 'RS384', iss=PEM_ISSUER, jti='1')}") == PEM_ISSUER


def test_a_refused_token_does_not_use_up_its_jti(configured: ServeSettings) -> None:
    authenticator = Authenticator(configured)
    with pytest.raises(Unauthorized):
        check(authenticator, f"Bearer {token(STRANGER, jti='1')}")
    with pytest.raises(Unauthorized):
        check(authenticator, f"Bearer {token(jti='1')}", audience=PUBLIC + "/cds-services/other")
    assert check(authenticator, f"Bearer {token(jti='1')}") == ISSUER


def test_a_replay_is_refused_after_a_restart(configured: ServeSettings, tmp_path: Path) -> None:
    given_token = token()
    with AuditLog(tmp_path / "audit.sqlite", 30) as audit:
        assert check(Authenticator(configured, audit), f"Bearer {given_token}") == ISSUER
    with AuditLog(tmp_path / "audit.sqlite", 30) as audit:
        authenticator = Authenticator(configured, audit)
        with pytest.raises(Unauthorized):
            check(authenticator, f"Bearer {given_token}")
        assert check(authenticator, f"Bearer {token()}") == ISSUER


def test_used_tokens_are_forgotten_only_when_they_have_expired(
    configured: ServeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = Authenticator(configured)
    start = time.time()
    short, long = token(exp=int(start) + 100), token(exp=int(start) + 900)
    for given_token in (short, long):
        check(authenticator, f"Bearer {given_token}")
    used: Any = authenticator._used
    assert len(used._expires) == 2
    monkeypatch.setattr(time, "time", lambda: start + 500)
    asyncio.run(used.use_once("another", int(start) + 1000))
    assert len(used._expires) == 2  # `long` and `another`
    with pytest.raises(Unauthorized):
        check(authenticator, f"Bearer {long}")


def test_where_a_replay_cannot_be_told_nobody_is_let_in(configured: ServeSettings) -> None:
    class Broken:
        async def use_once(self, key: str, expires: int) -> bool:
            raise AuditUnavailable("x")

    broken: Any = Broken()
    authenticator = Authenticator(configured, broken)
    with pytest.raises(AuditUnavailable):
        check(authenticator, f"Bearer {token()}")


@pytest.fixture(scope="module")
def authenticator(configured: ServeSettings) -> Authenticator:
    return Authenticator(configured)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers())
HEADERS = st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jku"]), VALUES | st.just("ES384"))
CLAIMS = st.dictionaries(st.sampled_from(["iss", "aud", "exp", "iat", "jti", "nbf", "sub"]), VALUES | st.just(ISSUER))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.builds(lambda head, own, tail: f"{segment(head)}.{segment(own)}.{tail}", HEADERS, CLAIMS, st.text("Aa-_=")))
def test_whatever_a_token_holds_it_is_refused_in_one_way(authenticator: Authenticator, made: str) -> None:
    with pytest.raises(Unauthorized):
        check(authenticator, f"Bearer {made}")


@settings(max_examples=100, deadline=None)
@given(changes=CLAIMS)
def test_whatever_a_signed_token_claims_only_right_claims_pass(
    authenticator: Authenticator, changes: dict[str, Any]
) -> None:
    own = {**claims(), **changes}
    given_token = jwt.api_jws.encode(json.dumps(own).encode(), EC, "ES384", {"kid": "ec", "typ": "JWT"})
    try:
        assert check(authenticator, f"Bearer {given_token}") == ISSUER
    except Unauthorized:
        return
    assert own["iss"] == ISSUER and own["aud"] in (AUDIENCE, [AUDIENCE]) and own["jti"]
    assert time.time() - 20 < float(own["exp"]) < time.time() + LONGEST_LIFE_SECONDS + 20


# ---- Files


@dataclass
class Files:
    folder: Path

    def issuers(self, keys: str, toml: str = '[issuers]\n"https://a" = "keys"') -> ServeSettings:
        (self.folder / "keys").write_text(keys)
        (self.folder / "issuers.toml").write_text(toml)
        return ServeSettings(jwt_issuers=self.folder / "issuers.toml", public_url=PUBLIC)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{}", "neither a PEM public key nor a JWK Set"),
        ("no json", "neither a PEM public key nor a JWK Set"),
        ("[" * 100_000, "neither a PEM public key nor a JWK Set"),
        ('{"keys": [1]}', "neither a PEM public key nor a JWK Set"),
        ('{"keys": []}', "expected keys for RS384 or ES384"),
        (json.dumps({"keys": [{"kty": "oct", "kid": "a", "k": "AAAA"}]}), "contains a secret key"),
        (json.dumps({"keys": [jwk(EC, "a"), {"kty": "oct", "alg": "HS384", "k": "AAAA"}]}), "contains a secret key"),
        (json.dumps({"keys": [jwk(EC, "a", d="AAAA")]}), "contains a secret key"),
        (json.dumps({"keys": [jwk(EC, "a"), jwk(RSA, "a")]}), "each with its own kid"),
        (json.dumps({"keys": [{k: v for k, v in jwk(EC, "a").items() if k != "kid"}]}), "whose keys have a kid"),
        (json.dumps({"keys": [jwk(EC, "a", x="AAAA")]}), "cannot be read"),
        (json.dumps({"keys": [jwk(rsa.generate_private_key(65537, 1024), "a")]}), "at least 2048 bits"),
        (pem(rsa.generate_private_key(65537, 1024)), "at least 2048 bits"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "P-384"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "P-384"),
        (private_pem(EC), "is not a PEM public key"),
        ("-----BEGIN PUBLIC KEY-----\nx\n", "is not a PEM public key"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_at_start(files: Files, keys: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Authenticator(files.issuers(keys))
    assert "AAAA" not in str(caught.value) and "BEGIN" not in str(caught.value)


@pytest.mark.parametrize("toml", ["", "[issuers]", "issuers = 3", "[issuers]\na = 3", "[issuers", "[other]\na = 'b'"])
def test_a_file_of_issuers_of_another_form_is_refused(files: Files, toml: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a TOML table \[issuers\]"):
        Authenticator(files.issuers("{}", toml))


def test_a_missing_file_is_named(files: Files) -> None:
    wrong = files.issuers("{}", '[issuers]\n"https://a" = "nowhere.json"')
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.json: No such file"):
        Authenticator(wrong)
    with pytest.raises(ConfigError, match=r"cannot read .*none: No such file"):
        Authenticator(ServeSettings(tokens=files.folder / "none"))
    (files.folder / "bytes").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        Authenticator(ServeSettings(tokens=files.folder / "bytes"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "contains no tokens"),
        ("# only\n", "contains no tokens"),
        ("a:SECRET", "line 1: expected NAME:SHA256"),
        (f"a:{'0' * 64}\n{TOKEN}\n", "line 2: expected NAME:SHA256"),
        (f"a:{'0' * 64}\na:{'1' * 64}\n", "line 2: 'a' occurs twice"),
        (f":{'0' * 64}", "line 1"),
    ],
)
def test_a_file_of_tokens_of_another_form_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Authenticator(ServeSettings(tokens=tmp_path / "tokens"))
    assert "SECRET" not in str(caught.value) and TOKEN not in str(caught.value)


def test_web_tokens_need_a_public_url(files: Files) -> None:
    own = files.issuers(json.dumps({"keys": [jwk(EC, "a")]}))
    with pytest.raises(ConfigError, match="give the public URL that callers use"):
        Authenticator(ServeSettings(jwt_issuers=own.jwt_issuers))

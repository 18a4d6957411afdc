"""Tokens and keys: whatever is not wholly right is refused, and no message tells a secret."""

from __future__ import annotations

import base64
import hmac
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from solocron.clock import SystemClock
from solocron.errors import ConfigError
from solocron.web.auth import (
    ANYBODY,
    Authenticator,
    Forbidden,
    Unauthenticated,
    listening_token,
)

SECRET = "0123456789abcdef" * 4
FAR = 4_000_000_000
GOOD: dict[str, Any] = {"aud": "solocron", "exp": FAR, "stores": ["1"], "scope": "admin"}


def part(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(claims: str, header: str = '{"alg":"HS256"}', key: str = SECRET) -> str:
    """A token of that very text, however odd."""
    text = part(header.encode()) + b"." + part(claims.encode())
    return (text + b"." + part(hmac.digest(key.encode(), text, "sha256"))).decode()


def claims(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


@pytest.fixture(scope="module")
def authenticator() -> Authenticator:
    return Authenticator(clock=SystemClock(), secret=SECRET)


def test_a_good_token_is_let_in(authenticator: Authenticator) -> None:
    principal = authenticator.authenticate(signed(claims()))
    assert set(principal.stores) == {"1"} and principal.may("jobs:run")
    listed = authenticator.authenticate(signed(claims(scope=["notifications:read"], exp=FAR + 0.5)))
    assert listed.may("notifications:read") and not listed.may("stores:write")
    assert authenticator.authenticate(signed(claims(stores="*"))).stores is None
    assert set(authenticator.authenticate(signed(claims(stores=["*"]))).stores) == {"*"}


def test_a_token_that_only_listens_ends_with_the_one_it_is_made_for(
    authenticator: Authenticator,
) -> None:
    clock = SystemClock()
    soon = int(clock.now_ms() / 1000) + 20
    for ends, least_s, most_s in ((FAR, 60, 65), (soon, 15, 30)):
        principal = authenticator.authenticate(signed(claims(stores="*", exp=ends)))
        made = authenticator.authenticate(listening_token(authenticator, principal))
        assert made.scopes == ("notifications:read",) and made.stores is None
        assert made.token == principal.token  # it is counted as that one
        left_s = authenticator.seconds_left(made)
        assert left_s is not None and least_s <= left_s <= most_s
    assert listening_token(Authenticator(clock=clock), ANYBODY) == ""
    for weak in ({"stores": ["1"]}, {"stores": "*", "scope": "jobs:run"}):
        with pytest.raises(Forbidden):
            listening_token(authenticator, authenticator.authenticate(signed(claims(**weak))))


@pytest.mark.parametrize("claim", ["", "0" * 15, "g" * 16, 7, None, ["0" * 16]])
def test_a_token_is_counted_as_itself_unless_another_is_named(
    authenticator: Authenticator, claim: object
) -> None:
    tokens = [signed(claims(counted_as=claim, sub=sub)) for sub in ("a", "b")]
    assert len({authenticator.authenticate(each).token for each in tokens}) == 2


@pytest.mark.parametrize(
    "text",
    [
        claims(exp=float("inf")), claims(exp=float("-inf")), claims(exp=float("nan")),
        claims(exp=10**400), claims(exp=1e300), claims(exp=str(FAR)), claims(exp=None),
        claims(exp=[FAR]), claims(exp=True), claims(nbf=float("nan")), claims(nbf=10**400),
        claims(nbf="0"), claims(exp=-1), claims(nbf=FAR),
        claims(stores=[1]), claims(stores=[None]), claims(stores=[["1"]]), claims(stores="1"),
        claims(stores={"1": 1}), claims(stores=None), claims(stores=["x"] * 10_001),
        claims(scope=[1]), claims(scope={"admin": 1}), claims(scope=1), claims(scope=None),
        claims(aud="other"), claims(aud=None), claims(aud=1), claims(sub=1),
        "[]", "1", "null", "x", "[" * 20_000, '{"exp": ' + "9" * 6_000 + "}",
    ],
)  # fmt: skip
def test_odd_claims_are_refused(authenticator: Authenticator, text: str) -> None:
    token = signed(text)
    with pytest.raises(Unauthenticated) as caught:
        authenticator.authenticate(token)
    assert not any(each in str(caught.value) for each in (*token.split("."), SECRET))


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (signed(claims(), key="f" * 64), "another secret or key than this server's: get another"),
        (signed(claims(exp=1)), "it has expired: get another"),
        (signed(claims(nbf=FAR - 1)), "not valid yet (nbf): use it later"),
        (signed(claims(aud="theirs")), "for others: its aud must have 'solocron' (SOLOCRON_AUTH_A"),
        (signed('{"aud": "solocron"}'), "lacks exp or aud"),
        (signed('{"exp": 4000000000}'), "lacks exp or aud"),
        (signed(claims(), '{"alg":"HS512"}'), "another algorithm"),
        (signed(claims(sub=1)), "not as the standard"),
        (signed(claims())[:-1], "no JSON Web Token"),
        (signed(claims()).partition(".")[0], "no JSON Web Token: send all of what `solocron tok"),
        ("Bearer x", "no JSON Web Token"),
        ("[", "no JSON Web Token"),
    ],
)
def test_why_a_token_is_refused_is_said_with_a_remedy(
    authenticator: Authenticator, token: str, why: str
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        authenticator.authenticate(token)
    told = str(caught.value)
    assert told.startswith("the token is refused: ") and why in told
    assert token not in told and len(told) <= 120  # it fits a close frame


@pytest.mark.parametrize(
    "header",
    ['{"alg":"none"}', '{"alg":"HS512"}', '{"alg":"RS256"}', '{"alg":"HS256","crit":["x"],"x":1}',
     '{"alg":1}', "{}", "[]", "x", '{"alg":"HS256","b64":false,"crit":["b64"]}', "[" * 20_000],
)  # fmt: skip
def test_odd_headers_are_refused(authenticator: Authenticator, header: str) -> None:
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(signed(claims(), header))


@given(st.one_of(st.text(), st.text(alphabet="abcXYZ019_-.=", max_size=80)))
def test_any_text_is_refused_without_another_error(text: str) -> None:
    with pytest.raises(Unauthenticated):
        Authenticator(clock=SystemClock(), secret=SECRET).authenticate(text)


@pytest.mark.parametrize("token", ["\ud800.a.b", "ünï.cö.dé", "\x00", ".", "..", "a.b.c.d"])
def test_text_that_is_no_token_is_refused(authenticator: Authenticator, token: str) -> None:
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(token)


def test_a_token_of_no_limit_is_refused_unread(authenticator: Authenticator) -> None:
    with pytest.raises(Unauthenticated, match="over 65536"):
        authenticator.authenticate("x" * 70_000)


# -- JWKS ------------------------------------------------------------------------------------

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    is_rsa = isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey)
    kind = jwt.algorithms.RSAAlgorithm if is_rsa else jwt.algorithms.ECAlgorithm
    found: dict[str, Any] = json.loads(kind.to_jwk(key))
    found.pop("key_ops", None)
    return {**found, **more}


def load(tmp_path: Path, *keys: Any, text: str | None = None) -> Authenticator:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": keys}) if text is None else text)
    return Authenticator(clock=SystemClock(), jwks_file=path)


def test_keys_of_no_use_here_are_left_out(tmp_path: Path) -> None:
    """A provider's file also has keys for encryption and of other algorithms."""
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    authenticator = load(
        tmp_path,
        jwk(RSA.public_key(), kid="r", use="sig"),
        jwk(EC.public_key(), kid="e"),
        jwk(RSA.public_key(), kid="enc", use="enc"),
        jwk(RSA.public_key(), kid="ps", alg="PS256"),
        jwk(RSA.public_key(), kid="odd", alg="RSA-OAEP"),
        jwk(small.public_key(), kid="small"),
        {"kty": "new", "kid": "n"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        jwk(RSA.public_key()),
        jwk(RSA.public_key(), kid=7),
    )
    for key, kid, algorithm in ((RSA, "r", "RS256"), (EC, "e", "ES256")):
        token = jwt.encode(GOOD, key, algorithm=algorithm, headers={"kid": kid})
        assert set(authenticator.authenticate(token).stores) == {"1"}
    for kid in ("enc", "ps", "odd", "small", "broken", "n", "7", "e"):
        token = jwt.encode(GOOD, RSA, algorithm="RS256", headers={"kid": kid})
        with pytest.raises(Unauthenticated):
            authenticator.authenticate(token)
    for bare in (jwt.encode(GOOD, RSA, algorithm="RS256"), signed(claims())):
        with pytest.raises(Unauthenticated, match="kid"):
            authenticator.authenticate(bare)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([jwk(RSA, kid="p")], "'p' is a secret one"),
        ([jwk(RSA.public_key(), kid="r"), jwk(EC, kid="p")], "'p' is a secret one"),
        ([{"kty": "oct", "k": "c2VjcmV0LXZhbHVl", "kid": "o"}], "'o' is a secret one"),
        ([jwk(RSA.public_key(), kid="r"), jwk(EC.public_key(), kid="r")], "two keys"),
        ([jwk(RSA.public_key(), kid="r", use="enc")], "no key of use"),
        ([], "no key of use"),
        (["x"], "not a JWKS"),
        ([{"kid": "x", "k": "c2VjcmV0LXZhbHVl"}], "no key of use"),
    ],
)
def test_a_file_of_keys_that_cannot_be_meant_is_refused(
    tmp_path: Path, keys: list[Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(tmp_path, *keys)
    secrets = ["c2VjcmV0LXZhbHVl", *(key[name] for key in keys for name in ("d",) if name in key)]
    assert not any(each in str(caught.value) for each in secrets)


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"keys": 1}', "[" * 50_000, '{"keys": [' + " " * 300_000 + "]}"]
)
def test_a_file_that_is_no_jwks_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="SOLOCRON_AUTH_JWKS"):
        load(tmp_path, text=text)


def test_an_endless_or_missing_file_of_keys_is_refused(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="SOLOCRON_AUTH_JWKS"):
            Authenticator(clock=SystemClock(), jwks_file=path)


def test_a_secret_and_keys_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set one"):
        Authenticator(clock=SystemClock(), secret=SECRET, jwks_file=tmp_path / "jwks.json")

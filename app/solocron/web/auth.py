"""Who may do what: JSON Web Tokens, denied unless all of it is right.

HS256 with a shared secret, or RS256 and ES256 with the public keys of a JWKS file. The algorithm
is chosen by the key, never by the token, so `none` and key confusion are refused. Every token has
an expiry and our audience; clocks may differ by 5 s.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from solocron.clock import Clock
from solocron.errors import ConfigError, SolocronError
from solocron.storage.feed import EVERY
from solocron.web.scopes import SCOPES

if TYPE_CHECKING:
    import jwt  # takes a while: only imported where there are tokens

AUDIENCE = "solocron"
MIN_SECRET = 32
MAX_TOKEN = 64 * 1024
_MAX_STORES = 10_000
_FEW_STORES = 8  # of which a tuple is as fast as a set, and 200 bytes less for each connection
_MAX_JWKS = 256 * 1024
_LEEWAY_S = 5
_LISTENING_S = 60
_MAX_TIME_S = 2**53
_NO_TOKEN = "it is no JSON Web Token: send all of what `solocron token` or the issuer gave"
_DIGEST = re.compile("[0-9a-f]{16}")
_MIN_KEY_BITS = {"RS256": 2048, "ES256": 256}


class Unauthenticated(SolocronError):
    """There is no token, or it is not one of ours. The message says which, never the token."""


class Forbidden(SolocronError):
    """The token is good but does not allow this."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `stores` is None for all of them; `scopes` are those known here; `expires_at` is
    UTC epoch s (None: never); `token` is a digest that tells tokens apart, '' where none was asked
    for."""

    subject: str
    stores: Collection[str] | None
    scopes: tuple[str, ...]
    expires_at: float | None = None
    token: str = ""

    def may(self, scope: str) -> bool:
        """Whether the token has the scope; `admin` has every one."""
        return scope in self.scopes or "admin" in self.scopes

    def sees(self, store_id: str) -> bool:
        """Whether the token is for this store; for EVERY, only if it is for all of them."""
        return self.stores is None or (store_id in self.stores and store_id != EVERY)

    def require(self, scope: str) -> None:
        """Raise Forbidden unless the token has the scope."""
        if not self.may(scope):
            raise Forbidden(f"this needs a token with scope {scope!r}")

    def require_store(self, store_id: str) -> None:
        """Raise Forbidden unless the token is for this store."""
        if not self.sees(store_id):
            raise Forbidden(f"this token is not for store {store_id[:64]!r}")


ANYBODY = Principal("anybody", None, SCOPES)


class Authenticator:
    """Checks tokens. Without `secret` and `jwks_file` everybody is let in (loopback only).

    Raises ConfigError for both, a secret under 32 bytes or a JWKS file it cannot use.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        secret: str | None = None,
        jwks_file: Path | None = None,
        audience: str = AUDIENCE,
    ) -> None:
        if secret is not None:
            check_secret(secret)
        if secret is not None and jwks_file is not None:
            raise ConfigError("SOLOCRON_AUTH_SECRET and SOLOCRON_AUTH_JWKS are set: set one")
        self._clock = clock
        self._audience = audience
        self._secret = secret
        self._keys = _load_jwks(jwks_file) if jwks_file else None
        if not self.is_open:
            import jwt  # noqa: F401  # not with the first token: it takes a while

    @property
    def is_open(self) -> bool:
        """Whether everybody is let in."""
        return self._secret is None and self._keys is None

    @property
    def signs(self) -> bool:
        """Whether it has what tokens are signed with."""
        return self._secret is not None

    def authenticate(self, token: str | None) -> Principal:
        """The principal of a token. Raises Unauthenticated."""
        if self.is_open:
            return ANYBODY
        if not token:
            raise Unauthenticated("no token: send Authorization: Bearer <token>")
        if len(token) > MAX_TOKEN:
            raise Unauthenticated(f"the token has over {MAX_TOKEN} characters")
        import jwt

        try:
            key, algorithm = self._key_of(token)
            claims = jwt.decode(
                token, key, algorithms=[algorithm], audience=self._audience,
                options={"require": ["exp", "aud"], "verify_exp": False, "verify_nbf": False,
                         "verify_iat": False},
            )  # fmt: skip
        except jwt.PyJWTError as error:
            raise _refused(_why(error, self._audience)) from None
        except (RecursionError, ValueError):  # deep JSON, huge numbers, no UTF-8
            raise _refused(_NO_TOKEN) from None
        return self._principal(claims, _digest(token))

    def _key_of(self, token: str) -> tuple[Any, str]:
        if self._keys is None:
            return self._secret, "HS256"
        import jwt

        key_id = jwt.get_unverified_header(token).get("kid")
        if not isinstance(key_id, str) or key_id not in self._keys:
            raise _refused(
                "its kid is not in SOLOCRON_AUTH_JWKS: get one from the issuer of those keys"
            )
        key = self._keys[key_id]
        return key.key, str(key.algorithm_name)

    def _principal(self, claims: Mapping[str, Any], digest: str) -> Principal:
        now = self._clock.now_ms() / 1000
        expires_at, not_before = claims["exp"], claims.get("nbf", 0)
        if not _is_number(expires_at) or not _is_number(not_before):
            raise _refused("exp and nbf must be times in s")
        if now > expires_at + _LEEWAY_S:
            raise _refused("it has expired: get another one")
        if now < not_before - _LEEWAY_S:
            raise _refused(
                "it is not valid yet (nbf): use it later, or set the issuer's clock or this one"
            )
        return Principal(
            str(claims.get("sub", ""))[:200], _stores(claims), _scopes(claims), float(expires_at),
            self._counted_as(claims) or digest,
        )  # fmt: skip

    def _counted_as(self, claims: Mapping[str, Any]) -> str | None:
        """The digest of the token from which this server's secret made this one; None: of none."""
        named = claims.get("counted_as") if self.signs else None
        return named if isinstance(named, str) and _DIGEST.fullmatch(named) else None

    def seconds_left(self, principal: Principal) -> float | None:
        """How long the token is still good for, in s (at most 7 days); None: for ever."""
        if principal.expires_at is None:
            return None
        left = principal.expires_at + _LEEWAY_S - self._clock.now_ms() / 1000
        return max(0.0, min(left, 7 * 24 * 3600.0))

    def issue(
        self, *, subject: str, stores: list[str] | None, scopes: list[str], lifetime_s: int,
        counted_as: str = "",
    ) -> str:  # fmt: skip
        """A new HS256 token; its connections are counted with those of the token whose digest is
        `counted_as`, if any. Raises ConfigError without a secret, with an unknown scope, or where
        tokens are checked by a JWKS file, which would refuse it."""
        if self._keys is not None:
            raise ConfigError("SOLOCRON_AUTH_JWKS is set: get tokens from the issuer of its keys")
        if self._secret is None:
            raise ConfigError("no secret to sign with: set SOLOCRON_AUTH_SECRET")
        unknown = [each for each in scopes if each not in SCOPES]
        if unknown:
            raise ConfigError(f"unknown scope {unknown[0]!r}: use {', '.join(SCOPES)}")
        import jwt

        now = int(self._clock.now_ms() / 1000)
        claims = {
            "sub": subject, "aud": self._audience, "iat": now, "exp": now + lifetime_s,
            "stores": "*" if stores is None else stores, "scope": " ".join(scopes),
        }  # fmt: skip
        if counted_as:
            claims["counted_as"] = counted_as
        return jwt.encode(claims, self._secret, algorithm="HS256")


def listening_token(authenticator: Authenticator, principal: Principal) -> str:
    """A token that is good for a minute at most, and only for the notifications of all stores; ''
    where none can be made: everybody is let in, or tokens come from the issuer of a JWKS file."""
    principal.require("notifications:read")
    principal.require_store(EVERY)
    if not authenticator.signs:
        return ""
    left_s = authenticator.seconds_left(principal)
    lifetime_s = _LISTENING_S if left_s is None else int(min(_LISTENING_S, left_s))
    return authenticator.issue(
        subject=principal.subject, stores=None, scopes=["notifications:read"],
        lifetime_s=lifetime_s, counted_as=principal.token,
    )  # fmt: skip


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"the token is refused: {why}")


def _why(error: jwt.PyJWTError, audience: str) -> str:
    """In words, and what to do; short, for a close frame's reason holds 123 bytes."""
    import jwt

    if isinstance(error, jwt.InvalidSignatureError):
        return "it is signed with another secret or key than this server's: get another one"
    if isinstance(error, jwt.InvalidAudienceError):
        return f"it is for others: its aud must have {audience[:20]!r} (SOLOCRON_AUTH_AUDIENCE)"
    if isinstance(error, jwt.MissingRequiredClaimError):
        return "it lacks exp or aud: get one that has both"
    if isinstance(error, jwt.InvalidAlgorithmError):
        return "it is signed by another algorithm than this server's key is for: get another one"
    if isinstance(error, jwt.DecodeError):
        return _NO_TOKEN
    return "its header or a claim is not as the standard (RFC 7519) has it"


def check_secret(secret: str) -> None:
    """Raise ConfigError for a secret that is too short to sign with."""
    if len(secret.encode()) < MIN_SECRET:
        raise ConfigError(
            f"SOLOCRON_AUTH_SECRET has {len(secret.encode())} bytes: give at least "
            f"{MIN_SECRET}, such as from `openssl rand -hex 32`"
        )


def _digest(token: str) -> str:
    """Of what is signed: a signature can be written in several ways."""
    return hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()[:16]


def _is_number(value: object) -> bool:
    """Whether JSON's value is one that a time can have: Python's JSON knows NaN and Infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _MAX_TIME_S  # which NaN is not


def _stores(claims: Mapping[str, Any]) -> Collection[str] | None:
    stores = claims.get("stores", [])
    if stores == "*":
        return None
    if not _is_strings(stores) or len(stores) > _MAX_STORES:
        raise _refused(f"stores must be '*' or a list of up to {_MAX_STORES} strings")
    return tuple(stores) if len(stores) <= _FEW_STORES else frozenset(stores)


def _scopes(claims: Mapping[str, Any]) -> tuple[str, ...]:
    scope = claims.get("scope", "")
    given = scope.split() if isinstance(scope, str) else scope
    if not _is_strings(given):
        raise _refused("scope must be a string or a list of strings")
    return tuple(each for each in SCOPES if each in given)


def _is_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _load_jwks(path: Path) -> dict[str, jwt.PyJWK]:
    """The file's usable keys by kid. Others (for encryption, of other algorithms) are left out, as
    the standard asks; secret ones are refused: they do not belong in a file of public keys."""
    wrong = f"SOLOCRON_AUTH_JWKS {path}: "
    remedy = 'give a JSON file {"keys": [...]} of RS256 or ES256 public keys, each with a kid'
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_JWKS + 1)
        if len(text) > _MAX_JWKS:
            raise ConfigError(f"{wrong}over {_MAX_JWKS} bytes; {remedy}")
        entries = json.loads(text)["keys"]
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise TypeError("keys is not a list of objects")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a JWKS"
        raise ConfigError(f"{wrong}{reason}; {remedy}") from None
    keys: dict[str, jwt.PyJWK] = {}
    for entry in entries:
        kid = entry.get("kid")
        if entry.get("kty") == "oct" or "d" in entry:
            raise ConfigError(f"{wrong}the key {_shown(kid)} is a secret one; {remedy}")
        key = _usable(entry)
        if key is None or not isinstance(kid, str):
            continue
        if kid in keys:
            raise ConfigError(f"{wrong}two keys have the kid {_shown(kid)}; {remedy}")
        keys[kid] = key
    if not keys:
        raise ConfigError(f"{wrong}no key of use; {remedy}")
    return keys


def _usable(entry: Mapping[str, Any]) -> jwt.PyJWK | None:
    if entry.get("use", "sig") != "sig":
        return None
    import jwt

    try:
        key = jwt.PyJWK(dict(entry))
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):  # their texts quote the key
        return None
    if key.algorithm_name not in ("RS256", "ES256"):
        return None
    return key if getattr(key.key, "key_size", 0) >= _MIN_KEY_BITS[key.algorithm_name] else None


def _shown(kid: object) -> str:
    return repr(str(kid)[:64])

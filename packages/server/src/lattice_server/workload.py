"""Enrollment by workload identity: a JWT of a trusted issuer instead of a secret of this server's.

A Kubernetes service account's token, a CI job's, or any other OpenID Connect ID token. Which
issuers, audiences and claims are taken, and what for, is a *trust*: a row of ``tokens`` without a
text (:mod:`trusts`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from sqlalchemy import select

from lattice_server.clock import now_ms
from lattice_server.jwks import DISCOVERY, IssuerUnavailableError
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.records import TokenRecord
from lattice_server.terms import matches

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

log = logging.getLogger("lattice.workload")

# By key type, and nothing symmetric: RFC 8725, sections 3.1 and 3.2. EdDSA is RFC 8037.
ALGORITHMS: Final[Mapping[str, frozenset[str]]] = {
    "RSA": frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    "EC": frozenset({"ES256", "ES384", "ES512"}),
    "OKP": frozenset({"EdDSA"}),
}
SMALLEST_RSA_BITS = 2048
LEEWAY_SECONDS = 30
MAX_LENGTH = 16 * 1024
LONGEST_SUBJECT = 512


def looks_like_jwt(text: str) -> bool:
    """Whether a bearer may be a JWT: three parts (RFC 7515, section 7.1)."""
    return text.startswith("eyJ") and text.count(".") == 2 and len(text) <= MAX_LENGTH


async def recognise(
    control: ControlPlane, text: str, workspace: str | None
) -> tuple[TokenRecord, str]:
    """The trust that a JWT falls under, and its subject.

    Args:
        control: the control plane.
        text: the bearer.
        workspace: which of several trusts is meant.

    Raises:
        ApiProblem: ``invalid_token``, ``invalid_request`` when it falls under trusts of several
            workspaces, ``issuer_unavailable``.
    """
    try:
        header = jwt.get_unverified_header(text)
        # Only to find out whose it claims to be. Nothing of it counts until it is verified.
        claimed = jwt.decode(text, options={"verify_signature": False}).get("iss")
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise _refused() from None
    trusts = [t for t in await _trusts(control) if (t.trust or {}).get("issuer") == claimed]
    if not trusts:
        raise _refused()
    verified: dict[tuple[str, str], dict[str, Any]] = {}
    reasons: list[str] = []
    fitting: list[TokenRecord] = []
    for trust in trusts:
        told = trust.trust or {}
        place = key_source(told), str(told["audience"])
        try:
            if place not in verified:
                verified[place] = await _verify(control, text, header, told)
            reason = mismatch(verified[place], told)
        except jwt.PyJWTError as error:
            reason = _reason(error)
        except IssuerUnavailableError as error:
            raise ApiProblem(
                "issuer_unavailable",
                f"the keys of the token's issuer cannot be read ({error}); try again later",
                headers={"Retry-After": "5"},
            ) from None
        if reason is None:
            fitting.append(trust)
        else:
            reasons.append(reason)
    if not fitting:
        log.info("a JWT of a trusted issuer was refused: %s", "; ".join(sorted(set(reasons))))
        raise _refused(reasons[0])
    claims = verified[key_source(fitting[0].trust or {}), str((fitting[0].trust or {})["audience"])]
    return _choose(fitting, workspace), str(claims.get("sub", ""))[:LONGEST_SUBJECT]


def key_source(trust: Mapping[str, Any]) -> str:
    """Where the keys of a trust's issuer are."""
    return str(trust.get("jwksUri") or f"{trust['issuer']}{DISCOVERY}")


def mismatch(claims: Mapping[str, Any], trust: Mapping[str, Any]) -> str | None:
    """Why verified claims do not fall under a trust; ``None`` when they do. Pure but for the clock.

    A claim is found by its name, or by a path with slashes where it is inside of others. Where it
    has several values, one that fits is enough.
    """
    age = trust.get("maxAge")
    if age is not None:
        issued = claims.get("iat")
        if (
            not isinstance(issued, int | float)
            or time.time() - issued > age / 1000 + LEEWAY_SECONDS
        ):
            return "it was issued too long ago"
    for name, pattern in trust["claims"].items():
        if not any(matches(value, pattern) for value in _values(claims, name)):
            return f"its claim {name} does not fit"
    return None


def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    found: Any = claims.get(name)
    if found is None:
        found = claims
        rest = name
        # kubernetes.io/serviceaccount/name: names have dots in them, and some have slashes.
        while rest and isinstance(found, Mapping):
            part = next((p for p in _prefixes(rest) if p in found), None)
            if part is None:
                return []
            found, rest = found[part], rest[len(part) + 1 :]
        if rest:
            return []
    values = found if isinstance(found, list) else [found]
    return [_text(value) for value in values if isinstance(value, str | int | bool)]


def _prefixes(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


async def _verify(
    control: ControlPlane, text: str, header: Mapping[str, Any], trust: Mapping[str, Any]
) -> dict[str, Any]:
    """The claims of a JWT whose signature, issuer, audience and times are good.

    Raises:
        jwt.PyJWTError: they are not.
        IssuerUnavailableError: the keys cannot be had.
    """
    algorithm, key_id = header.get("alg"), header.get("kid")
    keys = await control.key_sets.find(
        key_source(trust), key_id if isinstance(key_id, str) else None
    )
    failure: jwt.PyJWTError = jwt.InvalidSignatureError("no key of its issuer fits")
    for data in keys:
        if algorithm not in ALGORITHMS.get(str(data.get("kty")), ()):
            continue
        if data.get("alg") not in (None, algorithm):
            continue
        try:
            key = jwt.PyJWK(data, algorithm=str(algorithm))
            if isinstance(key.key, RSAPublicKey) and key.key.key_size < SMALLEST_RSA_BITS:
                continue
            return dict(
                jwt.decode(
                    text,
                    key,
                    algorithms=[str(algorithm)],
                    audience=str(trust["audience"]),
                    issuer=str(trust["issuer"]),
                    leeway=LEEWAY_SECONDS,
                    options={"require": ["exp", "iss", "aud", "sub"]},
                )
            )
        except (jwt.InvalidSignatureError, ValueError, TypeError):
            continue  # another key, or one that is broken
        except jwt.PyJWTError as error:
            failure = error
    raise failure


async def _trusts(control: ControlPlane) -> list[TokenRecord]:
    tokens = schema.tokens.c
    async with control.database.read() as connection:
        rows = await connection.execute(
            select(schema.tokens)
            .where(
                tokens.kind == "trust",
                tokens.revoked_at.is_(None),
                tokens.expires_at.is_(None) | (tokens.expires_at > now_ms()),
            )
            .order_by(tokens.n)
        )
        return [TokenRecord.of(row) for row in rows]


def _choose(fitting: list[TokenRecord], workspace: str | None) -> TokenRecord:
    """The trust of the workspace that is meant; of several in one, the one made first."""
    if workspace is not None:
        # None of it: the first, whose workspace is not the one asked for, is refused as any token.
        return next((t for t in fitting if t.workspace_id == workspace), fitting[0])
    if len({trust.workspace_id for trust in fitting}) > 1:
        raise ApiProblem(
            "invalid_request",
            "the token is trusted in several workspaces; say which with workspaceId",
            errors=[{"field": "workspaceId", "message": "needed here"}],
        )
    return fitting[0]


def _reason(error: jwt.PyJWTError) -> str | None:
    """What may be told of a refusal: nothing that depends on keys, and no content."""
    if isinstance(error, jwt.ExpiredSignatureError):
        return "it has expired"
    if isinstance(error, jwt.ImmatureSignatureError):
        return "it is not valid yet"
    if isinstance(error, jwt.InvalidAudienceError):
        return "its audience is not this server's"
    if isinstance(error, jwt.MissingRequiredClaimError):
        return "it has to have exp, iss, aud and sub"
    return "its signature is not one of its issuer's"


def _refused(reason: str | None = None) -> ApiProblem:
    detail = "this server trusts no such token"
    return ApiProblem(
        "invalid_token",
        f"{detail}: {reason}" if reason else f"{detail}; check its issuer, and that it is whole",
    )

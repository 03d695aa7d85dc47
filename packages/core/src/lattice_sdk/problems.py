"""From an HTTP answer to its JSON or to the right error. Pure; what answers is not trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from lattice_sdk import errors
from lattice_sdk.dialect import is_wrapped, wrapped_status

TOLD = 500  # characters of a server's sentence that are passed on

_BY_CODE: dict[str, tuple[type[errors.LatticeError], str]] = {
    "missing_token": (errors.AuthenticationFailed, "Pass token=…, or set LATTICE_TOKEN"),
    "invalid_token": (
        errors.AuthenticationFailed,
        "Check that the token belongs to this control plane and was copied whole",
    ),
    "token_expired": (errors.AuthenticationFailed, "Ask for a new token"),
    "token_revoked": (errors.AuthenticationFailed, "Ask for a new token"),
    "token_used_up": (errors.AuthenticationFailed, "Ask for a new token"),
    "preset_not_permitted": (
        errors.NotPermitted,
        "Use a preset that the token allows, or ask for a token that allows this one",
    ),
    "source_not_permitted": (
        errors.NotPermitted,
        "Use the token from the network it is for, or ask for one without sources",
    ),
    "agent_type_not_permitted": (
        errors.NotPermitted,
        "Pass an agent_type that the token allows, or ask for a token that allows this one",
    ),
    "ttl_not_permitted": (errors.NotPermitted, "Ask for a shorter ttl, or leave it out"),
    "delegation_not_permitted": (
        errors.NotPermitted,
        "Let an agent above delegate, end sub-agents that are done, or ask for another token",
    ),
    "workspace_mismatch": (
        errors.NotPermitted,
        "Leave workspace_id out, or use a token of that workspace",
    ),
    "unknown_workspace": (errors.NotFound, "Check the workspace's id"),
    "unknown_preset": (errors.InvalidRequest, "Use sandboxed, coordinator or isolated"),
    "invalid_ttl": (errors.InvalidRequest, "Write a duration such as 90s, 15m or 1h30m"),
    "peer_expired": (errors.IdentityExpired, "Enroll anew"),
    "address_pool_exhausted": (
        errors.AddressPoolExhausted,
        "Delete identities that are no longer used, or do what the message suggests",
    ),
    "egress_unavailable": (
        errors.EgressUnavailable,
        "Start the workspace's egress connector with `lattice egress`",
    ),
    "destination_not_permitted": (
        errors.NotPermitted,
        "Leave it out, or ask for a token that permits it (`lattice tokens create --allow`)",
    ),
    "too_many_requests": (errors.ServerError, "Wait, and check that the token is good"),
    "gateway_unavailable": (errors.GatewayUnavailable, "Check that the gateway daemon runs"),
}
_BY_STATUS: dict[int, tuple[type[errors.LatticeError], str]] = {
    401: (errors.AuthenticationFailed, "Check LATTICE_TOKEN"),
    403: (errors.NotPermitted, "Use a token that is allowed to do this"),
    404: (errors.NotFound, ""),
    410: (errors.IdentityExpired, "Enroll anew"),
}
_NOT_THE_API = "Check that LATTICE_SERVER is the URL of the control plane itself"


@dataclass(frozen=True)
class Answer:
    """What came back from one call."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The decoded body, ``None`` for an empty one.

        Raises:
            ValueError: it is not JSON.
        """
        return json.loads(self.body) if self.body.strip() else None


def read_answer(answer: Answer, what: str) -> Any:
    """The JSON of a good answer; of one in the second dialect, with its wrapping.

    Args:
        answer: the answer.
        what: the call, for the message: ``POST https://…/api/v1/agent-enroll``.

    Raises:
        LatticeError: the leaf that the answer's problem document, or else its status, asks for.
    """
    if 300 <= answer.status < 400:
        target = urlsplit(answer.headers.get("location", ""))
        where = f"{target.scheme}://{target.netloc}" if target.netloc else "another path"
        raise errors.UnexpectedAnswer(
            f"{what} was redirected to {where}; the token is not sent after a redirect",
            code="redirected",
            hint="Set LATTICE_SERVER to where the API is",
            status=answer.status,
        )
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower() or "nothing"
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        raise _not_json(answer, what, kind) from None
    if is_wrapped(body):
        status = wrapped_status(body)
        if status < 400:
            return body
        raise problem(status, "", str(body.get("msg") or ""), what, answer.headers)
    if answer.status < 400:
        if body is not None or answer.status == HTTPStatus.NO_CONTENT:
            return body
        raise _not_json(answer, what, kind)
    document = body if isinstance(body, dict) else {}
    if answer.status < 500 and not isinstance(document.get("code"), str):
        raise _not_json(answer, what, kind)
    raise problem(
        answer.status,
        str(document.get("code") or ""),
        str(document.get("detail") or document.get("title") or ""),
        what,
        answer.headers,
    )


def problem(
    status: int, code: str, detail: str, what: str, headers: Mapping[str, str]
) -> errors.LatticeError:
    """The error for a refusal."""
    default: tuple[type[errors.LatticeError], str] = (errors.InvalidRequest, "")
    if status >= 500 or status == HTTPStatus.TOO_MANY_REQUESTS:
        default = (errors.ServerError, "Try again later; the control plane's log says why")
    leaf, hint = _BY_CODE.get(code) or _BY_STATUS.get(status) or default
    reason = detail[:TOLD] or HTTPStatus(status).phrase if status in _STATUSES else detail[:TOLD]
    return leaf(
        reason or f"{what} was answered with status {status}",
        code=code or None,
        hint=hint or None,
        status=status,
        retry_after=retry_after(headers),
    )


_STATUSES = frozenset(int(status) for status in HTTPStatus)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks for (RFC 9110, 10.2.3); a date counts from ``Date``."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        return max(0.0, (until - parsedate_to_datetime(headers.get("date", ""))).total_seconds())
    except (ValueError, TypeError):
        return None


def _not_json(answer: Answer, what: str, kind: str) -> errors.LatticeError:
    if answer.status >= 500:
        # A reverse proxy answers so while the control plane behind it is down.
        return errors.ServerError(
            f"{what} was answered with status {answer.status} and {kind}",
            code="bad_gateway",
            hint="Check that the control plane runs behind its proxy",
            status=answer.status,
            retry_after=retry_after(answer.headers),
        )
    return errors.UnexpectedAnswer(
        f"{what} was answered with status {answer.status} and {kind}, "
        "which is not what the Enrollment API says",
        hint=_NOT_THE_API,
        status=answer.status,
    )

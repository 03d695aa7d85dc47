"""What can go wrong, as one tree. Each leaf has a stable ``code`` and an exit code for the CLI.

A message says what happened and why, the hint what to do now. Neither ever holds a secret.
"""

# ruff: noqa: N818 - the names are what a reader of an except clause wants to see

from __future__ import annotations

import re
from typing import ClassVar

# Lattice tokens as the control plane makes them; a server's sentence may echo one.
_TOKEN = re.compile(r"lt-[A-Za-z0-9_.-]{6,}")
# JWTs (RFC 7515): a JSON object in base64url begins with eyJ.
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*){0,2}")


def redact(text: str) -> str:
    """Text from elsewhere without the tokens in it."""
    return _JWT.sub("eyJ…", _TOKEN.sub("lt-…", text))


class LatticeError(Exception):
    """Base of all errors of the SDK.

    Args:
        message: what happened, and why.
        code: stable word; the leaf's own when left out.
        peer_id: the identity concerned, once it has one.
        hint: what to do now.
        status: HTTP status of the answer that says so, if one did.
        retry_after: seconds after which the server wants to be asked again.

    Attributes:
        exit_code: exit status of the ``lattice`` command for this error.
    """

    code: str = "lattice_error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        peer_id: str | None = None,
        hint: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.message = redact(message)
        self.hint = redact(hint) if hint else None
        self.code = code or type(self).code
        self.peer_id = peer_id
        self.status = status
        self.retry_after = retry_after
        super().__init__(self.message)

    def __str__(self) -> str:
        text = self.message
        if self.hint:
            text += f". {self.hint}" if text[-1:] not in ".!?" else f" {self.hint}"
        if self.peer_id and self.peer_id not in text:
            text += f" [{self.peer_id}]"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (
            type(self),
            self.message,
            {
                "code": self.code,
                "peer_id": self.peer_id,
                "hint": self.hint,
                "status": self.status,
                "retry_after": self.retry_after,
            },
            {key: getattr(self, key) for key in ("preset", "destination") if hasattr(self, key)},
        )


def _rebuild(
    kind: type[LatticeError], message: str, details: dict[str, object], more: dict[str, object]
) -> LatticeError:
    return kind(message, **details, **more)  # type: ignore[arg-type]


class ConfigurationError(LatticeError):
    """A setting is missing or wrong."""

    code = "configuration_error"
    exit_code = 3


class AuthenticationFailed(LatticeError):
    """The control plane does not accept the token."""

    code = "invalid_token"
    exit_code = 4


class NotPermitted(LatticeError):
    """The token is good, but not for this."""

    code = "forbidden"
    exit_code = 5


class InvalidRequest(LatticeError):
    """The control plane does not accept what was asked."""

    code = "invalid_request"
    exit_code = 6


class NotFound(LatticeError):
    """There is no such thing at the control plane, or not for this token."""

    code = "not_found"
    exit_code = 7


class ServerUnreachable(LatticeError):
    """No answer from the control plane."""

    code = "server_unreachable"
    exit_code = 8


class UnexpectedAnswer(LatticeError):
    """Something answered that does not speak the Enrollment API."""

    code = "unexpected_answer"
    exit_code = 9


class AddressPoolExhausted(LatticeError):
    """The overlay has no free address."""

    code = "address_pool_exhausted"
    exit_code = 10


class GatewayUnavailable(LatticeError):
    """The gateway did not take the identity up; nothing was left behind."""

    code = "gateway_unavailable"
    exit_code = 11


class EgressUnavailable(GatewayUnavailable):
    """No egress connector serves the host names of ``allow``; nothing was left behind."""

    code = "egress_unavailable"
    exit_code = 20


class ServerError(LatticeError):
    """The control plane failed."""

    code = "internal_error"
    exit_code = 12


class TunnelFailed(LatticeError):
    """The tunnel did not come up; the identity was deleted again."""

    code = "tunnel_failed"
    exit_code = 13


class BackendUnavailable(LatticeError):
    """No tunnel backend can serve here, or not the one that was named."""

    code = "backend_unavailable"
    exit_code = 14


class EngineFailed(LatticeError):
    """The engine is missing, does not start or does not answer."""

    code = "engine_failed"
    exit_code = 15


class IdentityExpired(LatticeError, ConnectionError):
    """The identity's life is over; its tunnel is down."""

    code = "identity_expired"
    exit_code = 16


class IdentityClosed(LatticeError, ConnectionError):
    """The agent is not open: not yet, no longer, or it belongs to the parent process."""

    code = "identity_closed"
    exit_code = 17


class Refused(LatticeError, ConnectionRefusedError):
    """The policy does not grant this destination. A :class:`ConnectionRefusedError` too.

    Attributes:
        preset: the policy preset that refuses.
        destination: ``host:port``.
    """

    code = "refused"
    exit_code = 18

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        peer_id: str | None = None,
        hint: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        preset: str | None = None,
        destination: str | None = None,
    ) -> None:
        super().__init__(
            message,
            code=code,
            peer_id=peer_id,
            hint=hint,
            status=status,
            retry_after=retry_after,
        )
        self.preset = preset
        self.destination = destination


class DestinationUnreachable(LatticeError, ConnectionError):
    """The policy grants the destination, but it does not answer."""

    code = "destination_unreachable"
    exit_code = 19

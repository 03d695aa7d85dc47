"""Errors as the API answers them: RFC 9457 ``application/problem+json`` with a stable ``code``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

CODES: dict[str, int] = {
    "invalid_json": 400,
    "missing_token": 401,
    "invalid_token": 401,
    "token_expired": 401,
    "token_revoked": 401,
    "token_used_up": 401,
    "forbidden": 403,
    "delegation_not_permitted": 403,
    "preset_not_permitted": 403,
    "destination_not_permitted": 403,
    "source_not_permitted": 403,
    "agent_type_not_permitted": 403,
    "ttl_not_permitted": 403,
    "workspace_mismatch": 403,
    "not_found": 404,
    "unknown_workspace": 404,
    "peer_not_found": 404,
    "service_not_found": 404,
    "token_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "peer_expired": 410,
    "payload_too_large": 413,
    "invalid_request": 422,
    "unknown_preset": 422,
    "invalid_ttl": 422,
    "invalid_public_key": 422,
    "too_many_requests": 429,
    "internal_error": 500,
    "address_pool_exhausted": 503,
    "gateway_unavailable": 503,
    "egress_unavailable": 503,
    "issuer_unavailable": 503,
    "overloaded": 503,
}

_SECRET = re.compile(r"lt-[A-Za-z0-9_-]{8,}")
# RFC 7515: a JSON object in base64url begins with eyJ
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*){0,2}")


def printable(text: str, limit: int = 500) -> str:
    """Make text from a client fit to be shown: no token in it, valid UTF-8, bounded length."""
    text = _JWT.sub("eyJ…", _SECRET.sub("lt-…", text)).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


class ApiProblem(Exception):  # noqa: N818 - the RFC's own word
    """Ends a request with a problem document.

    Args:
        code: one of :data:`CODES`, which fixes the status.
        detail: what happened, why, and what to do now. Never holds a secret.
        headers: further response headers, such as ``Retry-After``.
        errors: ``{"field", "message"}`` for each field at fault.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail
        self.status = CODES[code]
        self.headers = dict(headers or {})
        self.errors = list(errors)
        if self.status == HTTPStatus.UNAUTHORIZED:
            self.headers.setdefault("WWW-Authenticate", "Bearer")

    def body(self) -> dict[str, Any]:
        """The problem document."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": printable(self.detail),
            "code": self.code,
        }
        if self.errors:
            document["errors"] = [
                {key: printable(value, 300) for key, value in error.items()}
                for error in self.errors
            ]
        return document

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(
            self.body(),
            status_code=self.status,
            headers=self.headers,
            media_type="application/problem+json",
        )


def gateway_unavailable(detail: str) -> ApiProblem:
    """The 503 of a gateway that is absent or does not acknowledge in time."""
    return ApiProblem("gateway_unavailable", detail, headers={"Retry-After": "1"})

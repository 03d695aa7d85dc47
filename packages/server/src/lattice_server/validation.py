"""From pydantic's errors to a problem: which field, what is wrong, never what was sent."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError

from lattice_server.problems import ApiProblem

_CODE_OF_FIELD = {
    "ttl": "invalid_ttl",
    "publicKey": "invalid_public_key",
    "policyPreset": "unknown_preset",
}
_SOURCES = frozenset(("body", "query", "path", "header"))


def problem_of(error: RequestValidationError, content_type: str | None) -> ApiProblem:
    """The problem document of a request that does not fit its model."""
    found = list(error.errors())
    whole = [e for e in found if tuple(e["loc"]) == ("body",)]
    if any(e["type"] == "json_invalid" for e in found):
        return ApiProblem("invalid_json", "the body is not valid JSON")
    if any(e["type"] == "missing" for e in whole):
        return ApiProblem("invalid_json", "the body is empty; send a JSON object")
    if whole and "json" not in (content_type or ""):
        return ApiProblem(
            "invalid_json", "the body has to be JSON; send Content-Type: application/json"
        )
    fields = [
        {
            "field": ".".join(
                str(part) for n, part in enumerate(e["loc"]) if n or part not in _SOURCES
            ),
            "message": e["msg"].removeprefix("Value error, "),
        }
        for e in found
    ]
    codes = {_CODE_OF_FIELD.get(field["field"], "invalid_request") for field in fields}
    code = codes.pop() if len(codes) == 1 else "invalid_request"
    detail = "; ".join(
        f"{field['field']}: {field['message']}" if field["field"] else field["message"]
        for field in fields
    )
    return ApiProblem(code, f"the request is not valid: {detail}", errors=fields)

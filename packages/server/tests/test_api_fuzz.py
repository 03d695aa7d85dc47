"""Whatever is sent, the answer is a documented one: no 500, nothing made by accident."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CALM = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["1h", "sandboxed", "isolated", "ws", "10.96.0.9", "\x00", "\ud800", "tools"])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)


def bodies(*fields: str) -> st.SearchStrategy[bytes]:
    """Objects that have some of the real fields, with anything in them."""
    shaped = st.dictionaries(st.sampled_from(fields), anything, max_size=len(fields))
    return (shaped | anything).map(json.dumps).map(str.encode) | st.binary(max_size=50)


@pytest.fixture(scope="module")
def plane(make_control_plane: Any) -> Iterator[Any]:
    with make_control_plane() as running:
        running.gateway()
        running.bearer = running.workspace("ws")
        yield running


def post(plane: Any, path: str, token: str, body: bytes) -> None:
    answer = plane.call(
        "POST", path, token, content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
        assert token not in answer.text


@CALM
@given(bodies("agentName", "agentType", "workspaceId", "ttl", "policyPreset", "publicKey", "allow"))
def test_enroll(plane: Any, body: bytes) -> None:
    post(plane, "/api/v1/agent-enroll", plane.bearer, body)


@CALM
@given(
    bodies(
        *("kind", "workspaceId", "service", "presets", "maxTTL", "maxLifetime", "uses"),
        *("expiresIn", "allowIsolated"),
    )
)
def test_tokens(plane: Any, body: bytes) -> None:
    post(plane, "/api/v1/tokens", plane.admin, body)


@CALM
@given(bodies("name", "workspaceId", "hostnames", "ports", "designated"))
def test_services(plane: Any, body: bytes) -> None:
    post(plane, "/api/v1/services", plane.admin, body)


@CALM
@given(
    st.sampled_from(
        [
            "/api/v1/peers",
            "/api/v1/events",
            "/api/v1/tokens",
            "/api/v1/services",
            "/api/v1/workspaces",
        ]
    ),
    st.dictionaries(
        st.sampled_from(["limit", "cursor", "after", "workspaceId"]), st.text(max_size=25)
    ),
)
def test_queries(plane: Any, path: str, query: dict[str, str]) -> None:
    try:
        answer = plane.call("GET", path, plane.admin, params=query)
    except UnicodeEncodeError:
        return  # the client cannot send it
    assert answer.status_code in (200, 422), answer.text


@CALM
@given(st.text(max_size=80))
def test_authorization(plane: Any, value: str) -> None:
    header = value.encode("latin-1", "replace")
    if any(byte < 0x20 or byte == 0x7F for byte in header) or header != header.strip():
        return  # no header value
    answer = plane.http.get("/api/v1/peers", headers={b"Authorization": header})
    assert answer.status_code == 401

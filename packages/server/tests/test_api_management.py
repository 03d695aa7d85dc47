"""Workspaces, tokens, services, connectors, events: what administrators do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lattice_sdk.wire import EnrollResponse
from lattice_server.api.models import Event, ManagedService, Token, Workspace


def test_workspace_can_be_made_twice(plane: Any) -> None:
    one = plane.manage("POST", "/api/v1/workspaces", {"workspaceId": "ws"})
    assert plane.manage("POST", "/api/v1/workspaces", {"workspaceId": "ws"}) == one
    listed = plane.manage("GET", "/api/v1/workspaces")["items"]
    assert [Workspace.model_validate(item).workspace_id for item in listed] == ["ws"]


def test_token_text_is_answered_once(plane: Any) -> None:
    plane.manage("POST", "/api/v1/workspaces", {"workspaceId": "ws"})
    made = plane.manage(
        "POST",
        "/api/v1/tokens",
        {
            "kind": "workspace",
            "workspaceId": "ws",
            "presets": ["sandboxed"],
            "maxTTL": "1h30m",
            "maxLifetime": "24h",
            "uses": 3,
            "expiresIn": "1h",
        },
    )
    assert Token.model_validate(made).token
    assert (made["maxTTL"], made["maxLifetime"], made["uses"], made["used"]) == (
        *("1h30m", "24h"),
        *(3, 0),
    )
    listed = plane.call("GET", "/api/v1/tokens?workspaceId=ws", plane.admin)
    assert made["token"] not in listed.text
    assert [item["id"] for item in listed.json()["items"]] == [made["id"]]


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "workspace"},
        {"kind": "root"},
        {"kind": "enrollment", "workspaceId": "ws"},
        {"kind": "admin", "workspaceId": "ws"},
        {"kind": "gateway", "presets": ["sandboxed"]},
        {"kind": "service", "workspaceId": "ws"},
        {"kind": "workspace", "workspaceId": "ws", "service": "x"},
        {"kind": "workspace", "workspaceId": "ws", "presets": ["no preset's name"]},
        {"kind": "workspace", "workspaceId": "ws", "uses": 0},
        {"kind": "workspace", "workspaceId": "ws", "maxTTL": "0s"},
        {"kind": "workspace", "workspaceId": "ws", "maxLifetime": "99999999h"},
        {"kind": "workspace", "workspaceId": "ws", "expiresIn": -5},
        {"kind": "workspace", "workspaceId": "ws", "allowIsolated": "yes"},
    ],
)
def test_token_that_makes_no_sense_is_refused(plane: Any, body: Any) -> None:
    answer = plane.call("POST", "/api/v1/tokens", plane.admin, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_last_admin_token_cannot_be_revoked(plane: Any) -> None:
    [first] = plane.manage("GET", "/api/v1/tokens")["items"]
    answer = plane.call("DELETE", f"/api/v1/tokens/{first['id']}", plane.admin)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    other = plane.token(kind="admin")
    assert plane.call("DELETE", f"/api/v1/tokens/{first['id']}", other).status_code == 204
    answer = plane.call("GET", "/api/v1/tokens", plane.admin)
    assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")
    missing = plane.call("DELETE", "/api/v1/tokens/token-none", other)
    assert (missing.status_code, missing.json()["code"]) == (404, "token_not_found")


def test_service_has_a_stable_address_and_a_default_name(plane: Any) -> None:
    plane.workspace("ws")
    one = plane.service("ws", "github-tools", 443)
    assert ManagedService.model_validate(one).hostnames == ["github-tools.lattice"]
    assert plane.service("ws", "github-tools", 443) == one
    body = {"name": "github-tools", "workspaceId": "ws", "ports": [{"port": 80}]}
    answer = plane.call("POST", "/api/v1/services", plane.admin, json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    body = {
        "name": "other",
        "workspaceId": "ws",
        "ports": [{"port": 80}],
        "hostnames": ["github-tools.lattice"],
    }
    answer = plane.call("POST", "/api/v1/services", plane.admin, json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_services_are_paged(plane: Any) -> None:
    for workspace in ("a", "b"):
        plane.workspace(workspace)
        for name in ("one", "two"):
            plane.service(workspace, name)
    found, cursor = [], ""
    while True:
        page = plane.manage("GET", f"/api/v1/services?limit=1{cursor}")
        found += [(item["workspaceId"], item["name"]) for item in page["items"]]
        if "next" not in page:
            break
        cursor = f"&cursor={page['next']}"
    assert found == [("a", "one"), ("a", "two"), ("b", "one"), ("b", "two")]
    ambiguous = plane.call("DELETE", "/api/v1/services/one", plane.admin)
    assert (ambiguous.status_code, ambiguous.json()["code"]) == (422, "invalid_request")


def test_new_service_reaches_running_agents_and_goes_again(plane: Any, gateway: Any) -> None:
    token = plane.workspace("ws")
    agents = [plane.enrolled(token) for _ in range(3)]
    stranger = plane.enrolled(plane.workspace("ws-other"))
    before = len(gateway.messages)
    tools = plane.service("ws", "tools", 443)
    grant = {"to": tools["address"], "protocol": "tcp", "port": 443}
    # The service's creation is not held up by the gateway; a change that is, comes after it.
    plane.enrolled(token)
    for agent in agents:
        assert gateway.peers[agent["peerId"]]["grants"] == [grant]
    assert gateway.peers[stranger["peerId"]]["grants"] == []
    upserted = {p["id"] for message in gateway.messages[before:] for p in message["upsert"]}
    assert stranger["peerId"] not in upserted
    plane.manage("DELETE", "/api/v1/services/tools")
    assert {len(peer["grants"]) for peer in gateway.peers.values()} == {0}
    before = len(gateway.messages)
    plane.service("ws", "payroll", 80, designated=False)
    plane.enrolled(token)
    assert len(gateway.messages) == before + 1


def test_connector_takes_the_services_address(
    plane: Any, gateway: Any, key: Callable[[], str]
) -> None:
    plane.workspace("ws")
    tools = plane.service("ws", "tools")
    token = plane.token(kind="service", workspaceId="ws", service="tools")
    public = key()
    path = "/api/v1/services/tools/connect"
    answer = plane.call("POST", path, token, json={"publicKey": public})
    assert answer.status_code == 201
    one = EnrollResponse.model_validate(answer.json())
    assert one.overlay_ip == f"{tools['address']}/32"
    peer = gateway.peers[one.peer_id]
    assert (peer["publicKey"], peer["address"], peer["grants"]) == (public, tools["address"], [])
    assert plane.manage("GET", "/api/v1/services")["items"][0]["connected"] is True
    [listed] = plane.peers()
    assert (listed["kind"], listed["name"], listed["policyPreset"]) == (
        *("service", "tools"),
        "service",
    )
    first = one.enrollment_token.get_secret_value()
    renewed = plane.call("POST", f"/api/v1/peers/{one.peer_id}/renew", first)
    assert renewed.status_code == 200

    # A later connector takes over, and the earlier one cannot take the place away from it.
    two = plane.call("POST", path, plane.admin, json={"publicKey": key(), "ttl": "2h"}).json()
    assert (two["peerId"], two["overlayIP"]) == (one.peer_id, one.overlay_ip)
    late = plane.call("DELETE", f"/api/v1/peers/{one.peer_id}", first)
    assert (late.status_code, late.json()["code"]) == (401, "invalid_token")
    path = f"/api/v1/peers/{two['peerId']}"
    assert plane.call("DELETE", path, two["enrollmentToken"]).status_code == 204
    assert gateway.peers == {}
    assert plane.manage("GET", "/api/v1/services")["items"][0]["connected"] is False
    three = plane.call("POST", "/api/v1/services/tools/connect", token).json()
    assert three["overlayIP"] == one.overlay_ip
    assert "PrivateKey" in three["wireguardConfig"]


def test_service_token_is_good_for_its_service_alone(plane: Any, gateway: Any) -> None:
    for workspace in ("ws", "ws-other"):
        plane.workspace(workspace)
        plane.service(workspace, "tools")
    plane.service("ws", "payroll")
    token = plane.token(kind="service", workspaceId="ws", service="tools")
    for name in ("payroll", "none"):
        answer = plane.call("POST", f"/api/v1/services/{name}/connect", token)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    body = {"workspaceId": "ws-other"}
    answer = plane.call("POST", "/api/v1/services/tools/connect", token, json=body)
    assert (answer.status_code, answer.json()["code"]) == (403, "workspace_mismatch")
    answer = plane.call("POST", "/api/v1/services/none/connect", plane.admin)
    assert (answer.status_code, answer.json()["code"]) == (404, "service_not_found")
    body = {"kind": "service", "workspaceId": "ws", "service": "none"}
    answer = plane.call("POST", "/api/v1/tokens", plane.admin, json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "service_not_found")
    answer = plane.call("POST", "/api/v1/services/tools/connect", plane.workspace("ws"))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_removed_service_takes_its_connector_and_tokens_along(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    plane.service("ws", "tools")
    token = plane.token(kind="service", workspaceId="ws", service="tools")
    one = plane.call("POST", "/api/v1/services/tools/connect", token).json()
    plane.manage("DELETE", "/api/v1/services/tools")
    assert gateway.peers == {}
    answer = plane.call("POST", "/api/v1/services/tools/connect", token)
    assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")
    path = f"/api/v1/peers/{one['peerId']}/renew"
    assert plane.call("POST", path, one["enrollmentToken"]).status_code == 404
    answer = plane.call("DELETE", "/api/v1/services/tools", plane.admin)
    assert (answer.status_code, answer.json()["code"]) == (404, "service_not_found")


def test_event_log_tells_the_story_in_order(plane: Any, gateway: Any) -> None:
    token = plane.workspace("ws")
    one = plane.enrolled(token)
    path = f"/api/v1/peers/{one['peerId']}"
    plane.call("POST", f"{path}/renew", one["enrollmentToken"])
    plane.call("DELETE", path, token)
    items = [Event.model_validate(item) for item in plane.events()]
    story = [item.type for item in items if item.peer_id == one["peerId"]]
    assert story == ["enrolled", "renewed", "revoked"]
    assert [item.seq for item in items] == sorted(item.seq for item in items)
    assert items[-1].data["by"] == "workspace"
    text = plane.call("GET", "/api/v1/events", plane.admin).text
    assert token not in text
    assert one["enrollmentToken"] not in text
    page = plane.manage("GET", f"/api/v1/events?after={items[0].seq}&limit=1")
    assert page["items"][0]["seq"] == page["next"] == items[1].seq


def test_events_can_be_followed(plane: Any, gateway: Any, wait: Any) -> None:
    token = plane.workspace("ws")
    seen: list[dict[str, Any]] = []

    def follow() -> None:
        headers = {"Authorization": f"Bearer {plane.admin}"}
        with plane.http.stream(
            "GET", "/api/v1/events?follow=true", headers=headers, timeout=60
        ) as answer:
            assert answer.headers["content-type"].startswith("application/x-ndjson")
            for line in answer.iter_lines():
                seen.append(json.loads(line))
                if seen[-1]["type"] == "revoked":
                    return

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    wait("what was there", lambda: len(seen) >= 2)
    one = plane.enrolled(token)
    wait("the enrollment", lambda: any(item["type"] == "enrolled" for item in seen))
    plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", token)
    reader.join(20)
    assert not reader.is_alive()
    assert [item["seq"] for item in seen] == list(range(1, len(seen) + 1))


def test_health_metrics_and_openapi(plane: Any, wait: Any) -> None:
    assert plane.http.get("/healthz").json() == {"status": "ok"}
    assert plane.http.get("/readyz").json()["gateway"] == "absent"
    gateway, token = plane.gateway(), plane.workspace("ws")
    assert plane.http.get("/readyz").json() == {
        "status": "ok",
        "database": "ok",
        "gateway": "ok",
    }
    plane.enrolled(token)
    plane.enroll(token, ttl="1x")
    text = plane.call("GET", "/metrics", plane.admin).text
    for line in (
        'lattice_peers{preset="sandboxed",workspace="ws"} 1.0',
        "lattice_enrollments_total 1.0",
        'lattice_refusals_total{code="invalid_ttl"} 1.0',
        "lattice_gateway_connected 1.0",
        "lattice_gateway_ack_seconds_count 1.0",
        "lattice_reconciler_seconds_count 1.0",
    ):
        assert line in text
    gateway.close()
    wait("the loss", lambda: plane.http.get("/readyz").status_code == 503)
    schema = plane.http.get("/openapi.json").json()
    for path in ("/api/v1/agent-enroll", "/api/v1/peers/{peer_id}/renew", "/api/v1/events"):
        assert path in schema["paths"]
    enroll = schema["paths"]["/api/v1/agent-enroll"]["post"]
    assert {"201", "400", "401", "403", "413", "422", "503"} <= set(enroll["responses"])
    assert "Problem" in schema["components"]["schemas"]
    references = json.dumps(schema)
    for name in {part.split('"')[0] for part in references.split("#/components/schemas/")[1:]}:
        assert name in schema["components"]["schemas"]

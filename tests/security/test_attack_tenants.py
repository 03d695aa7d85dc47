"""One tenant goes for another's peers, tokens and services, and learns not even what is there."""

from __future__ import annotations

from typing import Any

import pytest

from support.tenants import Api, Tenant, new_key

MISSING = "peer-aaaaaaaaaaaaaaaa"
KUBE = "/apis/alattice.io/v1alpha1/namespaces"
BEARERS = ["workspace", "enrollment", "sub-agent", "connector", "delegation", "service"]


def peer_attempts(peer: str) -> list[tuple[str, str, Any]]:
    """Everything that can be tried on a peer."""
    path = f"/api/v1/peers/{peer}"
    return [
        ("GET", path, None),
        ("DELETE", path, None),
        ("GET", f"{path}/services", None),
        ("POST", f"{path}/renew", {}),
        ("POST", f"{path}/renew", {"publicKey": new_key()}),
        ("POST", f"{path}/names", {"name": "files.example.org"}),
        ("POST", f"{path}/routes", {"wait": 0}),
        ("POST", f"{path}/refusals", {"refusals": []}),
        ("POST", f"/api/v1/agents/{peer}/delegate", {"subAgentName": "thief"}),
    ]


@pytest.mark.parametrize("kind", BEARERS)
def test_peer_of_another_tenant_is_as_if_it_were_not_there(
    api: Api, ours: Tenant, theirs: Tenant, kind: str
) -> None:
    bearer = theirs.bearers()[kind]
    for target in (ours.agent, ours.sub_agent, ours.connector):
        for (method, path, body), (_, nowhere, _) in zip(
            peer_attempts(target["peerId"]), peer_attempts(MISSING), strict=True
        ):
            answer = api.call(method, path, bearer, json=body)
            other = api.call(method, nowhere, bearer, json=body)
            assert answer.status_code in (403, 404), (kind, method, path, answer.text)
            # Whether it is there cannot be told from the answer.
            assert (answer.status_code, answer.json()["code"]) == (
                other.status_code,
                other.json()["code"],
            ), (kind, method, path)
            assert answer.text.replace(target["peerId"], "") == other.text.replace(MISSING, "")
    assert {one["peerId"] for one in (ours.agent, ours.sub_agent, ours.connector)} <= set(
        api.peers()
    )


@pytest.mark.parametrize("kind", BEARERS)
def test_lists_hold_nothing_of_another_tenant(
    api: Api, ours: Tenant, theirs: Tenant, kind: str
) -> None:
    bearer = theirs.bearers()[kind]
    for path in (
        "/api/v1/peers",
        f"/api/v1/peers?workspaceId={ours.workspace}",
        f"/api/v1/peers?workspaceId={ours.workspace}&workspaceId={theirs.workspace}",
        f"/api/v1/peers?workspaceId={theirs.workspace}&workspaceId={ours.workspace}",
        "/api/v1/peers?workspaceId=",
        "/api/v1/peers?workspaceId=*",
        "/api/v1/peers?cursor=0",
        "/api/v1/tokens",
        "/api/v1/services",
        "/api/v1/trusts",
        "/api/v1/workspaces",
        "/api/v1/events",
        "/api/v1/events?follow=true",
        "/api/v1/denials",
        f"/api/v1/workspaces/{ours.workspace}/policy",
        f"{KUBE}/{ours.workspace}/latticepeers",
        f"{KUBE}/{theirs.workspace}/latticepeers",
        f"{KUBE}/{theirs.workspace}/latticepeers/{ours.agent['peerId']}",
        f"{KUBE}/{ours.workspace}/latticepeers/{ours.agent['peerId']}",
        "/metrics",
    ):
        answer = api.call("GET", path, bearer)
        assert ours.workspace not in answer.text, path
        assert ours.agent["peerId"] in path or ours.agent["peerId"] not in answer.text, path
        assert answer.status_code in (200, 403, 404, 422), (path, answer.text)
        if answer.status_code == 200:
            listed = answer.json()
            assert {i.get("workspaceId") for i in listed["items"]} <= {theirs.workspace, None}


@pytest.mark.parametrize("kind", BEARERS)
def test_workspace_of_another_tenant_cannot_be_entered(
    api: Api, ours: Tenant, theirs: Tenant, kind: str
) -> None:
    before = set(api.peers())
    answer = api.enroll(theirs.bearers()[kind], "helper", workspaceId=ours.workspace)
    assert (answer.status_code, answer.json()["code"]) in (
        (403, "workspace_mismatch"),
        (403, "forbidden"),
    )
    assert set(api.peers()) == before


@pytest.mark.parametrize("kind", BEARERS)
def test_service_of_another_tenant_cannot_be_taken(
    api: Api, ours: Tenant, theirs: Tenant, kind: str
) -> None:
    bearer, path = theirs.bearers()[kind], f"/api/v1/services/{ours.service}"
    for method, where, body in (
        ("POST", f"{path}/connect", None),
        ("POST", f"{path}/connect", {"workspaceId": ours.workspace}),
        ("POST", f"{path}/connect", {"workspaceId": theirs.workspace}),
        ("POST", f"/api/v1/services/{theirs.service}/connect", {"workspaceId": ours.workspace}),
        ("PATCH", f"{path}?workspaceId={ours.workspace}", {"designated": False}),
        ("DELETE", f"{path}?workspaceId={ours.workspace}", None),
        ("DELETE", path, None),
    ):
        answer = api.call(method, where, bearer, json=body)
        assert answer.status_code == 403, (kind, method, where, answer.text)
    assert api.peers()[ours.connector["peerId"]]["publicKey"]
    assert ours.connector["peerId"] in api.gateway_peers()


@pytest.mark.parametrize("kind", BEARERS)
def test_tokens_and_trusts_of_another_tenant_cannot_be_touched(
    api: Api, ours: Tenant, theirs: Tenant, kind: str
) -> None:
    bearer = theirs.bearers()[kind]
    for method, path in (
        ("DELETE", f"/api/v1/tokens/{ours.token['id']}"),
        ("DELETE", f"/api/v1/tokens/{ours.token['id']}?agents=true"),
        ("POST", f"/api/v1/tokens/{ours.token['id']}/rotate"),
        ("DELETE", f"/api/v1/tokens/{ours.service_token['id']}"),
        ("DELETE", f"/api/v1/trusts/{ours.trust['id']}"),
        ("PUT", f"/api/v1/workspaces/{ours.workspace}/policy"),
        ("POST", f"/api/v1/workspaces/{ours.workspace}/policy/test"),
    ):
        body = {"presets": {}} if method == "PUT" else {"cases": []} if "test" in path else None
        answer = api.call(method, path, bearer, json=body)
        assert answer.status_code == 403, (kind, method, path, answer.text)
    tokens = {one["id"]: one for one in api.manage("GET", "/api/v1/tokens")["items"]}
    assert tokens[ours.token["id"]]["revokedAt"] is None
    assert tokens[ours.token["id"]]["formerHoldsUntil"] is None


def test_key_of_another_tenant_cannot_be_taken_over(api: Api, ours: Tenant, theirs: Tenant) -> None:
    """A public key is no secret; whoever names it gets neither the identity nor its address."""
    public = api.peers()[ours.agent["peerId"]]["publicKey"]
    renew = f"/api/v1/peers/{theirs.agent['peerId']}/renew"
    connect = f"/api/v1/services/{theirs.service}/connect"
    for method, path, bearer, body in (
        (
            *("POST", "/api/v1/agent-enroll", theirs.token["token"]),
            {"agentName": "lead", "policyPreset": "coordinator", "publicKey": public},
        ),
        ("POST", renew, theirs.agent["enrollmentToken"], {"publicKey": public}),
        ("POST", connect, theirs.service_token["token"], {"publicKey": public}),
    ):
        answer = api.call(method, path, bearer, json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_public_key")
    path = f"/api/v1/peers/{ours.agent['peerId']}"
    assert api.call("GET", path, ours.agent["enrollmentToken"]).status_code == 200


def test_sub_agents_reach_up_and_sideways_for_nothing(api: Api, ours: Tenant) -> None:
    """Within one tenant, too: an identity's token is for itself and what came from it."""
    other = api.enrolled(ours.token["token"], "other")
    for target in (ours.agent, other):
        for method, path, body in peer_attempts(target["peerId"]):
            answer = api.call(method, path, ours.sub_agent["enrollmentToken"], json=body)
            assert answer.status_code in (403, 404), (method, path, answer.text)
    assert {ours.agent["peerId"], other["peerId"]} <= set(api.peers())
    path = f"/api/v1/peers/{other['peerId']}"
    assert api.call("DELETE", path, other["enrollmentToken"]).status_code == 204

"""Presets of a workspace's own, services that change, networks that connectors advertise.

What the gateway is told is looked at; that it does it is shown by the end-to-end tests.
"""

from __future__ import annotations

from typing import Any

import pytest

POLICY = "/api/v1/workspaces/ws/policy"


def grants(gateway: Any, identity: dict[str, Any]) -> set[tuple[str, str, int]]:
    peer = gateway.peers[identity["peerId"]]
    return {(grant["to"], grant["protocol"], grant["port"]) for grant in peer["grants"]}


def set_presets(plane: Any, **presets: dict[str, list[str]]) -> None:
    plane.manage("PUT", POLICY, {"presets": presets})


def token_for(plane: Any, *presets: str, **more: Any) -> str:
    return str(plane.token(kind="workspace", workspaceId="ws", presets=list(presets), **more))


def test_a_workspaces_own_preset_reaches_what_its_words_say(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    plane.service("ws", "tools")
    payroll = plane.service("ws", "payroll", 80, designated=False)
    set_presets(plane, auditor={"egress": ["service:payroll"], "ingress": ["agents"]})
    token = token_for(plane, "auditor", "coordinator")
    auditor = plane.enrolled(token, policyPreset="auditor")
    assert grants(gateway, auditor) == {(payroll["address"], "tcp", 80)}
    assert (auditor["policyPreset"], auditor["ingress"]) == ("auditor", ["agents"])
    assert [service["name"] for service in auditor["services"]] == ["payroll"]
    coordinator = plane.enrolled(token, policyPreset="coordinator")
    assert (auditor["overlayIP"].removesuffix("/32"), "any", 0) in grants(gateway, coordinator)


def test_a_change_of_the_policy_reaches_running_agents_without_enrollment(
    plane: Any, gateway: Any
) -> None:
    plane.workspace("ws")
    tools, payroll = plane.service("ws", "tools"), plane.service("ws", "payroll", designated=False)
    set_presets(plane, worker={"egress": ["services"], "ingress": ["agents"]})
    token = token_for(plane, "worker", "coordinator")
    worker = plane.enrolled(token, policyPreset="worker")
    coordinator = plane.enrolled(token, policyPreset="coordinator")
    at = (worker["overlayIP"].removesuffix("/32"), "any", 0)
    assert grants(gateway, worker) == {(tools["address"], "tcp", 443)}
    assert at in grants(gateway, coordinator)
    set_presets(plane, worker={"egress": ["service:payroll"], "ingress": []})
    assert grants(gateway, worker) == {(payroll["address"], "tcp", 443)}
    assert at not in grants(gateway, coordinator)
    path = f"/api/v1/peers/{worker['peerId']}/services"
    reach = plane.call("GET", path, worker["enrollmentToken"]).json()
    assert [service["name"] for service in reach["services"]] == ["payroll"]
    assert reach["ingress"] == []
    # The preset is taken away altogether: its agents have nothing, and nobody enrolls with it.
    plane.manage("PUT", POLICY, {})
    assert grants(gateway, worker) == set()
    refused = plane.enroll(token, policyPreset="worker")
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_preset")
    assert len(plane.events("policy.changed")) == 3


def test_a_gateway_that_comes_back_is_told_the_same(plane: Any, gateway: Any, wait: Any) -> None:
    plane.workspace("ws")
    plane.service("ws", "payroll", designated=False)
    body = {"kind": "network", "networks": ["10.0.7.0/24"], "name": "office"}
    plane.manage("POST", "/api/v1/services", body | {"workspaceId": "ws"})
    office = plane.call("POST", "/api/v1/services/office/connect", plane.admin, json={}).json()
    set_presets(plane, auditor={"egress": ["service:payroll", "allow"], "ingress": []})
    token = token_for(plane, "auditor", allow=[{"to": "10.0.7.0/24"}])
    allow = [{"to": "10.0.7.5", "port": 5432}]
    auditor = plane.enrolled(token, policyPreset="auditor", allow=allow)
    before = {name: (peer["grants"], peer.get("routes")) for name, peer in gateway.peers.items()}
    assert before[office["peerId"]][1] == ["10.0.7.0/24"]
    assert ("10.0.7.5", "tcp", 5432) in grants(gateway, auditor)
    again = plane.gateway()
    wait(
        "the whole state",
        lambda: before == {n: (p["grants"], p.get("routes")) for n, p in again.peers.items()},
    )


def test_a_token_names_presets_that_the_workspace_has(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    set_presets(plane, auditor={"egress": ["services"]})
    body = {"kind": "workspace", "workspaceId": "ws", "presets": ["auditors"]}
    refused = plane.call("POST", "/api/v1/tokens", plane.admin, json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert "auditor" in refused.json()["detail"]
    # A token that names none permits none of the workspace's own.
    plain = plane.token(kind="workspace", workspaceId="ws")
    refused = plane.enroll(plain, policyPreset="auditor")
    assert (refused.status_code, refused.json()["code"]) == (403, "preset_not_permitted")


@pytest.mark.parametrize(
    "presets",
    [
        {"sandboxed": {"egress": ["allow"]}},
        {"Root": {}},
        {"a": {"egress": ["everything"]}},
        {"a": {"ingress": ["services"]}},
        {"a": {"egress": "services"}},
        {"a": {"egres": ["services"]}},
        ["a"],
    ],
)
def test_a_policy_that_means_nothing_is_refused_and_changes_nothing(
    plane: Any, gateway: Any, presets: Any
) -> None:
    plane.workspace("ws")
    answer = plane.call("PUT", POLICY, plane.admin, json={"presets": presets})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert plane.manage("GET", POLICY)["presets"] == {}


def test_policy_is_the_admins_alone(plane: Any, gateway: Any) -> None:
    token = plane.workspace("ws")
    for method in ("GET", "PUT"):
        assert plane.call(method, POLICY, token, json={}).status_code == 403
    missing = plane.call("GET", "/api/v1/workspaces/none/policy", plane.admin)
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_workspace")


def test_designation_and_ports_of_a_service_change_under_running_agents(
    plane: Any, gateway: Any
) -> None:
    token = plane.workspace("ws")
    tools = plane.service("ws", "tools")
    agent = plane.enrolled(token)
    path = "/api/v1/services/tools?workspaceId=ws"
    assert grants(gateway, agent) == {(tools["address"], "tcp", 443)}
    changed = plane.manage(
        "PATCH", path, {"ports": [{"port": 80}, {"port": 53, "protocol": "udp"}]}
    )
    assert changed["address"] == tools["address"]
    assert grants(gateway, agent) == {(tools["address"], "tcp", 80), (tools["address"], "udp", 53)}
    plane.manage("PATCH", path, {"designated": False})
    assert grants(gateway, agent) == set()
    plane.manage("PATCH", path, {"designated": True, "hostnames": ["github.example"]})
    reach = plane.call(
        "GET", f"/api/v1/peers/{agent['peerId']}/services", agent["enrollmentToken"]
    ).json()
    assert reach["services"][0]["hostnames"] == ["github.example"]
    assert len(plane.events("service.changed")) == 3


def test_a_change_of_a_service_that_cannot_be_changes_nothing(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    plane.service("ws", "tools")
    plane.service("ws", "other")
    path = "/api/v1/services/tools?workspaceId=ws"
    for body, code in (
        ({"hostnames": ["other.lattice"]}, "conflict"),
        ({"networks": ["10.0.7.0/24"]}, "invalid_request"),
        ({"ports": []}, "invalid_request"),
        ({"name": "x"}, "invalid_request"),
        ({"kind": "egress"}, "invalid_request"),
    ):
        assert plane.call("PATCH", path, plane.admin, json=body).json()["code"] == code, body
    assert not plane.events("service.changed")
    missing = plane.call("PATCH", "/api/v1/services/none?workspaceId=ws", plane.admin, json={})
    assert (missing.status_code, missing.json()["code"]) == (404, "service_not_found")


def advertise(plane: Any, *networks: str, name: str = "office", workspace: str = "ws") -> Any:
    body = {"name": name, "workspaceId": workspace, "kind": "network", "networks": list(networks)}
    return plane.call("POST", "/api/v1/services", plane.admin, json=body)


def test_an_advertised_network_is_reached_as_far_as_list_and_token_go(
    plane: Any, gateway: Any
) -> None:
    plane.workspace("ws")
    assert advertise(plane, "10.0.7.0/24").status_code == 201
    permits = [{"to": "10.0.7.0/25", "port": 5432}]
    token = plane.token(kind="workspace", workspaceId="ws", allow=permits)

    def enroll(to: str, port: int = 5432) -> Any:
        return plane.enroll(token, policyPreset="isolated", allow=[{"to": to, "port": port}])

    for to in ("10.0.7.5", "10.0.7.64/26"):
        answer = enroll(to)
        assert answer.status_code == 201, answer.text
        assert grants(gateway, answer.json()) == {(to, "tcp", 5432)}
        network = to if "/" in to else f"{to}/32"
        assert f"AllowedIPs = 10.96.0.0/16, {network}\n" in answer.json()["wireguardConfig"]
    for to, port, code in (
        ("10.0.7.200", 5432, "destination_not_permitted"),
        ("10.0.7.0/24", 5432, "destination_not_permitted"),
        ("10.0.7.5", 22, "destination_not_permitted"),
        ("10.0.8.5", 5432, "destination_not_permitted"),
        ("10.96.7.0/24", 5432, "invalid_request"),
        ("10.0.0.0/8", 5432, "invalid_request"),
    ):
        assert enroll(to, port).json()["code"] == code, to
    wide = plane.token(kind="workspace", workspaceId="ws", allow=[{"to": "0.0.0.0/0"}])
    answer = plane.enroll(wide, policyPreset="isolated", allow=[{"to": "10.0.8.5", "port": 1}])
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "--advertise" in answer.json()["detail"]
    plain = plane.token(kind="workspace", workspaceId="ws", allowIsolated=True)
    answer = plane.enroll(plain, policyPreset="isolated", allow=[{"to": "10.0.7.5", "port": 1}])
    assert answer.json()["code"] == "destination_not_permitted"


def test_networks_that_somebody_has_already_are_refused(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    plane.workspace("other")
    assert advertise(plane, "10.0.7.0/24").status_code == 201
    assert advertise(plane, "10.0.7.0/24").status_code == 201  # the same again
    for networks, workspace, code in (
        (["10.0.7.128/25"], "other", "conflict"),
        (["10.0.0.0/16"], "ws", "conflict"),
        (["10.96.4.0/24"], "other", "conflict"),
        (["10.0.0.0/8"], "other", "conflict"),  # the overlay is in it
        (["10.1.0.0/16", "10.1.2.0/24"], "other", "conflict"),
        (["127.0.0.0/8"], "other", "invalid_request"),
        (["169.254.169.254"], "other", "invalid_request"),
        (["0.0.0.0/0"], "other", "invalid_request"),
        (["10.0.7.1/24"], "other", "invalid_request"),
        (["fd00::/8"], "other", "invalid_request"),
        (["office.example"], "other", "invalid_request"),
        ([], "other", "invalid_request"),
    ):
        answer = advertise(plane, *networks, name="second", workspace=workspace)
        assert answer.json().get("code") == code, (networks, answer.text)


def test_networks_of_a_connector_change_under_running_agents(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    advertise(plane, "10.0.7.0/24")
    office = plane.call("POST", "/api/v1/services/office/connect", plane.admin, json={}).json()
    token = plane.token(kind="workspace", workspaceId="ws", allow=[{"to": "10.0.0.0/8"}])
    allow = [{"to": "10.0.7.5", "port": 80}]
    agent = plane.enrolled(token, policyPreset="isolated", allow=allow)
    path = "/api/v1/services/office?workspaceId=ws"
    plane.manage("PATCH", path, {"networks": ["10.0.8.0/24"]})
    assert gateway.peers[office["peerId"]]["routes"] == ["10.0.8.0/24"]
    assert grants(gateway, agent) == set()
    plane.manage("PATCH", path, {"networks": ["10.0.7.0/24", "10.0.8.0/24"]})
    assert grants(gateway, agent) == {("10.0.7.5", "tcp", 80)}
    plane.manage("DELETE", path)
    assert grants(gateway, agent) == set()


def test_what_an_identity_reaches_is_told_to_itself_and_its_workspace(
    plane: Any, gateway: Any
) -> None:
    token, other = plane.workspace("ws"), plane.workspace("other")
    plane.service("ws", "tools")
    agent, stranger = plane.enrolled(token), plane.enrolled(other)
    path = f"/api/v1/peers/{agent['peerId']}/services"
    for bearer in (agent["enrollmentToken"], token, plane.admin):
        assert plane.call("GET", path, bearer).json()["services"] == agent["services"]
    for bearer in (stranger["enrollmentToken"], other):
        assert plane.call("GET", path, bearer).status_code == 404


def test_a_preset_that_is_delegated_is_no_wider_than_the_parents(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    plane.service("ws", "tools")
    plane.service("ws", "payroll", designated=False)
    set_presets(
        plane,
        clerk={"egress": ["services", "service:payroll"]},
        auditor={"egress": ["service:payroll"]},
        planner={"egress": ["services", "agents"]},
    )
    token = token_for(plane, "clerk")
    clerk = plane.enrolled(token, policyPreset="clerk")

    def delegate(preset: str) -> Any:
        path = f"/api/v1/agents/{clerk['peerId']}/delegate"
        body = {"subAgentName": "sub", "policyPreset": preset}
        return plane.call("POST", path, clerk["enrollmentToken"], json=body)

    assert delegate("planner").json()["code"] == "preset_not_permitted"
    secret = delegate("auditor").json()["enrollmentToken"]
    sub = plane.enrolled(secret, "sub")
    assert [service["name"] for service in sub["services"]] == ["payroll"]
    # What the parent loses, the sub-agent has lost too.
    set_presets(plane, clerk={"egress": ["services"]}, auditor={"egress": ["service:payroll"]})
    assert grants(gateway, sub) == set()


def sub_agent(plane: Any, parent: dict[str, Any], **body: Any) -> dict[str, Any]:
    path = f"/api/v1/agents/{parent['peerId']}/delegate"
    answer = plane.call(
        "POST", path, parent["enrollmentToken"], json={"subAgentName": "sub", **body}
    )
    assert answer.status_code == 201, answer.text
    return dict(plane.enrolled(answer.json()["enrollmentToken"], "sub"))


def test_a_sub_agent_may_have_an_address_of_its_parents_network(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    advertise(plane, "10.0.7.0/24")
    permits = [{"to": "10.0.7.0/24"}]
    token = plane.token(kind="workspace", workspaceId="ws", allow=permits)
    network = [{"to": "10.0.7.0/25", "port": 5432}]
    parent = plane.enrolled(token, policyPreset="isolated", allow=network)
    one = [{"to": "10.0.7.5", "port": 5432}]
    sub = sub_agent(plane, parent, allow=one)
    assert grants(gateway, sub) == {("10.0.7.5", "tcp", 5432)}
    for to, port in (("10.0.7.200", 5432), ("10.0.7.5", 22), ("10.0.7.0/24", 5432)):
        path = f"/api/v1/agents/{parent['peerId']}/delegate"
        body = {"subAgentName": "sub", "allow": [{"to": to, "port": port}]}
        answer = plane.call("POST", path, parent["enrollmentToken"], json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), to


def test_a_preset_that_is_changed_under_a_sub_agent_opens_nothing_to_it(
    plane: Any, gateway: Any
) -> None:
    """A sub-agent accepts agents where all that it comes from do, whenever its preset was made."""
    plane.workspace("ws")
    set_presets(plane, lead={"egress": ["agents"]}, helper={"egress": []})
    token = plane.token(kind="workspace", workspaceId="ws", presets=["lead", "coordinator"])
    lead = plane.enrolled(token, "lead", policyPreset="lead")
    caller = plane.enrolled(token, "caller", policyPreset="coordinator")
    sub = sub_agent(plane, lead, policyPreset="helper")
    wide = {"egress": [], "ingress": ["agents"]}
    set_presets(plane, lead={"egress": ["agents"]}, helper=wide)
    address = sub["overlayIP"].removesuffix("/32")
    assert address not in {to for to, _, _ in grants(gateway, caller)}
    # A gateway that connects anew is told the same, and where the line accepts the sub-agent does.
    gateway.close()
    again = plane.gateway()
    assert address not in {grant["to"] for grant in again.peers[caller["peerId"]]["grants"]}
    set_presets(plane, lead={"egress": ["agents"], "ingress": ["agents"]}, helper=wide)
    assert address in {grant["to"] for grant in again.peers[caller["peerId"]]["grants"]}

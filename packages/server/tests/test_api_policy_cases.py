"""``policy/test``: cases decided by the compiler, on the policy as it is and as it is proposed."""

from __future__ import annotations

from typing import Any

import pytest

PATH = "/api/v1/workspaces/ws/policy/test"


def case(who: str, what: str, port: int, expect: str, **more: Any) -> dict[str, Any]:
    return {"from": who, "to": what, "port": port, "expect": expect, **more}


def listed(*hosts: str, port: int = 443) -> list[dict[str, Any]]:
    return [{"to": host, "port": port} for host in hosts]


@pytest.fixture
def workspace(plane: Any, gateway: Any) -> Any:
    plane.workspace("ws")
    plane.service("ws", "github-tools")
    plane.service("ws", "payroll", 80, designated=False, hostnames=["wages.example"])
    networks = {"name": "office", "kind": "network", "networks": ["10.0.7.0/24"]}
    for body in (networks, {"name": "egress", "kind": "egress"}):
        plane.manage("POST", "/api/v1/services", body | {"workspaceId": "ws"})
    return plane


def sub_agent(workspace: Any, parent: dict[str, Any], preset: str) -> None:
    """Enroll one, named ``sub``."""
    path = f"/api/v1/agents/{parent['peerId']}/delegate"
    wish = {"subAgentName": "sub", "policyPreset": preset}
    secret = workspace.call("POST", path, parent["enrollmentToken"], json=wish).json()
    workspace.enrolled(secret["enrollmentToken"], "sub")


def test_cases_are_decided_as_agents_would_be(workspace: Any) -> None:
    api, name = listed("api.example", "*.example.org"), listed("github-tools.lattice")
    cases = [
        case("sandboxed", "github-tools", 443, "allow"),
        case("sandboxed", "service:github-tools", 443, "allow"),
        case("sandboxed", "github-tools.lattice", 443, "allow"),
        case("sandboxed", "github-tools", 80, "deny"),
        case("sandboxed", "github-tools", 443, "deny", protocol="udp"),
        case("sandboxed", "payroll", 80, "deny"),
        case("sandboxed", "wages.example", 80, "deny"),
        case("sandboxed", "coordinator", 7000, "deny"),
        case("sandboxed", "api.example", 443, "deny"),
        case("coordinator", "preset:coordinator", 7000, "allow"),
        case("coordinator", "sandboxed", 7000, "deny"),
        case("isolated", "github-tools", 443, "deny"),
        case("isolated", "github-tools", 443, "allow", allow=name),
        case("isolated", "api.example", 443, "allow", allow=api),
        case("isolated", "api.example", 80, "deny", allow=api),
        case("isolated", "files.example.org", 443, "allow", allow=api),
        case("isolated", "example.org", 443, "deny", allow=api),
        case("isolated", "10.0.7.5", 5432, "allow", allow=listed("10.0.7.0/25", port=5432)),
        case("isolated", "10.0.7.200", 5432, "deny", allow=listed("10.0.7.0/25", port=5432)),
        case("isolated", "10.0.8.5", 5432, "deny", allow=listed("10.0.8.0/25", port=5432)),
        case("isolated", "169.254.169.254", 80, "deny", allow=api),
    ]
    done = workspace.manage("POST", PATH, {"cases": cases})
    assert [r for r in done["results"] if not r["passed"]] == []
    assert (done["passed"], done["failed"]) == (len(cases), 0)
    # And each fails when the opposite is expected.
    turned = {"allow": "deny", "deny": "allow"}
    wrong = [{**one, "expect": turned[one["expect"]]} for one in cases]
    assert workspace.manage("POST", PATH, {"cases": wrong})["failed"] == len(cases)


def test_a_case_of_what_is_not_there_fails_whatever_it_expects(workspace: Any) -> None:
    cases = [
        case("sandboxd", "github-tools", 443, "deny"),
        case("sandboxed", "github-toolz", 443, "deny"),
        case("sandboxed", "github-toolz.lattice", 443, "deny"),
        case("sandboxed", "service:coordinator", 443, "deny"),
        case("sandboxed", "agent:nobody", 443, "deny"),
        case("agent:nobody", "github-tools", 443, "deny"),
        case("sandboxed", "not a host", 443, "deny"),
    ]
    done = workspace.manage("POST", PATH, {"cases": cases})
    assert done["failed"] == len(cases)
    assert {result["verdict"] for result in done["results"]} == {None}
    assert "github-toolz" in done["results"][1]["why"]


def test_a_proposal_is_decided_and_changes_nothing(workspace: Any, gateway: Any) -> None:
    before = workspace.manage("GET", "/api/v1/workspaces/ws/policy")
    body = {
        "cases": [
            case("auditor", "payroll", 80, "allow"),
            case("auditor", "github-tools", 443, "deny"),
            case("sandboxed", "payroll", 80, "allow"),
        ],
        "policy": {"presets": {"auditor": {"egress": ["service:payroll"]}}},
        "services": {"payroll": {"designated": True}},
    }
    assert workspace.manage("POST", PATH, body)["failed"] == 0
    assert workspace.manage("GET", "/api/v1/workspaces/ws/policy") == before
    assert workspace.manage("POST", PATH, {"cases": body["cases"]})["failed"] == 3
    missing = {"cases": [], "services": {"none": {"designated": True}}}
    answer = workspace.call("POST", PATH, workspace.admin, json=missing)
    assert answer.json()["code"] == "service_not_found"


def test_living_agents_are_parties_too(workspace: Any) -> None:
    token = workspace.token(kind="workspace", workspaceId="ws", presets=["coordinator"])
    one = workspace.enrolled(token, "planner", policyPreset="coordinator")
    sub_agent(workspace, one, "sandboxed")
    cases = [
        case("agent:planner", "github-tools", 443, "allow"),
        case(one["peerId"], "coordinator", 7000, "allow"),
        case("coordinator", "planner", 7000, "allow"),
        case("coordinator", "agent:sub", 7000, "deny"),
        case("sandboxed", one["peerId"], 7000, "deny"),
        case("sub", "github-tools", 443, "allow"),
        case("sub", "planner", 7000, "deny"),
    ]
    done = workspace.manage("POST", PATH, {"cases": cases})
    assert [r for r in done["results"] if not r["passed"]] == []


def test_a_sub_agents_case_is_cut_as_its_grants_are(workspace: Any) -> None:
    def policy(*egress: str) -> dict[str, Any]:
        preset = {"egress": list(egress), "ingress": ["agents"]}
        return {"presets": {"lead": preset, "hand": {**preset, "egress": ["agents"]}}}

    address = "/api/v1/workspaces/ws/policy"
    workspace.manage("PUT", address, policy("services", "agents"))
    token = workspace.token(kind="workspace", workspaceId="ws", presets=["lead"])
    one = workspace.enrolled(token, "planner", policyPreset="lead")
    sub_agent(workspace, one, "hand")
    asked = [case("agent:sub", "preset:lead", 7000, "allow")]
    assert workspace.manage("POST", PATH, {"cases": asked})["failed"] == 0
    narrower = {"cases": asked, "policy": policy("services")}
    [result] = workspace.manage("POST", PATH, narrower)["results"]
    assert result["verdict"] == "deny"


def test_cases_are_the_admins_alone(workspace: Any) -> None:
    token = workspace.token(kind="workspace", workspaceId="ws")
    assert workspace.call("POST", PATH, token, json={"cases": []}).status_code == 403

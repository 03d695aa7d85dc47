"""Sub-agents: enrolled with a one-use token, never more than their parent, gone with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from lattice_sdk.wire import DelegateResponse, Peer


@pytest.fixture
def token(plane: Any) -> str:
    return str(plane.workspace("ws"))


def delegate(plane: Any, parent: dict[str, Any], name: str = "helper", **body: Any) -> Any:
    return plane.call(
        "POST",
        f"/api/v1/agents/{parent['peerId']}/delegate",
        parent["enrollmentToken"],
        json={"subAgentName": name, **body},
    )


def sub_agent(plane: Any, parent: dict[str, Any], name: str = "helper", **body: Any) -> Any:
    answer = delegate(plane, parent, name, **body)
    assert answer.status_code == 201, answer.text
    return plane.enrolled(answer.json()["enrollmentToken"], name)


def renew(plane: Any, one: dict[str, Any], **body: Any) -> Any:
    path = f"/api/v1/peers/{one['peerId']}/renew"
    return plane.call("POST", path, one["enrollmentToken"], json=body)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_published_body_gets_a_token_for_one_sub_agent(
    plane: Any, gateway: Any, token: str
) -> None:
    parent = plane.enrolled(token, "orchestrator", policyPreset="coordinator")
    answer = delegate(plane, parent, "searcher", ttl="10m", policyPreset="sandboxed")
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    told = DelegateResponse.model_validate(answer.json())
    assert told.parent_ref == parent["peerId"]
    assert told.expires_at <= at(parent["expiresAt"])
    secret = told.enrollment_token.get_secret_value()
    child = plane.enrolled(secret, "searcher")
    assert child["policyPreset"] == "sandboxed"
    assert at(child["expiresAt"]) <= at(parent["expiresAt"])
    assert set(gateway.peers) == {parent["peerId"], child["peerId"]}
    again = plane.enroll(secret, "searcher")
    assert (again.status_code, again.json()["code"]) == (401, "token_used_up")


def test_one_use_token_replayed_at_once_gives_one_sub_agent(
    plane: Any, gateway: Any, token: str
) -> None:
    parent = plane.enrolled(token)
    secret = delegate(plane, parent).json()["enrollmentToken"]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: plane.enroll(secret, "helper"), range(24)))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 23
    assert len(plane.peers()) == 2


def test_line_of_delegations_is_shown(plane: Any, gateway: Any, token: str) -> None:
    first = plane.enrolled(token, "first", policyPreset="coordinator")
    second = sub_agent(plane, first, "second", policyPreset="coordinator")
    third = sub_agent(plane, second, "third")
    path = f"/api/v1/peers/{third['peerId']}"
    peer = Peer.model_validate(plane.call("GET", path, third["enrollmentToken"]).json())
    assert peer.parent_ref == second["peerId"]
    assert [one.name for one in peer.chain or ()] == ["first", "second"]
    assert peer.sub_agents == []
    top = plane.call("GET", f"/api/v1/peers/{first['peerId']}", plane.admin).json()
    assert (top["chain"], [one["name"] for one in top["subAgents"]]) == ([], ["second"])
    resource = f"/apis/alattice.io/v1alpha1/namespaces/ws/latticepeers/{third['peerId']}"
    [owner] = plane.call("GET", resource, token).json()["metadata"]["ownerReferences"]
    assert owner["name"] == second["peerId"]


def test_events_tell_who_delegated_to_whom(plane: Any, gateway: Any, token: str) -> None:
    parent = plane.enrolled(token)
    secret = delegate(plane, parent).json()["enrollmentToken"]
    child = plane.enrolled(secret, "helper")
    [event] = plane.events("delegated")
    assert event["peerId"] == parent["peerId"]
    assert event["data"]["subAgentName"] == "helper"
    assert plane.events("enrolled")[-1]["data"]["parentRef"] == parent["peerId"]
    assert plane.events("enrolled")[-1]["data"]["token"] == event["data"]["token"]
    plane.call("DELETE", f"/api/v1/peers/{parent['peerId']}", parent["enrollmentToken"])
    one, other = plane.events("revoked")
    assert (one["peerId"], one["data"]["by"]) == (parent["peerId"], "itself")
    assert other["peerId"] == child["peerId"]
    assert (other["data"]["reason"], other["data"]["parentRef"]) == ("parent", parent["peerId"])
    assert secret not in str(plane.events())


@pytest.mark.parametrize("by", ["itself", "workspace", "admin"])
def test_line_dies_with_its_parent_in_one_change(
    plane: Any, gateway: Any, token: str, by: str
) -> None:
    first = plane.enrolled(token, "first")
    second = sub_agent(plane, first, "second")
    third = sub_agent(plane, second, "third")
    bystander = plane.enrolled(token, "bystander")
    unused = delegate(plane, second).json()["enrollmentToken"]
    before = len(gateway.messages)
    bearer = {"itself": first["enrollmentToken"], "workspace": token, "admin": plane.admin}[by]
    assert plane.call("DELETE", f"/api/v1/peers/{first['peerId']}", bearer).status_code == 204
    assert set(gateway.peers) == {bystander["peerId"]}
    assert len(gateway.messages) == before + 1
    for one in (first, second, third):
        answer = renew(plane, one)
        assert (answer.status_code, answer.json()["code"]) == (404, "peer_not_found")
        assert delegate(plane, one).status_code == 404
    answer = plane.enroll(unused, "helper")
    assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")


def test_gateway_is_told_whose_line_an_agent_is_of(
    plane: Any, gateway: Any, token: str, wait: Callable[..., Any]
) -> None:
    first = plane.enrolled(token, "first")
    second = sub_agent(plane, first, "second")
    third = sub_agent(plane, second, "third")
    renew(plane, third)
    again = plane.gateway()
    wait("the synchronisation", lambda: len(again.peers) == 3)
    for told in (gateway.peers, again.peers):
        lines = {one["peerId"]: told[one["peerId"]].get("line") for one in (first, second, third)}
        root = first["overlayIP"].removesuffix("/32")
        assert lines == {first["peerId"]: None, second["peerId"]: root, third["peerId"]: root}


def test_branch_dies_alone(plane: Any, gateway: Any, token: str) -> None:
    first = plane.enrolled(token, "first")
    second = sub_agent(plane, first, "second")
    third = sub_agent(plane, second, "third")
    other = sub_agent(plane, first, "other")
    path = f"/api/v1/peers/{second['peerId']}"
    # A parent may end what came from it; a sub-agent ends nobody above it or beside it.
    for one in (first, other):
        forbidden = plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", third["enrollmentToken"])
        assert (forbidden.status_code, forbidden.json()["code"]) == (404, "peer_not_found")
    assert plane.call("DELETE", path, first["enrollmentToken"]).status_code == 204
    assert set(gateway.peers) == {first["peerId"], other["peerId"]}
    assert plane.events("revoked")[0]["data"]["by"] == "parent"
    assert plane.call("GET", path, first["enrollmentToken"]).status_code == 404
    assert plane.call("GET", f"/api/v1/peers/{third['peerId']}", token).status_code == 404


def test_expiry_of_the_parent_is_the_sub_agents(
    plane: Any, gateway: Any, token: str, wait: Any
) -> None:
    parent = plane.enrolled(token)
    child = sub_agent(plane, parent)
    renew(plane, parent, ttl="2s")
    assert gateway.peers[child["peerId"]]["expiresIn"] <= 2
    gateway.send({"type": "expired", "peers": [{"id": parent["peerId"], "lateBy": 0.0}]})

    def over() -> bool:
        return renew(plane, child).status_code == 410

    wait("the deadline", over)
    plane.call("DELETE", f"/api/v1/peers/{parent['peerId']}", token)
    assert plane.peers() == []


def test_renewals_never_pass_the_parents_end(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    token = plane.token(kind="workspace", workspaceId="ws", maxLifetime="300s", maxTTL="100s")
    parent = plane.enrolled(token, ttl="20s")
    child = sub_agent(plane, parent, ttl="60s")
    assert at(child["expiresAt"]) <= at(parent["expiresAt"])
    assert at(child["maxExpiresAt"]) <= at(parent["maxExpiresAt"])
    for _ in range(2):
        answer = renew(plane, child, ttl="60s")
        assert at(answer.json()["expiresAt"]) <= at(parent["expiresAt"])
    # What the parent gains its sub-agent may have as well, up to its own longest life.
    later = renew(plane, parent, ttl="100s").json()
    answer = renew(plane, child, ttl="60s").json()
    assert at(parent["expiresAt"]) < at(answer["expiresAt"]) <= at(later["expiresAt"])
    refused = renew(plane, child, ttl="61s")
    assert (refused.status_code, refused.json()["code"]) == (403, "ttl_not_permitted")


def test_parent_that_shortens_its_life_shortens_its_line(
    plane: Any, gateway: Any, token: str
) -> None:
    first = plane.enrolled(token, "first", ttl="1h")
    second = sub_agent(plane, first, "second")
    third = sub_agent(plane, second, "third")
    shorter = renew(plane, first, ttl="30s").json()
    for one in (second, third):
        assert gateway.peers[one["peerId"]]["expiresIn"] <= 30
        shown = plane.call("GET", f"/api/v1/peers/{one['peerId']}", token).json()
        assert at(shown["expiresAt"]) <= at(shorter["expiresAt"])


def test_renewal_that_is_undone_leaves_no_sub_agent_that_ends_later(
    plane: Any, gateway: Any, token: str, wait: Any
) -> None:
    parent = plane.enrolled(token, ttl="60s")
    child = sub_agent(plane, parent)
    gateway.silent = True
    settings = plane.control.settings
    settings.gateway_wait = timedelta(seconds=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(renew, plane, parent, ttl="1h")
        wait("the renewal", lambda: gateway.peers[parent["peerId"]]["expiresIn"] > 3000)
        plane.peers()  # by now it waits, and for as long as was said when it began
        settings.gateway_wait = timedelta(seconds=30)
        # On a parent that lives for an hour its sub-agent gets more than what was left before.
        second = pool.submit(renew, plane, child, ttl="60s")
        wait("its renewal", lambda: len(plane.events("renewed")) == 2)
        assert first.result().status_code == 503
        gateway.silent = False
        gateway.send({"type": "ack", "revision": gateway.messages[-1]["revision"]})
        assert second.result().status_code == 200
    shown = {peer["peerId"]: peer["expiresAt"] for peer in plane.peers()}
    assert at(shown[parent["peerId"]]) == at(parent["expiresAt"])
    assert at(shown[child["peerId"]]) <= at(parent["expiresAt"])


@pytest.mark.parametrize(
    ("preset", "wider"),
    [("sandboxed", "coordinator"), ("isolated", "sandboxed"), ("isolated", "coordinator")],
)
def test_wider_preset_is_refused(plane: Any, gateway: Any, preset: str, wider: str) -> None:
    plane.workspace("ws")
    token = plane.token(kind="workspace", workspaceId="ws", allowIsolated=True)
    parent = plane.enrolled(token, policyPreset=preset)
    answer = delegate(plane, parent, policyPreset=wider)
    assert (answer.status_code, answer.json()["code"]) == (403, "preset_not_permitted")
    secret = delegate(plane, parent).json()["enrollmentToken"]
    answer = plane.enroll(secret, "helper", policyPreset=wider)
    assert (answer.status_code, answer.json()["code"]) == (403, "preset_not_permitted")
    assert len(plane.peers()) == 1


def test_longer_life_is_refused(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    token = plane.token(kind="workspace", workspaceId="ws", maxTTL="30s")
    parent = plane.enrolled(token, ttl="30s")
    answer = delegate(plane, parent, ttl="31s")
    assert (answer.status_code, answer.json()["code"]) == (403, "ttl_not_permitted")
    for ttl in ("0s", "-1s", "1x", 5):
        answer = delegate(plane, parent, ttl=ttl)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_ttl")
    secret = delegate(plane, parent, ttl="5s").json()["enrollmentToken"]
    answer = plane.enroll(secret, "helper", ttl="6s")
    assert (answer.status_code, answer.json()["code"]) == (403, "ttl_not_permitted")


def test_max_lifetime_of_a_delegation_bounds_all_renewals(
    plane: Any, gateway: Any, token: str
) -> None:
    parent = plane.enrolled(token, ttl="1h")
    child = sub_agent(plane, parent, ttl="30s", maxLifetime="60s")
    latest = at(child["maxExpiresAt"])
    assert (latest - at(child["expiresAt"])).total_seconds() <= 60
    answer = renew(plane, child, ttl="30s").json()
    assert at(answer["expiresAt"]) <= at(answer["maxExpiresAt"]) == latest


def test_isolated_sub_agent_of_a_coordinator_reaches_what_it_is_given(
    plane: Any, gateway: Any, token: str
) -> None:
    tools = plane.service("ws", "tools", 443)
    plane.service("ws", "search", 80)
    payroll = plane.service("ws", "payroll", 80, designated=False)
    parent = plane.enrolled(token, policyPreset="coordinator")
    assert len(parent["services"]) == 2
    allow = [{"to": tools["address"], "port": 443}]
    answer = delegate(plane, parent, policyPreset="isolated", allow=allow)
    assert answer.status_code == 201, answer.text
    child = plane.enrolled(answer.json()["enrollmentToken"], "helper")
    assert [service["name"] for service in child["services"]] == ["tools"]
    assert gateway.peers[child["peerId"]]["grants"] == [{**allow[0], "protocol": "tcp"}]
    beyond = [{"to": payroll["address"], "port": 80}]
    answer = delegate(plane, parent, policyPreset="isolated", allow=beyond)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    secret = delegate(plane, parent, policyPreset="isolated", allow=allow).json()
    [other] = [service for service in parent["services"] if service["name"] == "search"]
    for more in (beyond, [{"to": other["address"], "port": 80}]):
        answer = plane.enroll(secret["enrollmentToken"], "helper", allow=[*allow, *more])
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_sub_agent_loses_what_its_parent_loses(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    token = plane.token(kind="workspace", workspaceId="ws", allowIsolated=True)
    tools = plane.service("ws", "tools", 443)
    payroll = plane.service("ws", "payroll", 80, designated=False)
    both = [{"to": tools["address"], "port": 443}, {"to": payroll["address"], "port": 80}]
    parent = plane.enrolled(token, policyPreset="isolated", allow=both)
    child = sub_agent(plane, parent, policyPreset="isolated", allow=both)
    assert len(gateway.peers[child["peerId"]]["grants"]) == 2
    wider = delegate(plane, parent, allow=[{"to": tools["address"], "port": 80}])
    assert (wider.status_code, wider.json()["code"]) == (403, "forbidden")
    plane.manage("DELETE", "/api/v1/services/payroll?workspaceId=ws")
    for one in (parent, child):
        assert [g["port"] for g in gateway.peers[one["peerId"]]["grants"]] == [443]
    lost = delegate(plane, parent, policyPreset="isolated", allow=both)
    assert (lost.status_code, lost.json()["code"]) == (403, "forbidden")
    assert f"{payroll['address']}:80/tcp" in lost.json()["detail"]
    assert delegate(plane, parent, policyPreset="isolated", allow=both[:1]).status_code == 201


def test_policy_that_changes_under_a_parent_changes_for_its_line(
    plane: Any, gateway: Any, token: str
) -> None:
    tools = plane.service("ws", "tools", 443)
    parent = plane.enrolled(token)
    allow = [{"to": tools["address"], "port": 443}]
    child = sub_agent(plane, parent, policyPreset="isolated", allow=allow)
    assert len(gateway.peers[child["peerId"]]["grants"]) == 1
    with sqlite3.connect(plane.settings.data_dir / "lattice.db") as connection:
        connection.execute("UPDATE services SET designated = 0")
    for one in (parent, child):
        assert renew(plane, one).json()["services"] == []
        assert gateway.peers[one["peerId"]]["grants"] == []


def test_service_that_comes_reaches_parent_and_sub_agent(
    plane: Any, gateway: Any, token: str
) -> None:
    parent = plane.enrolled(token)
    child = sub_agent(plane, parent)
    tools = plane.service("ws", "tools", 443)
    plane.enrolled(token)
    for one in (parent, child):
        assert [g["to"] for g in gateway.peers[one["peerId"]]["grants"]] == [tools["address"]]


def test_coordinators_of_one_line_reach_each_other(plane: Any, gateway: Any, token: str) -> None:
    parent = plane.enrolled(token, policyPreset="coordinator")
    child = sub_agent(plane, parent, policyPreset="coordinator")
    quiet = sub_agent(plane, parent, "quiet", policyPreset="sandboxed")

    def reach(one: dict[str, Any]) -> set[str]:
        return {grant["to"] + "/32" for grant in gateway.peers[one["peerId"]]["grants"]}

    assert reach(child) == {parent["overlayIP"]}
    assert reach(parent) == {child["overlayIP"]}
    assert reach(quiet) == set()
    # a gateway that connects anew is told the same
    state = dict(gateway.peers)
    gateway.close()
    again = plane.gateway()
    assert {p: one["grants"] for p, one in again.peers.items()} == {
        p: one["grants"] for p, one in state.items()
    }


def test_depth_is_limited(make_control_plane: Any) -> None:
    with make_control_plane(delegation_depth=2) as plane:
        plane.gateway()
        token = plane.workspace("ws")
        one = plane.enrolled(token)
        two = sub_agent(plane, one)
        three = sub_agent(plane, two)
        answer = delegate(plane, three)
        assert (answer.status_code, answer.json()["code"]) == (403, "delegation_not_permitted")
        # An agent may give less depth on, and no more.
        last = sub_agent(plane, one, "last", delegationDepth=0)
        assert delegate(plane, last).status_code == 403
        still = sub_agent(plane, one, "still", delegationDepth=50)
        assert delegate(plane, sub_agent(plane, still, "below")).status_code == 403
    with make_control_plane(delegation_depth=0) as plane:
        plane.gateway()
        assert delegate(plane, plane.enrolled(plane.workspace("ws"))).status_code == 403


def test_number_of_sub_agents_is_limited_over_the_whole_line(make_control_plane: Any) -> None:
    with make_control_plane(sub_agent_limit=4) as plane:
        plane.gateway()
        token = plane.workspace("ws")
        one = plane.enrolled(token)
        two = sub_agent(plane, one)
        three = sub_agent(plane, two)
        assert delegate(plane, three).status_code == 201
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda who: delegate(plane, who), [one, two, three] * 4))
        assert sorted(a.status_code for a in answers) == [201] + [403] * 11
        assert delegate(plane, plane.enrolled(token)).status_code == 201
        plane.call("DELETE", f"/api/v1/peers/{three['peerId']}", three["enrollmentToken"])
        assert delegate(plane, one).status_code == 201


def test_sub_agents_that_come_and_go_without_pause_are_limited(make_control_plane: Any) -> None:
    with make_control_plane(sub_agent_limit=3, quarantine="10m") as plane:
        plane.gateway()
        token = plane.workspace("ws")
        one = plane.enrolled(token)
        begun = 0
        while (answer := delegate(plane, one)).status_code == 201:
            sub = plane.enrolled(answer.json()["enrollmentToken"], "helper")
            plane.call("DELETE", f"/api/v1/peers/{sub['peerId']}", sub["enrollmentToken"])
            begun += 1
            assert begun <= 12
        assert begun == 12
        assert answer.json()["code"] == "delegation_not_permitted"
        assert "within 10m" in answer.json()["detail"]
        # Another line is not held back.
        assert delegate(plane, plane.enrolled(token)).status_code == 201


def test_undone_renewal_does_not_outlive_a_parent_that_was_shortened_meanwhile(
    plane: Any, gateway: Any, token: str, wait: Any
) -> None:
    parent = plane.enrolled(token, ttl="2h")
    child = sub_agent(plane, parent, ttl="1h")
    gateway.silent = True
    settings = plane.control.settings
    settings.gateway_wait = timedelta(seconds=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(renew, plane, child, ttl="20s")
        wait("the renewal", lambda: gateway.peers[child["peerId"]]["expiresIn"] <= 20)
        plane.peers()  # by now it waits, and for as long as was said when it began
        settings.gateway_wait = timedelta(seconds=30)
        second = pool.submit(renew, plane, parent, ttl="60s")
        wait("the parent's", lambda: len(plane.events("renewed")) == 2)
        assert first.result().status_code == 503
        gateway.silent = False
        gateway.send({"type": "ack", "revision": gateway.messages[-1]["revision"]})
        assert second.result().status_code == 200
    shown = {peer["peerId"]: peer["expiresAt"] for peer in plane.peers()}
    assert at(shown[child["peerId"]]) <= at(shown[parent["peerId"]])
    assert gateway.peers[child["peerId"]]["expiresIn"] <= 60


@pytest.mark.parametrize("generations", [1, 2])
def test_a_delegation_is_bound_to_the_sources_and_types_of_the_lines_token(
    make_control_plane: Any, generations: int
) -> None:
    with make_control_plane(trusted_proxies="127.0.0.1", retention=0) as plane:
        plane.gateway()
        plane.workspace("ws")
        token = plane.token(
            kind="workspace", workspaceId="ws", sources=["10.1.0.0/16"], agentTypes=["search-*"]
        )
        here = {"X-Forwarded-For": "10.1.2.3"}

        def call(path: str, bearer: str, headers: dict[str, str], **body: Any) -> Any:
            return plane.call("POST", path, bearer, json=body, headers=headers)

        wish = {"agentName": "lead", "agentType": "search-lead"}
        one = call("/api/v1/agent-enroll", token, here, **wish).json()
        for _ in range(generations):
            path, bearer = f"/api/v1/agents/{one['peerId']}/delegate", one["enrollmentToken"]
            other = call(path, bearer, here, subAgentName="sub", agentType="payroll")
            assert other.json()["code"] == "agent_type_not_permitted"
            unsaid = call(path, bearer, here, subAgentName="sub")
            assert unsaid.json()["code"] == "agent_type_not_permitted"
            told = call(path, bearer, here, subAgentName="sub", agentType="search-web").json()
            wish = {"agentName": "sub", "agentType": "search-web"}
            elsewhere = {"X-Forwarded-For": "10.2.0.1"}
            stolen = call("/api/v1/agent-enroll", told["enrollmentToken"], elsewhere, **wish)
            assert (stolen.status_code, stolen.json()["code"]) == (403, "source_not_permitted")
            one = call("/api/v1/agent-enroll", told["enrollmentToken"], here, **wish).json()
            assert "peerId" in one


def test_token_is_good_for_the_delegated_name_and_for_enrolling_alone(
    plane: Any, gateway: Any, token: str
) -> None:
    parent = plane.enrolled(token)
    answer = delegate(plane, parent, "helper", agentType="searcher")
    secret = answer.json()["enrollmentToken"]
    for body in ({"agentName": "payroll"}, {"agentName": "helper", "agentType": "admin"}):
        refused = plane.call("POST", "/api/v1/agent-enroll", secret, json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    for method, path in (
        ("GET", "/api/v1/peers"),
        ("GET", "/api/v1/events"),
        ("POST", f"/api/v1/agents/{parent['peerId']}/delegate"),
        ("POST", f"/api/v1/peers/{parent['peerId']}/renew"),
        ("DELETE", f"/api/v1/peers/{parent['peerId']}"),
    ):
        body = {"subAgentName": "x"} if path.endswith("delegate") else None
        refused = plane.call(method, path, secret, json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
    child = plane.enrolled(secret, "helper")
    [enrolled] = [e for e in plane.events("enrolled") if e["peerId"] == child["peerId"]]
    assert enrolled["data"]["agentType"] == "searcher"


def test_nobody_delegates_for_another(plane: Any, gateway: Any, token: str) -> None:
    parent, other = plane.enrolled(token), plane.enrolled(token)
    path = f"/api/v1/agents/{parent['peerId']}/delegate"
    child = sub_agent(plane, parent)
    for bearer, status in (
        (other["enrollmentToken"], 404),
        (child["enrollmentToken"], 404),
        (token, 403),
        (plane.admin, 403),
    ):
        answer = plane.call("POST", path, bearer, json={"subAgentName": "x"})
        assert answer.status_code == status


def test_same_key_again_is_the_same_sub_agent(
    plane: Any, gateway: Any, token: str, key: Callable[[], str]
) -> None:
    parent, public = plane.enrolled(token, ttl="60s"), key()
    secret = delegate(plane, parent).json()["enrollmentToken"]
    one = plane.enrolled(secret, "helper", publicKey=public)
    two = plane.enrolled(secret, "helper", publicKey=public)
    assert one["peerId"] == two["peerId"]
    assert at(two["expiresAt"]) <= at(parent["expiresAt"])
    plane.call("DELETE", f"/api/v1/peers/{parent['peerId']}", token)
    answer = plane.enroll(secret, "helper", publicKey=public)
    assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")


def test_enrollment_and_end_of_the_parent_at_once_leave_no_orphan(
    plane: Any, gateway: Any, token: str
) -> None:
    for _ in range(8):
        parent = plane.enrolled(token)
        secrets = [delegate(plane, parent).json()["enrollmentToken"] for _ in range(3)]
        with ThreadPoolExecutor(4) as pool:
            children = [pool.submit(plane.enroll, secret, "helper") for secret in secrets]
            path = f"/api/v1/peers/{parent['peerId']}"
            removal = pool.submit(plane.call, "DELETE", path, token)
        assert removal.result().status_code == 204
        assert {child.result().status_code for child in children} <= {201, 401}
        assert plane.peers() == []
        assert gateway.peers == {}

"""Host names in ``allow``: addresses, the connector's routes, permissions, and nothing left behind.

The connector's side of the protocol is spoken by the test, over real HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

API = "api.anthropic.com"


class ProtocolConnector:
    """Asks for its routes, and says that it serves them unless ``silent``."""

    def __init__(self, plane: Any, workspace: str, name: str = "egress") -> None:
        self.plane = plane
        self.routes: dict[str, Any] = {}
        self.silent = threading.Event()
        self.ended = threading.Event()
        token = plane.token(kind="service", workspaceId=workspace, service=name)
        answer = plane.call("POST", f"/api/v1/services/{name}/connect", token, json={})
        assert answer.status_code == 201, answer.text
        self.peer = answer.json()["peerId"]
        self.secret = answer.json()["enrollmentToken"]
        self._http = httpx.Client(base_url=plane.url, timeout=30)
        self.serving = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.serving.wait(20), "the connector was not told what to serve"

    def ask(self, applied: int | None = None, wait: float = 0) -> httpx.Response:
        body = {"wait": wait} | ({} if applied is None else {"applied": applied})
        headers = {"Authorization": f"Bearer {self.secret}"}
        return self._http.post(f"/api/v1/peers/{self.peer}/routes", json=body, headers=headers)

    def _run(self) -> None:
        applied = None
        while not self.ended.is_set():
            answer = self.ask(applied, wait=0.3)
            if answer.status_code != 200:
                return
            if not self.silent.is_set():
                self.routes = answer.json()
                applied = self.routes["revision"]
                self.serving.set()

    def names(self) -> dict[str, list[dict[str, Any]]]:
        return {one["name"]: one["ports"] for one in self.routes.get("names", [])}

    def stop(self) -> None:
        self.ended.set()
        self._thread.join(10)
        self._http.close()


@pytest.fixture
def egress(plane: Any, gateway: Any) -> Iterator[Callable[..., Any]]:
    """A factory of connected egress connectors."""
    running = []

    @contextmanager
    def make(workspace: str) -> Iterator[ProtocolConnector]:
        if not any(
            one["kind"] == "egress"
            for one in plane.manage("GET", f"/api/v1/services?workspaceId={workspace}")["items"]
        ):
            body = {"name": "egress", "workspaceId": workspace, "kind": "egress"}
            plane.manage("POST", "/api/v1/services", body)
        connector = ProtocolConnector(plane, workspace)
        running.append(connector)
        try:
            yield connector
        finally:
            connector.stop()

    yield make
    for connector in running:
        connector.stop()


def permitting(plane: Any, workspace: str, *allow: dict[str, Any]) -> str:
    plane.workspace(workspace)
    return str(plane.token(kind="workspace", workspaceId=workspace, allow=list(allow)))


def asks(*hosts: str, port: int = 443) -> dict[str, Any]:
    return {"policyPreset": "isolated", "allow": [{"to": host, "port": port} for host in hosts]}


def test_a_name_gets_an_address_a_grant_and_a_route_before_the_answer(
    plane: Any, gateway: Any, egress: Any
) -> None:
    token = permitting(plane, "ws", {"to": API, "port": 443})
    with egress("ws") as connector:
        answer = plane.enrolled(token, **asks("API.Anthropic.com."))
        (service,) = answer["services"]
        assert service["hostnames"] == [API]
        assert service["ports"] == [{"port": 443, "protocol": "tcp"}]
        assert gateway.peers[answer["peerId"]]["grants"] == [
            {"to": service["address"], "protocol": "tcp", "port": 443}
        ]
        assert gateway.peers[connector.peer]["routes"] == [service["address"]]
        assert connector.names() == {API: service["ports"]}
        (peer,) = [one for one in plane.peers() if one["kind"] == "agent"]
        assert peer["allow"] == [{"to": API, "port": 443, "protocol": "tcp"}]


def test_identities_that_ask_for_one_name_share_its_address_until_the_last_has_ended(
    plane: Any, gateway: Any, egress: Any, wait: Any
) -> None:
    token = permitting(plane, "ws", {"to": "*"})
    with egress("ws") as connector:
        first = plane.enrolled(token, "first", **asks(API))
        second = plane.enrolled(token, "second", **asks(API, "example.com", port=8443))
        addresses = {s["name"]: s["address"] for s in second["services"]}
        assert first["services"][0]["address"] == addresses[API]
        assert len(set(addresses.values())) == 2
        assert connector.names() == {
            API: [{"port": 443, "protocol": "tcp"}, {"port": 8443, "protocol": "tcp"}],
            "example.com": [{"port": 8443, "protocol": "tcp"}],
        }
        assert set(gateway.peers[connector.peer]["routes"]) == set(addresses.values())
        plane.call("DELETE", f"/api/v1/peers/{second['peerId']}", second["enrollmentToken"])
        assert gateway.peers[connector.peer]["routes"] == [addresses[API]]
        wait("the route to go", lambda: connector.names() == {API: first["services"][0]["ports"]})
        plane.call("DELETE", f"/api/v1/peers/{first['peerId']}", first["enrollmentToken"])
        assert "routes" not in gateway.peers[connector.peer]
        wait("the last route to go", lambda: not connector.names())


def test_a_renewal_keeps_name_and_address(plane: Any, gateway: Any, egress: Any) -> None:
    token = permitting(plane, "ws", {"to": API})
    with egress("ws"):
        answer = plane.enrolled(token, **asks(API))
        path = f"/api/v1/peers/{answer['peerId']}/renew"
        renewed = plane.call("POST", path, answer["enrollmentToken"], json={})
        assert renewed.json()["services"] == answer["services"]


def test_the_same_key_again_is_the_same_identity_also_with_names(
    plane: Any, gateway: Any, egress: Any, key: Any
) -> None:
    token = permitting(plane, "ws", {"to": API})
    with egress("ws"):
        request = {**asks(API), "publicKey": key()}
        one, same = plane.enrolled(token, **request), plane.enrolled(token, **request)
        assert (one["peerId"], one["services"]) == (same["peerId"], same["services"])


def test_without_a_connector_nothing_is_enrolled(plane: Any, gateway: Any) -> None:
    token = permitting(plane, "ws", {"to": API})
    for prepare in (lambda: None, lambda: plane.manage("POST", "/api/v1/services", EGRESS)):
        prepare()
        answer = plane.enroll(token, **asks(API))
        assert (answer.status_code, answer.json()["code"]) == (503, "egress_unavailable")
        assert "lattice egress" in answer.json()["detail"]
    assert not plane.peers()
    assert free_addresses(plane) == free_addresses_of_an_empty_overlay(plane) - 1


EGRESS = {"name": "egress", "workspaceId": "ws", "kind": "egress"}


def free_addresses(plane: Any) -> int:
    return len(plane.control.addresses)


def free_addresses_of_an_empty_overlay(plane: Any) -> int:
    return int(plane.control.settings.overlay.num_addresses) - 3


def test_a_connector_that_does_not_take_the_names_up_leaves_nothing_behind(
    make_control_plane: Any, wait: Any
) -> None:
    with make_control_plane(quarantine=0) as plane:
        gateway = plane.gateway()
        token = permitting(plane, "ws", {"to": "*"})
        uses = plane.token(kind="workspace", workspaceId="ws", allow=[{"to": "*"}], uses=1)
        plane.manage("POST", "/api/v1/services", EGRESS)
        connector = ProtocolConnector(plane, "ws")
        try:
            plane.enrolled(token, **asks("example.com"))
            before = dict(gateway.peers)
            connector.silent.set()
            patience = plane.control.settings.gateway_wait
            plane.control.settings.gateway_wait = timedelta(seconds=1)
            answer = plane.enroll(uses, **asks(API))
            assert (answer.status_code, answer.json()["code"]) == (503, "egress_unavailable")
            wait("the gateway to be told", lambda: set(gateway.peers) == set(before))
            routes = before[connector.peer]["routes"]
            wait("the route to go", lambda: gateway.peers[connector.peer]["routes"] == routes)
            connector.silent.clear()
            plane.control.settings.gateway_wait = patience
            assert plane.enroll(uses, **asks(API)).status_code == 201  # the use was given back
        finally:
            connector.stop()


def ask_name(plane: Any, identity: dict[str, Any], name: str) -> httpx.Response:
    path = f"/api/v1/peers/{identity['peerId']}/names"
    return plane.call("POST", path, identity["enrollmentToken"], json={"name": name})  # type: ignore[no-any-return]


def test_a_name_of_a_pattern_is_served_when_it_is_first_asked_for(
    plane: Any, gateway: Any, egress: Any, wait: Any
) -> None:
    token = permitting(plane, "ws", {"to": "*.example.org", "port": 443})
    with egress("ws") as connector:
        answer = plane.enrolled(token, **asks("*.example.org"))
        assert answer["services"] == []
        assert "routes" not in gateway.peers[connector.peer]
        served = ask_name(plane, answer, "Files.example.org.").json()
        assert served["ports"] == [{"port": 443, "protocol": "tcp"}]
        assert gateway.peers[connector.peer]["routes"] == [served["address"]]
        assert gateway.peers[answer["peerId"]]["grants"] == [
            {"to": served["address"], "protocol": "tcp", "port": 443}
        ]
        assert set(connector.names()) == {"files.example.org"}
        assert ask_name(plane, answer, "files.example.org").json() == served
        for name in ("example.org", "evilexample.org", "api.anthropic.com"):
            refused = ask_name(plane, answer, name)
            assert (refused.status_code, refused.json()["code"]) == (
                403,
                "destination_not_permitted",
            )
        for name in ("*.example.org", "10.0.0.1", "a b", "localhost"):
            assert ask_name(plane, answer, name).json()["code"] == "invalid_request", name
        # It is told by a renewal, and the list is shown as it was asked for.
        path = f"/api/v1/peers/{answer['peerId']}/renew"
        renewed = plane.call("POST", path, answer["enrollmentToken"], json={}).json()
        assert [service["name"] for service in renewed["services"]] == ["files.example.org"]
        (peer,) = [one for one in plane.peers() if one["kind"] == "agent"]
        assert [rule["to"] for rule in peer["allow"]] == ["*.example.org"]
        plane.call("DELETE", f"/api/v1/peers/{answer['peerId']}", answer["enrollmentToken"])
        wait("the name to go", lambda: not connector.names())
        assert "routes" not in gateway.peers[connector.peer]


def test_names_of_a_pattern_are_bounded(plane: Any, gateway: Any, egress: Any) -> None:
    token = permitting(plane, "ws", {"to": "*"})
    names = [f"a{number}.example" for number in range(99)]
    with egress("ws"):
        answer = plane.enrolled(token, **asks("*.example.org", *names))
        assert ask_name(plane, answer, "one.example.org").status_code == 200
        refused = ask_name(plane, answer, "two.example.org")
        assert (refused.status_code, refused.json()["code"]) == (403, "destination_not_permitted")


def test_a_sub_agents_name_of_a_pattern_is_within_its_parents(
    plane: Any, gateway: Any, egress: Any
) -> None:
    token = permitting(plane, "ws", {"to": "*.example.org"})
    with egress("ws"):
        parent = plane.enrolled(token, **asks("*.example.org"))
        path = f"/api/v1/agents/{parent['peerId']}/delegate"
        wish = {"subAgentName": "sub", **asks("*.files.example.org")}
        token = plane.call("POST", path, parent["enrollmentToken"], json=wish).json()
        sub = plane.enrolled(token["enrollmentToken"], "sub")
        served = ask_name(plane, sub, "a.files.example.org").json()
        wanted = {"to": served["address"], "protocol": "tcp", "port": 443}
        assert gateway.peers[sub["peerId"]]["grants"] == [wanted]
        assert gateway.peers[parent["peerId"]]["grants"] == []
        assert ask_name(plane, sub, "b.example.org").status_code == 403


def test_a_sub_agent_uses_up_its_own_names_and_not_its_lines(
    plane: Any, gateway: Any, egress: Any
) -> None:
    token = permitting(plane, "ws", {"to": "*"})
    names = [f"a{number}.example" for number in range(99)]
    with egress("ws"):
        parent = plane.enrolled(token, **asks("*.example.org", *names))
        path = f"/api/v1/agents/{parent['peerId']}/delegate"
        wish = {"subAgentName": "sub", **asks("*.example.org")}
        told = plane.call("POST", path, parent["enrollmentToken"], json=wish).json()
        sub = plane.enrolled(told["enrollmentToken"], "sub")
        for number in range(5):
            served = ask_name(plane, sub, f"s{number}.example.org")
            assert served.status_code == 200, served.text
            grants = gateway.peers[sub["peerId"]]["grants"]
            assert {"to": served.json()["address"], "protocol": "tcp", "port": 443} in grants
        assert ask_name(plane, parent, "own.example.org").status_code == 200
        plane.call("DELETE", f"/api/v1/peers/{parent['peerId']}", parent["enrollmentToken"])
        assert [peer["kind"] for peer in plane.peers()] == ["service"]


def test_names_of_a_pattern_are_the_identitys_own(plane: Any, gateway: Any, egress: Any) -> None:
    token = permitting(plane, "ws", {"to": "*.example.org"})
    with egress("ws"):
        one, two = plane.enrolled(token, **asks("*.example.org")), plane.enrolled(token)
        path = f"/api/v1/peers/{one['peerId']}/names"
        body = {"name": "files.example.org"}
        for bearer in (two["enrollmentToken"], token, plane.admin):
            assert plane.call("POST", path, bearer, json=body).status_code in (403, 404)
        assert ask_name(plane, two, "files.example.org").status_code == 403


def test_a_pattern_without_a_connector_is_not_enrolled(plane: Any, gateway: Any) -> None:
    token = permitting(plane, "ws", {"to": "*.example.org"})
    assert plane.enroll(token, **asks("*.example.org")).json()["code"] == "egress_unavailable"
    assert not plane.peers()


PERMISSIONS: list[tuple[list[dict[str, Any]], str, int, str | None]] = [
    ([{"to": API, "port": 443}], API, 80, "destination_not_permitted"),
    ([{"to": API, "port": 443}], "evil.example", 443, "destination_not_permitted"),
    ([{"to": "*.example.org"}], "files.example.org", 443, None),
    ([{"to": "*.example.org"}], "example.org", 443, "destination_not_permitted"),
    ([{"to": "*.example.org"}], "evilexample.org", 443, "destination_not_permitted"),
    ([{"to": "*", "port": 443}], "evil.example", 443, None),
    ([{"to": "*", "port": 443}], "evil.example", 22, "destination_not_permitted"),
    ([], API, 443, "destination_not_permitted"),
    ([{"to": "*.example.org"}], "*.example.org", 443, None),
    ([{"to": "*.example.org"}], "*.files.example.org", 443, None),
    ([{"to": "*.files.example.org"}], "*.example.org", 443, "destination_not_permitted"),
    ([{"to": "files.example.org"}], "*.example.org", 443, "destination_not_permitted"),
    ([{"to": "*"}], "*", 443, "invalid_request"),
    ([{"to": "*"}], "*.*.org", 443, "invalid_request"),
    ([{"to": "*"}], "10.96.0.9", 443, "destination_not_permitted"),
    ([{"to": "*"}], "unknown.lattice", 443, "invalid_request"),
    ([{"to": "*"}], "intranet", 443, "invalid_request"),
    ([{"to": "*"}], "localhost", 443, "invalid_request"),
    ([{"to": "*"}], "127.1", 443, "invalid_request"),
    ([{"to": "*"}], "http://example.com", 443, "invalid_request"),
]


def test_a_name_needs_a_token_that_permits_it(plane: Any, gateway: Any, egress: Any) -> None:
    plane.workspace("ws")
    enrolled = 0
    with egress("ws"):
        for permits, host, port, code in PERMISSIONS:
            token = plane.token(kind="workspace", workspaceId="ws", allow=permits)
            answer = plane.enroll(token, **asks(host, port=port))
            assert answer.json().get("code") == code, (permits, host, port)
            enrolled += code is None
            assert len([peer for peer in plane.peers() if peer["kind"] == "agent"]) == enrolled


def test_a_token_without_a_list_permits_the_workspaces_names_alone(
    plane: Any, gateway: Any, egress: Any
) -> None:
    plane.workspace("ws")
    token = plane.token(kind="workspace", workspaceId="ws", allowIsolated=True)
    service = plane.service("ws", "github-tools", designated=False)
    with egress("ws"):
        answer = plane.enrolled(token, **asks("github-tools.lattice"))
        assert [s["address"] for s in answer["services"]] == [service["address"]]
        assert gateway.peers[answer["peerId"]]["grants"] == [
            {"to": service["address"], "protocol": "tcp", "port": 443}
        ]
        for host in (API, "*.anthropic.com"):
            refused = plane.enroll(token, **asks(host)).json()
            assert refused["code"] == "destination_not_permitted"


def test_names_do_not_take_the_pool_from_everybody_else(
    plane: Any, gateway: Any, egress: Any
) -> None:
    token = permitting(plane, "ws", {"to": "*"})
    with egress("ws"):
        answer = plane.enroll(token, **asks(*(f"a{n}.example" for n in range(101))))
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_workspaces_share_neither_connector_nor_names(
    plane: Any, gateway: Any, egress: Any
) -> None:
    one, two = permitting(plane, "one", {"to": "*"}), permitting(plane, "two", {"to": "*"})
    with egress("one") as mine:
        assert plane.enroll(two, **asks(API)).json()["code"] == "egress_unavailable"
        with egress("two") as theirs:
            first, second = plane.enrolled(one, **asks(API)), plane.enrolled(two, **asks(API))
            assert first["services"][0]["address"] != second["services"][0]["address"]
            assert mine.routes["names"] != theirs.routes["names"]


def test_a_connector_that_takes_over_gets_everything_and_the_former_is_out(
    plane: Any, gateway: Any, egress: Any, wait: Any
) -> None:
    token = permitting(plane, "ws", {"to": "*"})
    with egress("ws") as former:
        plane.enrolled(token, **asks(API))
        with egress("ws") as successor:
            wait("the names", lambda: API in successor.names())
            assert former.peer == successor.peer
            assert former.ask().status_code == 401
            assert len(gateway.peers[successor.peer]["routes"]) == 1
            plane.enrolled(token, **asks("example.com"))
            assert set(successor.names()) == {API, "example.com"}


def test_names_live_on_over_a_restart_of_the_control_plane(
    make_control_plane: Any, tmp_path: Any, wait: Any
) -> None:
    with make_control_plane(data_dir=tmp_path) as plane:
        plane.gateway()
        token = permitting(plane, "ws", {"to": "*"})
        plane.manage("POST", "/api/v1/services", EGRESS)
        connector = ProtocolConnector(plane, "ws")
        answer = plane.enrolled(token, **asks(API))
        connector.stop()
    with make_control_plane(data_dir=tmp_path) as plane:
        gateway = plane.gateway()
        address = answer["services"][0]["address"]
        assert gateway.peers[connector.peer]["routes"] == [address]
        again = ProtocolConnector(plane, "ws")
        try:
            wait("the names", lambda: API in again.names())
        finally:
            again.stop()


def test_only_the_egress_connector_may_ask_for_routes(
    plane: Any, gateway: Any, egress: Any
) -> None:
    token = permitting(plane, "ws", {"to": "*"})
    plane.service("ws", "tool")
    tool = plane.token(kind="service", workspaceId="ws", service="tool")
    service = plane.call("POST", "/api/v1/services/tool/connect", tool, json={}).json()
    with egress("ws") as connector:
        agent = plane.enrolled(token)
        for identity in (agent, service):
            own = f"/api/v1/peers/{identity['peerId']}/routes"
            other = f"/api/v1/peers/{connector.peer}/routes"
            secret = identity["enrollmentToken"]
            assert plane.call("POST", own, secret, json={}).status_code == 403
            assert plane.call("POST", other, secret, json={}).status_code == 404
        for other_token in (token, plane.admin):
            path = f"/api/v1/peers/{connector.peer}/routes"
            assert plane.call("POST", path, other_token, json={}).status_code == 403


def test_refused_flows_are_events_of_the_agent(plane: Any, gateway: Any, egress: Any) -> None:
    token = permitting(plane, "ws", {"to": "*"})
    with egress("ws") as connector:
        agent = plane.enrolled(token, "curious", **asks("rebind.example"))
        refusal = {
            "source": agent["overlayIP"].removesuffix("/32"),
            "name": "rebind.example",
            "port": 443,
            "protocol": "tcp",
            "reason": "metadata",
            "resolved": "169.254.169.254",
            "times": 3,
        }
        path = f"/api/v1/peers/{connector.peer}/refusals"
        told = plane.call("POST", path, connector.secret, json={"refusals": [refusal]})
        assert told.status_code == 204
    (event,) = plane.events("egress")
    assert (event["peerId"], event["name"]) == (agent["peerId"], "curious")
    assert event["data"]["destination"] == "rebind.example"
    assert event["data"]["refused"] == "metadata"
    assert event["data"]["connector"] == connector.peer


def test_private_targets_reach_the_connector_and_are_on_record(
    plane: Any, gateway: Any, egress: Any, wait: Any
) -> None:
    plane.workspace("ws")
    path = "/api/v1/workspaces/ws/policy"
    with egress("ws") as connector:
        wait("the routes", lambda: connector.routes)
        assert connector.routes["privateTargets"] == []
        plane.manage("PUT", path, {"privateTargets": ["10.1.0.0/16"]})
        wait("the policy", lambda: connector.routes["privateTargets"] == ["10.1.0.0/16"])
    assert plane.manage("GET", path)["privateTargets"] == ["10.1.0.0/16"]
    (event,) = plane.events("policy.changed")
    assert event["data"]["policy"]["privateTargets"] == ["10.1.0.0/16"]


def test_there_is_one_egress_connector_in_a_workspace(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    plane.manage("POST", "/api/v1/services", EGRESS)
    plane.manage("POST", "/api/v1/services", EGRESS)  # the same again changes nothing
    other = plane.call("POST", "/api/v1/services", plane.admin, json=EGRESS | {"name": "other"})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


def test_a_sub_agent_reaches_those_of_its_parents_names_that_it_was_given(
    plane: Any, gateway: Any, egress: Any
) -> None:
    token = permitting(plane, "ws", {"to": "*"})
    service = plane.service("ws", "github-tools", designated=False)
    with egress("ws") as connector:
        parent = plane.enrolled(token, **asks(API, "example.com", "github-tools.lattice"))

        def delegated(*hosts: str) -> httpx.Response:
            path = f"/api/v1/agents/{parent['peerId']}/delegate"
            body = {"subAgentName": "sub", **asks(*hosts)}
            return plane.call("POST", path, parent["enrollmentToken"], json=body)  # type: ignore[no-any-return]

        secret = delegated(API, "github-tools.lattice").json()["enrollmentToken"]
        sub = plane.enrolled(secret, "sub")
        addresses = {s["name"]: s["address"] for s in parent["services"]}
        assert {s["name"]: s["address"] for s in sub["services"]} == {
            API: addresses[API],
            "github-tools": service["address"],
        }
        refused = delegated("evil.example")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        plane.call("DELETE", f"/api/v1/peers/{parent['peerId']}", parent["enrollmentToken"])
        assert "routes" not in gateway.peers[connector.peer]


def test_a_name_that_was_a_services_is_no_host_that_a_parent_has(
    plane: Any, gateway: Any, egress: Any
) -> None:
    """The egress connector is no way back to a service that was taken away."""
    plane.workspace("ws")
    token = plane.token(kind="workspace", workspaceId="ws", allowIsolated=True)
    plane.service("ws", "api", hostnames=["api.example.org"])
    with egress("ws"):
        parent = plane.enrolled(token, **asks("api.example.org"))
        path = f"/api/v1/agents/{parent['peerId']}/delegate"
        wish = {"subAgentName": "sub", **asks("api.example.org")}
        before = plane.call("POST", path, parent["enrollmentToken"], json=wish)
        assert before.status_code == 201, before.text
        plane.manage("DELETE", "/api/v1/services/api?workspaceId=ws")
        assert gateway.peers[parent["peerId"]]["grants"] == []
        for refused in (
            plane.call("POST", path, parent["enrollmentToken"], json=wish),
            plane.enroll(before.json()["enrollmentToken"], "sub"),
        ):
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
            assert "api.example.org:443/tcp" in refused.json()["detail"]


def test_a_sub_agent_may_name_a_host_that_its_parents_pattern_covers(
    plane: Any, gateway: Any, egress: Any
) -> None:
    token = permitting(plane, "ws", {"to": "*.example.org"})
    with egress("ws"):
        parent = plane.enrolled(token, **asks("*.example.org"))

        def delegated(host: str) -> Any:
            path = f"/api/v1/agents/{parent['peerId']}/delegate"
            body = {"subAgentName": "sub", **asks(host)}
            return plane.call("POST", path, parent["enrollmentToken"], json=body)

        secret = delegated("files.example.org").json()["enrollmentToken"]
        sub = plane.enrolled(secret, "sub")
        (service,) = sub["services"]
        assert service["hostnames"] == ["files.example.org"]
        assert gateway.peers[sub["peerId"]]["grants"] == [
            {"to": service["address"], "protocol": "tcp", "port": 443}
        ]
        assert delegated("example.org").json()["code"] == "forbidden"

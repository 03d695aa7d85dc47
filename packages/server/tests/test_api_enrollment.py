"""Enroll, renew, delete: the published contract over real HTTP with a gateway that acknowledges."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from lattice_sdk.wire import EnrollResponse, Peer


def seconds_left(answer: Any) -> float:
    """The life of the identity at the moment of the answer, by the server's own two times."""
    then = datetime.fromisoformat(answer.json()["expiresAt"])
    return (then - datetime.fromisoformat(answer.headers["lattice-time"])).total_seconds()


@pytest.fixture
def token(plane: Any) -> str:
    return str(plane.workspace("ws-prod-agents"))


def test_published_body_gets_the_published_answer(plane: Any, gateway: Any, token: str) -> None:
    body = {
        "agentName": "code-executor-001",
        "agentType": "code-executor",
        "workspaceId": "ws-prod-agents",
        "ttl": "1h",
        "policyPreset": "sandboxed",
    }
    answer = plane.call("POST", "/api/v1/agent-enroll", token, json=body)
    assert answer.status_code == 201
    first = ["peerId", "overlayIP", "enrollmentToken", "wireguardConfig", "expiresAt"]
    assert list(answer.json())[:5] == first
    parsed = EnrollResponse.model_validate(answer.json())
    assert parsed.peer_id.startswith("peer-")
    assert parsed.overlay_ip.endswith("/32")
    assert parsed.workspace_id == "ws-prod-agents"
    assert parsed.gateway_ip == "10.96.0.1"
    assert 3590 < seconds_left(answer) <= 3600
    assert answer.headers["cache-control"] == "no-store"
    assert "date" in answer.headers


def test_server_made_key_is_answered_once_and_never_stored(
    plane: Any, gateway: Any, token: str
) -> None:
    answer = plane.enrolled(token)
    config = dict(
        line.split(" = ", 1) for line in answer["wireguardConfig"].splitlines() if " = " in line
    )
    assert config["Address"] == answer["overlayIP"]
    assert config["MTU"] == "1420"
    assert config["PublicKey"] == gateway.hello["publicKey"]
    assert config["Endpoint"] == gateway.hello["endpoint"]
    assert config["AllowedIPs"] == "10.96.0.0/16"
    assert config["PersistentKeepalive"] == "25"
    from base64 import b64decode, b64encode

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.from_private_bytes(b64decode(config["PrivateKey"]))
    public = b64encode(private.public_key().public_bytes_raw()).decode()
    assert gateway.peers[answer["peerId"]]["publicKey"] == public
    database = plane.settings.data_dir / "lattice.db"
    with sqlite3.connect(database) as connection:
        dump = "\n".join(connection.iterdump())
    assert public in dump
    for secret in (config["PrivateKey"], answer["enrollmentToken"], token, plane.admin):
        assert secret not in dump


def test_clients_own_key_leaves_no_private_key_line(
    plane: Any, gateway: Any, token: str, key: Callable[[], str]
) -> None:
    public = key()
    answer = plane.enrolled(token, publicKey=public)
    assert "PrivateKey" not in answer["wireguardConfig"]
    assert gateway.peers[answer["peerId"]]["publicKey"] == public


def test_answer_comes_only_after_the_gateway_has_the_peer(
    plane: Any, gateway: Any, token: str, wait: Any
) -> None:
    gateway.silent = True
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(plane.enroll, token)
        wait("the update", lambda: gateway.peers)
        assert not answer.done()
        gateway.send({"type": "ack", "revision": gateway.messages[-1]["revision"]})
        assert answer.result(60).status_code == 201


def test_same_key_again_is_the_same_identity_with_a_new_token(
    plane: Any, gateway: Any, key: Callable[[], str]
) -> None:
    plane.workspace("ws")
    token = plane.token(kind="workspace", workspaceId="ws", uses=1)
    public = key()
    one = plane.enrolled(token, publicKey=public)
    two = plane.enrolled(token, publicKey=public)
    assert (one["peerId"], one["overlayIP"]) == (two["peerId"], two["overlayIP"])
    assert one["maxExpiresAt"] == two["maxExpiresAt"]
    path = f"/api/v1/peers/{one['peerId']}"
    assert plane.call("GET", path, one["enrollmentToken"]).json()["code"] == "invalid_token"
    assert plane.call("GET", path, two["enrollmentToken"]).status_code == 200
    assert len(plane.peers()) == len(gateway.peers) == 1


@pytest.mark.parametrize("when", ["renewed", "late"])
def test_spent_token_takes_no_identity_away_from_its_owner(
    plane: Any, gateway: Any, key: Callable[[], str], monkeypatch: Any, when: str
) -> None:
    plane.workspace("ws")
    token, public = plane.token(kind="workspace", workspaceId="ws", uses=1), key()
    one = plane.enrolled(token, publicKey=public)
    if when == "renewed":
        plane.call("POST", f"/api/v1/peers/{one['peerId']}/renew", one["enrollmentToken"])
    else:
        monkeypatch.setattr("lattice_server.identities.TAKE_UP_MS", -1)
    answer = plane.enroll(token, publicKey=public)
    assert (answer.status_code, answer.json()["code"]) == (401, "token_used_up")
    path = f"/api/v1/peers/{one['peerId']}"
    assert plane.call("GET", path, one["enrollmentToken"]).status_code == 200


def test_key_of_another_identity_is_refused(
    plane: Any, gateway: Any, token: str, key: Callable[[], str]
) -> None:
    public = key()
    plane.enrolled(token, publicKey=public)
    other = plane.workspace("ws-other")
    for bearer, name, used in (
        (other, "agent", public),
        (token, "another", public),
        (plane.token(kind="workspace", workspaceId="ws-prod-agents"), "agent", public),
        (token, "agent", gateway.hello["publicKey"]),
    ):
        answer = plane.enroll(bearer, name, publicKey=used)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_public_key")
    assert len(plane.peers()) == 1


def test_duplicate_name_is_two_identities(plane: Any, gateway: Any, token: str) -> None:
    one, two = plane.enrolled(token, "same"), plane.enrolled(token, "same")
    assert one["peerId"] != two["peerId"]
    assert one["overlayIP"] != two["overlayIP"]


def test_no_gateway_is_a_quick_503_and_leaves_nothing(plane: Any, token: str) -> None:
    answer = plane.enroll(token)
    assert (answer.status_code, answer.json()["code"]) == (503, "gateway_unavailable")
    assert "retry-after" in answer.headers
    assert plane.peers() == []
    assert plane.events("enrolled") == []


@pytest.mark.parametrize("failure", ["silent", "nack"])
def test_gateway_that_does_not_take_it_leaves_nothing_behind(
    make_control_plane: Any, wait: Any, failure: str
) -> None:
    with make_control_plane() as plane:
        gateway = plane.gateway()
        plane.workspace("ws")
        token = plane.token(kind="workspace", workspaceId="ws", uses=1)
        patience = plane.control.settings.gateway_wait
        plane.control.settings.gateway_wait = timedelta(seconds=0.3)
        before = len(plane.control.addresses)
        if failure == "silent":
            gateway.silent = True
        else:
            gateway.refuse = "no memory"
        answer = plane.enroll(token)
        assert (answer.status_code, answer.json()["code"]) == (503, "gateway_unavailable")
        assert plane.peers() == []
        gateway.close()
        again = plane.gateway()
        assert again.peers == {}
        plane.control.settings.gateway_wait = patience
        plane.enrolled(token)  # the use was given back
        # the address rests, as the gateway may have had it
        assert len(plane.control.addresses) == before - 2


def test_enrollment_survives_a_gateway_that_reconnects_in_time(
    plane: Any, gateway: Any, token: str, wait: Any
) -> None:
    gateway.silent = True
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(plane.enroll, token)
        wait("the update", lambda: gateway.peers)
        gateway.close()
        plane.gateway()
        assert answer.result(60).status_code == 201


def test_answer_lists_the_services_it_reaches(plane: Any, gateway: Any, token: str) -> None:
    tools = plane.service("ws-prod-agents", "github-tools", 443)
    plane.service("ws-prod-agents", "payroll", 80, designated=False)
    plane.workspace("ws-other")
    plane.service("ws-other", "theirs", 443)
    answer = plane.enrolled(token)
    assert answer["services"] == [
        {
            "name": "github-tools",
            "hostnames": ["github-tools.lattice"],
            "address": tools["address"],
            "ports": [{"port": 443, "protocol": "tcp"}],
        }
    ]
    assert gateway.peers[answer["peerId"]]["grants"] == [
        {"to": tools["address"], "protocol": "tcp", "port": 443}
    ]


def test_foreign_tokens_learn_nothing(plane: Any, gateway: Any, token: str) -> None:
    one, other = plane.enrolled(token), plane.workspace("ws-other")
    stranger = plane.enrolled(other)["enrollmentToken"]
    for peer in (one["peerId"], "peer-aaaaaaaaaaaaaaaa"):
        for bearer in (other, stranger):
            for method in ("GET", "DELETE"):
                answer = plane.call(method, f"/api/v1/peers/{peer}", bearer)
                assert (answer.status_code, answer.json()["code"]) == (404, "peer_not_found")
        answer = plane.call("POST", f"/api/v1/peers/{peer}/renew", stranger)
        assert (answer.status_code, answer.json()["code"]) == (404, "peer_not_found")
    for workspace in ("ws-prod-agents", "ws-none"):
        answer = plane.call("GET", f"/api/v1/peers?workspaceId={workspace}", other)
        assert (answer.status_code, answer.json()["code"]) == (403, "workspace_mismatch")
    assert plane.call("GET", f"/api/v1/peers/{one['peerId']}", token).status_code == 200


def test_listing_is_paged_and_fits_the_model(plane: Any, gateway: Any, token: str) -> None:
    ids = [plane.enrolled(token, f"agent-{n}")["peerId"] for n in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        page = plane.call("GET", f"/api/v1/peers?limit=2{cursor}", token).json()
        found += [Peer.model_validate(item).peer_id for item in page["items"]]
        if "next" not in page:
            break
        cursor = f"&cursor={page['next']}"
    assert found == ids
    bad = plane.call("GET", "/api/v1/peers?cursor=zzz", token)
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_request")


def test_lattice_peer_is_the_same_peer(plane: Any, gateway: Any, token: str) -> None:
    one = plane.enrolled(token, "a-1", agentType="code-executor")
    path = "/apis/alattice.io/v1alpha1/namespaces/ws-prod-agents/latticepeers"
    listed = plane.call("GET", path, token).json()
    assert listed["kind"] == "LatticePeerList"
    peer = plane.call("GET", f"{path}/{one['peerId']}", one["enrollmentToken"]).json()
    assert listed["items"] == [peer]
    assert (peer["apiVersion"], peer["kind"]) == ("alattice.io/v1alpha1", "LatticePeer")
    assert peer["metadata"]["annotations"] == {"lattice.io/agent-expires-at": one["expiresAt"]}
    assert peer["metadata"]["labels"] == {
        "lattice.io/agent-type": "code-executor",
        "lattice.io/agent-managed": "true",
    }
    other = path.replace("ws-prod-agents", "ws-x")
    assert plane.call("GET", other, token).status_code == 403
    assert plane.call("GET", f"{other}/{one['peerId']}", plane.admin).status_code == 404


def test_isolated_gets_its_list_where_the_token_permits(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    payroll = plane.service("ws", "payroll", 80, designated=False)
    token = plane.token(kind="workspace", workspaceId="ws", allowIsolated=True)
    allow = [{"to": payroll["address"], "port": 80}]
    one = plane.enrolled(token, policyPreset="isolated", allow=allow)
    assert gateway.peers[one["peerId"]]["grants"] == [
        {"to": payroll["address"], "protocol": "tcp", "port": 80}
    ]
    assert [service["name"] for service in one["services"]] == ["payroll"]
    outside = plane.enroll(token, policyPreset="isolated", allow=[{"to": "10.0.7.5", "port": 80}])
    assert (outside.status_code, outside.json()["code"]) == (403, "destination_not_permitted")
    for to in ("10.96.0.0/24", "10.96.0.1", "::1", "\ud800"):
        answer = plane.call(
            "POST",
            "/api/v1/agent-enroll",
            token,
            content=(
                '{"agentName":"a","policyPreset":"isolated","allow":[{"to":"%s","port":80}]}'
                % ("\\ud800" if to == "\ud800" else to)
            ),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code in (400, 422), to
        assert answer.json()["code"] in ("invalid_request", "invalid_json"), to
    answer = plane.enroll(token, allow=allow)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    plain = plane.token(kind="workspace", workspaceId="ws", presets=["isolated"])
    assert plane.enrolled(plain, policyPreset="isolated")["services"] == []
    answer = plane.enroll(plain, policyPreset="isolated", allow=allow)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_coordinators_learn_of_each_other(plane: Any, gateway: Any, token: str) -> None:
    one = plane.enrolled(token, policyPreset="coordinator")
    two = plane.enrolled(token, policyPreset="coordinator")
    plane.enrolled(token)

    def reach(of: dict[str, Any]) -> list[str]:
        return [grant["to"] for grant in gateway.peers[of["peerId"]]["grants"]]

    assert reach(one) == [two["overlayIP"].removesuffix("/32")]
    assert reach(two) == [one["overlayIP"].removesuffix("/32")]
    plane.call("DELETE", f"/api/v1/peers/{two['peerId']}", token)
    assert reach(one) == []


def test_one_use_token_under_concurrency_gives_one_identity(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    token = plane.token(kind="workspace", workspaceId="ws", uses=1)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: plane.enroll(token), range(32)))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 31
    assert {a.json()["code"] for a in answers if a.status_code == 401} == {"token_used_up"}
    assert len(plane.peers()) == 1


def test_many_at_once_get_distinct_addresses(plane: Any, gateway: Any, token: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: plane.enrolled(token), range(200)))
    assert len({answer["overlayIP"] for answer in answers}) == 200
    assert set(gateway.peers) == {answer["peerId"] for answer in answers}


def test_same_key_at_once_is_one_identity(
    plane: Any, gateway: Any, token: str, key: Callable[[], str]
) -> None:
    public = key()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: plane.enroll(token, publicKey=public), range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["peerId"] for answer in answers}) == 1
    assert len(plane.peers()) == 1

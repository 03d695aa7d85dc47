"""Renew and delete: deadlines move as far as they may, and removal is removal."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest


def seconds_left(answer: Any) -> float:
    """The life of the identity at the moment of the answer, by the server's own two times."""
    then = datetime.fromisoformat(answer.json()["expiresAt"])
    return (then - datetime.fromisoformat(answer.headers["lattice-time"])).total_seconds()


@pytest.fixture
def token(plane: Any) -> str:
    return str(plane.workspace("ws-prod-agents"))


def test_renewal_moves_the_deadline_at_the_gateway_too(
    plane: Any, gateway: Any, token: str
) -> None:
    one = plane.enrolled(token, ttl="10s")
    assert gateway.peers[one["peerId"]]["expiresIn"] <= 10
    answer = plane.call(
        "POST",
        f"/api/v1/peers/{one['peerId']}/renew",
        one["enrollmentToken"],
        json={"ttl": "20s"},
    )
    assert answer.status_code == 200
    assert 15 < seconds_left(answer) <= 20
    assert 15 < gateway.peers[one["peerId"]]["expiresIn"] <= 20
    assert answer.json()["enrollmentToken"] == one["enrollmentToken"]
    assert answer.json()["overlayIP"] == one["overlayIP"]
    # without a body, the life it had
    again = plane.call("POST", f"/api/v1/peers/{one['peerId']}/renew", one["enrollmentToken"])
    assert 15 < seconds_left(again) <= 20


def test_renewal_never_passes_max_expires_at(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    token = plane.token(kind="workspace", workspaceId="ws", maxLifetime="30s", maxTTL="20s")
    one = plane.enrolled(token)
    path = f"/api/v1/peers/{one['peerId']}/renew"
    for _ in range(3):
        answer = plane.call("POST", path, one["enrollmentToken"], json={"ttl": "20s"})
        assert answer.status_code == 200
        assert answer.json()["maxExpiresAt"] == one["maxExpiresAt"]
        assert answer.json()["expiresAt"] <= one["maxExpiresAt"]
    refused = plane.call("POST", path, one["enrollmentToken"], json={"ttl": "21s"})
    assert (refused.status_code, refused.json()["code"]) == (403, "ttl_not_permitted")


def test_renewal_rotates_the_key(
    plane: Any, gateway: Any, token: str, key: Callable[[], str]
) -> None:
    one, other, fresh = plane.enrolled(token), plane.enrolled(token, publicKey=key()), key()
    path = f"/api/v1/peers/{one['peerId']}/renew"
    taken = gateway.peers[other["peerId"]]["publicKey"]
    refused = plane.call("POST", path, one["enrollmentToken"], json={"publicKey": taken})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_public_key")
    answer = plane.call("POST", path, one["enrollmentToken"], json={"publicKey": fresh})
    assert answer.status_code == 200
    assert gateway.peers[one["peerId"]]["publicKey"] == fresh
    # Asked again, as by a client whose answer was lost.
    assert plane.call("POST", path, one["enrollmentToken"], json={"publicKey": fresh}).is_success
    first, again = plane.events("renewed")
    assert "keyChanged" not in again["data"]
    assert first["data"]["keyChanged"] is True


def test_failed_renewal_takes_the_new_key_back(
    make_control_plane: Any, key: Callable[[], str]
) -> None:
    with make_control_plane() as plane:
        token, gateway, old = plane.workspace("ws"), plane.gateway(), key()
        one = plane.enrolled(token, publicKey=old)
        gateway.silent = True
        plane.control.settings.gateway_wait = timedelta(seconds=0.3)
        path = f"/api/v1/peers/{one['peerId']}/renew"
        answer = plane.call("POST", path, one["enrollmentToken"], json={"publicKey": key()})
        assert (answer.status_code, answer.json()["code"]) == (503, "gateway_unavailable")
        gateway.close()
        assert plane.gateway().peers[one["peerId"]]["publicKey"] == old
        assert plane.peers()[0]["expiresAt"] == one["expiresAt"]


def test_expired_identity_cannot_be_renewed(
    plane: Any, gateway: Any, token: str, wait: Any
) -> None:
    one = plane.enrolled(token, ttl="1s")
    path = f"/api/v1/peers/{one['peerId']}"

    def gone() -> bool:
        return bool(plane.call("GET", path, token).status_code == 410)

    wait("the deadline", gone)
    answer = plane.call("POST", f"{path}/renew", one["enrollmentToken"])
    assert (answer.status_code, answer.json()["code"]) == (410, "peer_expired")
    assert plane.peers() == []
    assert plane.call("DELETE", path, one["enrollmentToken"]).status_code == 204


def test_delete_is_answered_after_the_gateway_and_again_without_harm(
    plane: Any, gateway: Any, token: str
) -> None:
    for bearer in ("own", token, plane.admin):
        one = plane.enrolled(token)
        own = one["enrollmentToken"]
        path = f"/api/v1/peers/{one['peerId']}"
        used = own if bearer == "own" else bearer
        assert plane.call("DELETE", path, used).status_code == 204
        assert one["peerId"] not in gateway.peers
        assert plane.call("DELETE", path, used).status_code == 204
        answer = plane.call("POST", f"{path}/renew", own)
        assert (answer.status_code, answer.json()["code"]) == (404, "peer_not_found")
        assert plane.call("GET", path, own).status_code == 404
    assert len(plane.events("revoked")) == 3


def test_delete_does_not_wait_forever_for_a_silent_gateway(make_control_plane: Any) -> None:
    with make_control_plane(delete_wait=0.2) as plane:
        gateway, token = plane.gateway(), plane.workspace("ws")
        one = plane.enrolled(token)
        gateway.silent = True
        path = f"/api/v1/peers/{one['peerId']}"
        assert plane.call("DELETE", path, one["enrollmentToken"]).status_code == 204
        gateway.close()
        two = plane.gateway()
        three = plane.enrolled(token)
        assert set(two.peers) == {three["peerId"]}
        two.close()
        path = f"/api/v1/peers/{three['peerId']}"
        assert plane.call("DELETE", path, three["enrollmentToken"]).status_code == 204


def test_delete_and_renew_at_once_leave_one_truth(plane: Any, gateway: Any, token: str) -> None:
    for _ in range(10):
        one = plane.enrolled(token)
        path, own = f"/api/v1/peers/{one['peerId']}", one["enrollmentToken"]
        with ThreadPoolExecutor(4) as pool:
            renewals = [pool.submit(plane.call, "POST", f"{path}/renew", own) for _ in range(3)]
            removal = pool.submit(plane.call, "DELETE", path, own)
        assert removal.result().status_code == 204
        assert {r.result().status_code for r in renewals} <= {200, 404}
        assert one["peerId"] not in gateway.peers
    assert plane.peers() == []


def test_connector_of_a_revoked_token_cannot_renew(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")
    plane.service("ws", "tools")
    token = plane.token(kind="service", workspaceId="ws", service="tools")
    one = plane.call("POST", "/api/v1/services/tools/connect", token).json()
    made = plane.manage("GET", "/api/v1/tokens")["items"][-1]["id"]
    plane.manage("DELETE", f"/api/v1/tokens/{made}")
    path = f"/api/v1/peers/{one['peerId']}"
    answer = plane.call("POST", f"{path}/renew", one["enrollmentToken"])
    assert (answer.status_code, answer.json()["code"]) == (401, "token_revoked")
    assert plane.call("DELETE", path, one["enrollmentToken"]).status_code == 204


def test_stop_while_the_gateway_is_silent_leaves_nothing(
    make_control_plane: Any, tmp_path: Any, wait: Any
) -> None:
    with make_control_plane(data_dir=tmp_path / "data", gateway_wait=60) as plane:
        gateway, token = plane.gateway(), plane.workspace("ws")
        gateway.silent = True
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(plane.enroll, token)
            wait("the update", lambda: gateway.peers)
            plane.server.should_exit = True
            plane.control._tasks[0].get_loop().call_soon_threadsafe(plane.control.close_streams)
            assert answer.result(60).status_code == 503
    with make_control_plane(data_dir=tmp_path / "data") as plane:
        assert plane.peers() == []


def test_renewals_without_end_leave_few_events_and_each_new_key_is_on_record(
    plane: Any, gateway: Any, token: str, key: Callable[[], str]
) -> None:
    one = plane.enrolled(token, publicKey=key())
    path = f"/api/v1/peers/{one['peerId']}/renew"
    began = time.monotonic()
    for _ in range(40):
        assert plane.call("POST", path, one["enrollmentToken"]).status_code == 200
    took = time.monotonic() - began
    # Ten at once, and one more every ten seconds.
    assert 10 <= len(plane.events("renewed")) <= 10 + took / 10
    body = {"publicKey": key()}
    assert plane.call("POST", path, one["enrollmentToken"], json=body).status_code == 200
    last = plane.events("renewed")[-1]
    assert last["data"]["keyChanged"]
    # What has no event of its own is in the count of the next.
    assert last["data"]["renewals"] == 41

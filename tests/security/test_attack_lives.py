"""Lives that are to be longer than they may: after the end, at the end, in a race with it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from support.tenants import Api, Tenant, new_key
from support.waiting import wait_for


def renew(api: Api, one: dict[str, Any], **body: Any) -> httpx.Response:
    path = f"/api/v1/peers/{one['peerId']}/renew"
    return api.call("POST", path, one["enrollmentToken"], json=body)


def delete(api: Api, one: dict[str, Any], token: str | None = None) -> httpx.Response:
    path = f"/api/v1/peers/{one['peerId']}"
    return api.call("DELETE", path, token or one["enrollmentToken"])


def everything(api: Api, one: dict[str, Any]) -> dict[str, httpx.Response]:
    """All that an identity's token is good for while it lives."""
    token, path = one["enrollmentToken"], f"/api/v1/peers/{one['peerId']}"
    return {
        "renew": renew(api, one),
        "renew with a ttl": renew(api, one, ttl="1h"),
        "rotate": renew(api, one, publicKey=new_key()),
        "look": api.call("GET", path, token),
        "services": api.call("GET", f"{path}/services", token),
        "delegate": api.call(
            *("POST", f"/api/v1/agents/{one['peerId']}/delegate", token),
            json={"subAgentName": "late"},
        ),
    }


@pytest.mark.parametrize("end", ["deleted", "deleted by the workspace", "expired"])
def test_identity_that_has_ended_does_nothing_any_more(api: Api, ours: Tenant, end: str) -> None:
    expires = end == "expired"
    one = api.enrolled(ours.token["token"], ttl="1h")
    waiting = api.call(
        *("POST", f"/api/v1/agents/{one['peerId']}/delegate", one["enrollmentToken"]),
        json={"subAgentName": "late"},
    ).json()["enrollmentToken"]
    if expires:
        assert renew(api, one, ttl="1s").is_success
    else:
        assert delete(api, one, None if end == "deleted" else ours.token["token"]).is_success
    wait_for("the end", lambda: one["peerId"] not in api.gateway_peers())
    for what, answer in everything(api, one).items():
        assert answer.status_code == (410 if expires else 404), (what, answer.text)
        assert answer.json()["code"] == ("peer_expired" if expires else "peer_not_found"), what
    late = api.enroll(waiting, "late")
    assert late.status_code == 401
    assert late.json()["code"] in ("token_revoked", "token_expired")
    assert one["peerId"] not in api.peers()
    assert one["peerId"] not in api.gateway_peers()


def test_ended_identity_is_not_woken_by_its_key(api: Api, ours: Tenant) -> None:
    """The same key is another identity then, and the first one's token stays void."""
    key = new_key()
    one = api.enroll(ours.token["token"], "again", publicKey=key).json()
    assert delete(api, one).status_code == 204
    two = api.enroll(ours.token["token"], "again", publicKey=key).json()
    assert two["peerId"] != one["peerId"]
    assert renew(api, one).status_code == 404
    assert delete(api, one).status_code == 204  # what it was is gone, and nothing else goes
    assert two["peerId"] in api.gateway_peers()
    assert delete(api, two).status_code == 204


def test_renewals_in_a_race_with_the_end_leave_nothing(api: Api, ours: Tenant) -> None:
    for round_ in range(6):
        one = api.enrolled(ours.token["token"])
        child = api.call(
            *("POST", f"/api/v1/agents/{one['peerId']}/delegate", one["enrollmentToken"]),
            json={"subAgentName": "helper"},
        ).json()["enrollmentToken"]
        start = threading.Barrier(6)

        def go(work: Any, *args: Any, start: threading.Barrier = start) -> httpx.Response:
            start.wait()
            answer: httpx.Response = work(*args)
            return answer

        with ThreadPoolExecutor(6) as pool:
            renewals = [pool.submit(go, renew, api, one) for _ in range(3)]
            enrollment = pool.submit(go, api.enroll, child, "helper")
            by = [one["enrollmentToken"], ours.token["token"]]
            ends = [pool.submit(go, delete, api, one, token) for token in by]
        assert {end.result().status_code for end in ends} == {204}, round_
        assert {renewal.result().status_code for renewal in renewals} <= {200, 404}, round_
        assert enrollment.result().status_code in (201, 401), round_
        left = {one["peerId"]}
        if enrollment.result().status_code == 201:
            left.add(enrollment.result().json()["peerId"])
        assert left.isdisjoint(api.peers()), round_
        assert left.isdisjoint(api.gateway_peers()), round_


def test_two_identities_that_want_one_key_do_not_both_get_it(api: Api, ours: Tenant) -> None:
    one, two = (api.enrolled(ours.token["token"]) for _ in range(2))
    key = new_key()
    with ThreadPoolExecutor(3) as pool:
        rotated = [pool.submit(renew, api, who, publicKey=key) for who in (one, two)]
        enrolled = pool.submit(api.enroll, ours.token["token"], "third", publicKey=key)
        answers = [r.result() for r in rotated] + [enrolled.result()]
    good = [answer for answer in answers if answer.is_success]
    assert len(good) == 1
    assert {a.json()["code"] for a in answers if a.is_error} == {"invalid_public_key"}
    holders = [peer for peer in api.peers().values() if peer["publicKey"] == key]
    assert len(holders) == 1
    for who in (one, two, *[a.json() for a in good]):
        delete(api, who, ours.token["token"])


def test_shorter_life_is_held_at_once_by_the_whole_line(api: Api, ours: Tenant) -> None:
    parent = api.enrolled(ours.token["token"], ttl="1h")
    answer = api.call(
        *("POST", f"/api/v1/agents/{parent['peerId']}/delegate", parent["enrollmentToken"]),
        json={"subAgentName": "helper", "maxLifetime": "10h"},
    )
    child = api.enrolled(answer.json()["enrollmentToken"], "helper", ttl="1h")
    assert renew(api, parent, ttl="1s").status_code == 200
    both = {parent["peerId"], child["peerId"]}
    wait_for("the end of both", lambda: both.isdisjoint(api.gateway_peers()))
    assert renew(api, child).status_code == 410
    assert both.isdisjoint(api.peers())


def test_parent_that_ends_takes_all_that_was_made_meanwhile(api: Api, ours: Tenant) -> None:
    """Sub-agents that enroll, delegate and renew while their ancestor is revoked."""
    root = api.enrolled(ours.token["token"], "root")
    stop = threading.Event()
    seen: set[str] = set()

    def breed(parent: dict[str, Any]) -> None:
        while not stop.is_set():
            made = api.call(
                *("POST", f"/api/v1/agents/{parent['peerId']}/delegate"),
                parent["enrollmentToken"],
                json={"subAgentName": "x", "ttl": "1m"},
            )
            if made.status_code != 201:
                return
            child = api.enroll(made.json()["enrollmentToken"], "x")
            if child.status_code == 201:
                seen.add(child.json()["peerId"])
                renew(api, child.json())

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(breed, root)
        wait_for("some sub-agents", lambda: len(seen) > 8)
        assert delete(api, root, ours.token["token"]).status_code == 204
        stop.set()
    line = seen | {root["peerId"]}
    assert line.isdisjoint(api.peers())
    assert line.isdisjoint(api.gateway_peers())

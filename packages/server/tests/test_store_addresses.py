"""The address pool gives each address once, never a reserved one, and takes them back."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from lattice_server.addresses import AddressPool
from lattice_server.store import schema

SMALL = IPv4Network("10.96.0.0/28")


def test_every_host_but_the_gateway_comes_out_once() -> None:
    pool = AddressPool(SMALL)
    taken = [pool.take() for _ in range(13)]
    assert sorted(taken) == sorted(str(h) for h in list(SMALL.hosts())[1:])
    assert pool.take() is None


def test_whole_sixteen_can_be_taken() -> None:
    pool = AddressPool(IPv4Network("10.96.0.0/16"))
    taken = {pool.take() for _ in range(65533)}
    assert len(taken) == 65533
    assert not taken & {None, "10.96.0.0", "10.96.0.1", "10.96.255.255"}
    assert pool.take() is None


def test_addresses_outside_are_left_alone() -> None:
    pool = AddressPool(SMALL)
    for address in ("10.96.0.1", "10.96.0.0", "10.96.0.15", "10.97.0.3"):
        pool.release(address)
        pool.discard(address)
    assert len(pool) == 13


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "release", "discard"]), st.integers(0, 15)), max_size=60
    ),
    st.sets(st.integers(2, 14)),
)
def test_pool_behaves_like_a_set(steps: list[tuple[str, int]], used: set[int]) -> None:
    base = int(SMALL.network_address)
    name = {n: str(SMALL.network_address + n) for n in range(16)}
    pool = AddressPool(SMALL, [name[n] for n in used])
    model = {name[n] for n in range(2, 15)} - {name[n] for n in used}
    assert base
    for step, number in steps:
        if step == "take":
            address = pool.take()
            assert (address is None) == (not model)
            if address is not None:
                assert address in model
                model.remove(address)
        elif step == "release":
            pool.release(name[number])
            model |= {name[number]} if 2 <= number <= 14 else set()
        else:
            pool.discard(name[number])
            model.discard(name[number])
        assert len(pool) == len(model)
        assert {a for a in name.values() if a in pool} == model


def test_one_workspace_leaves_addresses_for_the_others(make_control_plane: Any) -> None:
    """Of 61, the last four are not for a workspace that has had 32: however it goes on."""
    with make_control_plane(overlay="10.96.0.0/26", quarantine="1h") as plane:
        plane.gateway(overlay="10.96.0.0/26")
        greedy, modest = plane.workspace("ws-greedy"), plane.workspace("ws-modest")
        got = 0
        while (answer := plane.enroll(greedy)).status_code == 201:
            one, got = answer.json(), got + 1
            plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", one["enrollmentToken"])
        assert (answer.status_code, answer.json()["code"]) == (503, "address_pool_exhausted")
        assert f"ws-greedy has {got} overlay addresses" in answer.json()["detail"]
        assert got == 57
        for _ in range(4):
            plane.enrolled(modest)
        assert "every address" in plane.enroll(modest).json()["detail"]


def test_addresses_of_a_workspace_have_the_limit_that_is_set(
    make_control_plane: Any, tmp_path: Path
) -> None:
    options = {"workspace_addresses": 3, "quarantine": 1, "reconcile_interval": 0.1}
    with make_control_plane(data_dir=tmp_path, **options) as plane:
        plane.gateway()
        token = plane.workspace("ws")
        plane.service("ws", "tools")
        one, _ = plane.enrolled(token), plane.enrolled(token)
        refused = plane.enroll(token)
        assert (refused.status_code, refused.json()["code"]) == (503, "address_pool_exhausted")
        assert "ws has 3 overlay addresses" in refused.json()["detail"]
        plane.enrolled(plane.workspace("ws-other"))
    # What rests is counted, and a restart counts the same.
    with make_control_plane(data_dir=tmp_path, **{**options, "quarantine": "1h"}) as plane:
        plane.gateway()
        assert plane.enroll(token).status_code == 503
        plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", token)
        assert plane.enroll(token).status_code == 503
        plane.run(_rested(plane.control))
        plane.enrolled(token)
        assert plane.enroll(token).status_code == 503


async def _rested(control: Any) -> None:
    async with control.database.write() as tx:
        await tx.connection.execute(
            update(schema.addresses)
            .where(schema.addresses.c.free_at.is_not(None))
            .values(free_at=1)
        )

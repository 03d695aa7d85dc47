"""The address pool gives each address once, never a reserved one, and takes them back."""

from __future__ import annotations

from ipaddress import IPv4Network

from hypothesis import given, settings
from hypothesis import strategies as st

from lattice_server.addresses import AddressPool

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

"""Whatever is delegated, nothing comes out that the parent does not have."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_server import attenuation
from lattice_server.attenuation import (
    Kin,
    Limits,
    Lines,
    Wish,
    allow_within,
    preset_within,
)
from lattice_server.policy import (
    ANY_PORT,
    AgentRule,
    Grant,
    ServiceRule,
    compile_grants,
)
from lattice_server.presets import BUILT_IN, Preset

addresses = st.integers(2, 9).map(lambda n: f"10.96.0.{n}")
ports = st.integers(1, 3)
protocols = st.sampled_from(["tcp", "udp"])
grants = st.builds(Grant, addresses, protocols, ports) | st.builds(
    Grant, addresses, st.just("any"), st.just(ANY_PORT)
)
words = st.frozensets(st.sampled_from(["services", "agents", "allow"]))
reaches = st.dictionaries(st.sampled_from("abcd"), st.builds(Preset, words, words), min_size=1)

names = st.sampled_from(
    ["example.org", "files.example.org", "a.files.example.org", "evil-example.org"]
)
patterns = st.sampled_from(["*.example.org", "*.files.example.org", "*.org"])
networks = st.builds(
    lambda a, b, length: f"10.{a}.{b}.0/{length}", st.integers(0, 1), st.integers(0, 1), ports
).map(lambda text: text.replace("/1", "/8").replace("/2", "/16").replace("/3", "/24"))
rules = st.fixed_dictionaries(
    {"to": names | patterns | networks | addresses, "protocol": protocols, "port": ports}
)


@pytest.mark.parametrize(("child", "parent"), list(product([*BUILT_IN, "root"], repeat=2)))
def test_order_of_the_presets(child: str, parent: str) -> None:
    permitted = {
        ("sandboxed", "sandboxed"),
        ("sandboxed", "coordinator"),
        ("coordinator", "coordinator"),
        ("isolated", "sandboxed"),
        ("isolated", "coordinator"),
        ("isolated", "isolated"),
    }
    assert preset_within(child, parent) == ((child, parent) in permitted)


@given(reaches, st.data())
def test_preset_order_is_reflexive_transitive_and_never_widens(
    known: dict[str, Preset], data: st.DataObject
) -> None:
    a, b, c = (data.draw(st.sampled_from(sorted(known))) for _ in range(3))
    assert preset_within(a, a, known)
    if preset_within(a, b, known) and preset_within(b, c, known):
        assert preset_within(a, c, known)
    if preset_within(a, b, known):
        assert known[a].ingress <= known[b].ingress
        assert known[a].egress - {"allow"} <= known[b].egress
    assert not preset_within(a, "none", known)
    assert not preset_within("none", a, known)


@given(st.lists(rules, max_size=4), st.lists(rules, max_size=4), st.lists(rules, max_size=4))
def test_allow_subset_is_an_order(a: Any, b: Any, c: Any) -> None:
    assert allow_within(a, a)
    assert allow_within(a, [*a, *b])
    assert allow_within([], b)
    assert not a or not allow_within(a, [])
    if allow_within(a, b) and allow_within(b, c):
        assert allow_within(a, c)


@pytest.mark.parametrize(
    ("rule", "limit", "covered"),
    [
        ("10.96.0.7", "10.96.0.7", True),
        ("10.96.0.7", "10.96.0.0/24", True),
        ("10.96.0.0/24", "10.96.0.7", False),
        ("10.96.0.0/15", "10.96.0.0/16", False),
        ("10.96.0.7", "::/0", False),
        ("::1", "0.0.0.0/0", False),
        ("example.org", "example.org", True),
        ("Example.org.", "example.org", True),
        ("files.example.org", "*.example.org", True),
        ("*.example.org", "*.example.org", True),
        ("*.files.example.org", "*.example.org", True),
        ("example.org", "*.example.org", False),
        ("*.org", "*.example.org", False),
        ("evilexample.org", "*.example.org", False),
        ("*.example.org", "example.org", False),
        ("10.96.0.7", "*.7", False),
        ("example.org", "0.0.0.0/0", False),
    ],
)
def test_destination_is_covered_by_address_network_and_name(
    rule: str, limit: str, covered: bool
) -> None:
    def rules(to: str) -> list[dict[str, Any]]:
        return [{"to": to, "protocol": "tcp", "port": 443}]

    assert allow_within(rules(rule), rules(limit)) is covered
    assert not allow_within(rules(rule), [{"to": limit, "protocol": "udp", "port": 443}])
    assert not allow_within(rules(rule), [{"to": limit, "protocol": "tcp", "port": 444}])


@given(st.frozensets(grants, max_size=8), st.frozensets(grants, max_size=8))
def test_grants_cover_themselves_and_what_is_any(
    one: frozenset[Grant], ceiling: frozenset[Grant]
) -> None:
    limits = Limits.of_grants(ceiling)
    for grant in one:
        covered = grant in ceiling or Grant(grant.to, "any", ANY_PORT) in ceiling
        assert limits.cover(grant.to, grant.protocol, grant.port) == covered


@st.composite
def lines(draw: st.DrawFn) -> tuple[list[AgentRule], list[ServiceRule], list[AgentRule]]:
    """A line of delegations, services and strangers, as they may be after any change of policy."""
    spots = draw(st.permutations([f"10.96.0.{n}" for n in range(2, 12)]))
    line, services, others = [], [], []
    for number, address in enumerate(spots):
        kind = draw(st.sampled_from(["line", "service", "other"])) if number else "line"
        if kind == "service":
            offered = draw(st.frozensets(st.tuples(protocols, ports), max_size=3))
            services.append(ServiceRule(f"s{number}", address, offered, draw(st.booleans())))
            continue
        # Presets at random: the cut must hold whatever was let through at delegation.
        preset = draw(st.sampled_from(sorted(BUILT_IN)))
        allow = draw(st.frozensets(grants, max_size=6))
        rule = AgentRule(f"p{number}", address, preset, allow)
        (line if kind == "line" else others).append(rule)
    return line, services, others


def test_what_an_agent_has_lost_to_its_parent_is_lost_below_it() -> None:
    """Neither a part of what it had, though its parent has that part."""
    part, whole = Grant("10.96.0.7", "tcp", 443), Grant("10.96.0.7", "any", ANY_PORT)
    kin = {
        "first": Kin("10.96.0.2", None, (part,)),
        "second": Kin("10.96.0.3", "first", (whole,)),
        "third": Kin("10.96.0.4", "second", (part,)),
        "other": Kin("10.96.0.5", "first", (part,)),
    }
    assert Lines(kin).bounded("second") == ()
    assert Lines(kin).bounded("third") == ()
    assert Lines(kin).bounded("other") == (part,)


def test_each_of_a_line_calls_back_only_whom_all_between_may_call() -> None:
    def to(agent: str) -> Grant:
        return Grant(f"10.96.0.{agent}", "any", ANY_PORT)

    kin = {
        "1": Kin("10.96.0.1", None, (to("2"),)),
        "2": Kin("10.96.0.2", "1", (to("1"),)),
        "3": Kin("10.96.0.3", "2", (to("1"), to("2"))),
        "4": Kin("10.96.0.4", "3", (to("1"), to("2"), to("3"))),
    }
    assert Lines(kin).bounded("3") == (to("1"), to("2"))
    assert Lines(kin).bounded("4") == (to("1"), to("2"))  # nobody above may call the third
    kin["2"] = Kin("10.96.0.2", "1", ())
    assert Lines(kin).bounded("3") == (to("2"),)
    kin["1"] = Kin("10.96.0.1", None, ())
    assert Lines(kin).bounded("3") == ()


def named(name: str, address: str | None) -> dict[str, Any]:
    """A rule of an allow list, as it is kept."""
    return {"to": name, "protocol": "tcp", "port": 443} | ({"address": address} if address else {})


def test_a_services_name_in_a_list_covers_no_host_beyond() -> None:
    """Or who had a service by its name has the host of that name once the service is gone."""
    host = Grant("10.96.0.99", "tcp", 443)
    asks = (named("api.example.org", host.to),)
    for covering, left in (
        (named("api.example.org", None), ()),
        (named("api.example.org", "10.96.0.98"), (host,)),
        (named("*.example.org", None), (host,)),
        (named("*.files.example.org", None), ()),
    ):
        kin = {
            "parent": Kin("10.96.0.2", None, (), (covering,)),
            "child": Kin("10.96.0.3", "parent", (host,), asks),
        }
        assert Lines(kin).bounded("child") == left
        wish = Wish(
            named("api.example.org", None), Grant("api.example.org", "tcp", 443), named=True
        )
        assert Lines(kin).lacks("parent", [wish]) == ([] if left else [wish])


def test_whose_line_has_a_gap_has_nothing_to_delegate() -> None:
    mine = Grant("10.96.0.7", "tcp", 443)
    kin = {"parent": Kin("10.96.0.2", "nobody", (mine,)), "one": Kin("10.96.0.3", None, (mine,))}
    wish = Wish({"to": mine.to, "protocol": "tcp", "port": 443}, mine)
    assert Lines(kin).lacks("parent", [wish]) == [wish]
    assert Lines(kin).lacks("one", [wish]) == []


def test_a_long_list_is_not_compared_rule_by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent could keep the control plane from everybody else's requests."""
    read = 0
    before = attenuation._network

    def count(text: str) -> Any:
        nonlocal read
        read += 1
        return before(text)

    monkeypatch.setattr(attenuation, "_network", count)
    limits = [named(f"*.x{n}.example", None) for n in range(1000)]
    limits += [named(f"10.{n // 250}.{n % 250}.0/24", None) for n in range(1000)]
    rules = [named(f"y.x{n}.example", None) for n in range(1000)]
    rules += [named(f"10.{n // 250}.{n % 250}.7", None) for n in range(1000)]
    assert allow_within(rules, limits)
    assert read <= len(limits) + len(rules)
    assert not allow_within([*rules, named("10.4.0.7", None)], limits)


def test_each_of_a_long_line_is_cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[str] = []
    before = Lines._cut
    monkeypatch.setattr(
        Lines, "_cut", lambda lines, one: cut.append(one.address) or before(lines, one)
    )
    grants = (Grant("10.96.0.7", "tcp", 443),)
    kin = {str(n): Kin(str(n), str(n - 1) if n else None, grants) for n in range(200)}
    lines = Lines(kin)
    assert {lines.bounded(str(n)) for n in reversed(range(200))} == {grants}
    assert sorted(cut) == sorted(kin)


@given(lines())
def test_sub_agent_reaches_nothing_that_its_line_does_not(
    world: tuple[list[AgentRule], list[ServiceRule], list[AgentRule]],
) -> None:
    line, services, others = world
    everybody = [*line, *others]
    kin = {
        agent.id: Kin(
            agent.address,
            line[n - 1].id if n else None,
            compile_grants(agent, services, everybody),
        )
        for n, agent in enumerate(line)
    }
    assert Lines(kin).bounded(line[0].id) == kin[line[0].id].grants
    for n, agent in enumerate(line):
        own = Lines(kin).bounded(agent.id)
        assert set(own) <= set(kin[agent.id].grants)
        for above in line[:n]:
            reach = Lines(kin).bounded(above.id)
            wide = {grant.to for grant in reach if grant.protocol == "any"}
            back = {one.address for one in line[:n]}
            for grant in own:
                assert grant in reach or grant.to in wide or grant.to in back
                if grant.to in back:
                    # Only where somebody takes calls.
                    called = {r.address: r for r in line}[grant.to]
                    assert BUILT_IN[called.preset].accepts_agents
    assert Lines(kin).bounded("nobody") == ()
    if len(line) > 1:
        del kin[line[0].id]
        assert all(Lines(kin).bounded(agent.id) == () for agent in line[1:])

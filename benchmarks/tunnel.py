"""The tunnel: throughput and latency of each kind, by grants loaded, beside others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import place
from benchmarks.fabrics import cpu_seconds
from benchmarks.pump import exchange, move
from benchmarks.report import Section, percentile
from benchmarks.ways import (
    BETWEEN,
    INTERFACE,
    NAMESPACE,
    PROXY,
    RAW,
    RAW_HUB,
    WIREPROXY,
    Way,
    iperf_rate,
    open_ways,
)

FLAT = 5.0  # per cent
FLAT_WAYS = (BETWEEN, INTERFACE, NAMESPACE, PROXY)
KINDS = {"HTTP take": "Download", "HTTP give": "Upload", "iperf3": "iperf3"}
STREAMS = (1, 8)
POLICY = (
    "the gateway reads and writes its socket and its interface as wireguard-go does; what it adds "
    "is its firewall, once for each train of packets. It would take a firewall in the engine, or "
    "the kernel's WireGuard, so that flows that are known are forwarded without it"
)
GRANTS = (
    "maps are hashed, so that their size costs nothing but misses of the processor's cache; what "
    "is seen is the machine's noise, as the spread tells. It would take a machine that does "
    "nothing else, and more rounds"
)
PROXIES = (
    "both are a userspace network stack over wireguard-go; see the processor time of each. Where "
    "that is less, it would take rounds with nothing beside; where it is not, longer trains of "
    "segments between proxy and stack"
)
SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "levels": [10, 1_000, 10_000, 100_000],
        "rounds": 3,
        "seconds": 0.4,
        "requests": 1000,
        "iperf": True,
        "other": True,
    },
    "quick": {
        "levels": [10, 100_000],
        "rounds": 1,
        "seconds": 0.2,
        "requests": 200,
        "iperf": False,
        "other": True,
    },
    "tiny": {
        "levels": [10, 20],
        "rounds": 1,
        "seconds": 0.2,
        "requests": 5,
        "iperf": False,
        "other": False,
    },
}


def measure(size: str) -> Section:
    """Everything, in a network namespace of the benchmark's own."""
    if (why := place.missing()) is not None:
        section = Section("Tunnel: throughput and latency")
        section.remarks.append(f"The tunnel was not measured: {why}.")
        return section
    return place.run(__name__, **SIZES[size])


def inside(
    *,
    levels: list[int],
    rounds: int,
    seconds: float,
    requests: int,
    iperf: bool,
    other: bool,
) -> Section:
    """The same; called where nothing of the machine's network is."""
    section = Section("Tunnel: throughput and latency")
    with open_ways(section.remarks, iperf=iperf, other=other) as (gateway, ways):
        for number in range(rounds):
            # The grants in the outer loop: a machine that is slower for a while is so for all.
            for level in levels:
                gateway.load(level)
                for way in ways:
                    if way.by_gateway or level == levels[-1]:
                        # iperf3 counts whole seconds, so that it has one round.
                        _measure(way, level, seconds, iperf=number == 0)
        for way in ways:
            _throughput(section, way, levels)
        _compare(section, {way.name: way for way in ways}, levels)
        for way in ways:
            _latency(section, way, requests)
    return section


def _measure(way: Way, level: int, seconds: float, *, iperf: bool) -> None:
    for direction in ("take", "give"):
        for streams in STREAMS:
            before = sum(map(cpu_seconds, way.pids))
            moved, took = move(direction, way.connect, streams, seconds)
            way.note(level, f"HTTP {direction}, {streams}", moved * 8 / took / 1e6)
            # The client has moved some more before and after what it counts.
            share = took / (took + seconds / 5)
            cost = (sum(map(cpu_seconds, way.pids)) - before) * share
            if way.pids and moved:
                way.costs.append(cost / (moved / 1e9))
    if iperf and way.iperf is not None:
        for streams in STREAMS:
            way.note(level, f"iperf3, {streams}", iperf_rate(way, streams, seconds))


def _throughput(section: Section, way: Way, levels: list[int]) -> None:
    last = levels[-1]
    with_grants = f" with {last:,} grants" if way.by_gateway else ""
    for what, name in KINDS.items():
        for streams in STREAMS:
            rates = {
                level: way.rates[level, f"{what}, {streams}"]
                for level in levels
                if (level, f"{what}, {streams}") in way.rates
            }
            if last not in rates:
                continue
            row = f"{way.name}{with_grants}: {name.lower()}, {streams} stream{'s' * (streams > 1)}"
            section.add(row, rates[last], "Mbit/s")
            if way.by_gateway:
                curve = section.curve(f"{name} by grants loaded", "grants", "Mbit/s")
                curve.lines[f"{way.name}, {streams}"] = [
                    (level, statistics.median(values)) for level, values in rates.items()
                ]
    if way.costs:
        section.add(f"{way.name}: processor time of all engines", way.costs, "s/GB")


def _compare(section: Section, ways: dict[str, Way], levels: list[int]) -> None:
    last = levels[-1]
    gateway = ways[BETWEEN]
    if (hub := ways.get(RAW_HUB)) is not None:
        section.at_least(
            f"gateway with {last:,} grants, of wireguard-go in its place",
            _ratios(gateway, last, hub, last),
            "%",
            90,
            note=POLICY,
        )
        _cost(section, gateway, hub)
    if (raw := ways.get(RAW)) is not None:
        section.add(
            f"gateway with {last:,} grants (two hops), of wireguard-go to itself (one hop)",
            _ratios(gateway, last, raw, last),
            "%",
        )
    for name in FLAT_WAYS:
        change = [ratio - 100 for ratio in _ratios(ways[name], last, ways[name], levels[0])]
        section.within(
            f"{name}: rate with {last:,} grants, more than with {levels[0]}",
            change,
            "%",
            FLAT,
            note=GRANTS,
        )
    if (other := ways.get(WIREPROXY)) is not None:
        for direction, name in (("take", "download"), ("give", "upload")):
            ratios = _ratios(
                ways[PROXY], last, other, last, [f"HTTP {direction}, 1", f"HTTP {direction}, 8"]
            )
            section.at_least(f"{PROXY}, of wireproxy: {name}", ratios, "%", 100, note=PROXIES)
        _cost(section, ways[PROXY], other)


def _cost(section: Section, one: Way, other: Way) -> None:
    """What other work on the machine changes least."""
    if one.costs and other.costs:
        ratio = statistics.median(one.costs) / statistics.median(other.costs) * 100
        section.add(f"processor time of a GB, {one.name}, of {other.name}", ratio, "%")


def _ratios(
    one: Way, level: int, other: Way, other_level: int, what: Sequence[str] | None = None
) -> list[float]:
    """Round by round, in per cent, all of what both have."""
    both = what or [
        name for where, name in one.rates if where == level and (other_level, name) in other.rates
    ]
    found = []
    for name in both:
        pairs = zip(one.rates[level, name], other.rates[other_level, name], strict=True)
        found += [a / b * 100 for a, b in pairs if b]
    return found


def _latency(section: Section, way: Way, requests: int) -> None:
    with way.connect() as connection:
        exchange(connection)
        kept = [_seconds(lambda: exchange(connection)) for _ in range(requests)]

    def anew() -> None:
        with way.connect() as connection:
            exchange(connection)

    anew()
    made = [_seconds(anew) for _ in range(max(20, requests // 4))]
    for name, values in (("a small request", kept), ("the same with its connection", made)):
        times = [value * 1000 for value in values]
        section.add(f"{way.name}: {name}, p50", statistics.median(times), "ms")
        section.add(f"{way.name}: {name}, p99", percentile(times, 99), "ms")


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started

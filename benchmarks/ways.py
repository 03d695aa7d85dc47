"""The ways from a client to a server that the tunnel's benchmark goes."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import hubs, pump, rawgo, wireproxy
from lattice_engine import EngineProcess

GATEWAY, PLAIN, DIRECT = "10.96", "10.97", "10.98"  # overlays
PORT, IPERF = 80, 5201
ROOT = Path(__file__).parent.parent
BUSY = 10.0  # seconds
LOOPBACK = "loopback"
RAW = "wireguard-go, TUN to TUN"
RAW_HUB = "wireguard-go between two TUNs"
BETWEEN = "gateway between two TUNs"
INTERFACE, NAMESPACE = "interface", "network namespace"
PROXY = "userspace proxy"
WIREPROXY = "wireproxy"


@dataclass
class Way:
    """One way from a client to a server.

    Attributes:
        name: what it is called in the table.
        connect: makes a connection to the HTTP server.
        pids: engines that carry it.
        iperf: the command of an iperf3 client up to its options; ``None`` where there is none.
        by_gateway: whether grants may matter.
        rates: Mbit/s of each round, by grants and by what was measured.
        costs: seconds of processor time of all engines for each GB.
    """

    name: str
    connect: Callable[[], socket.socket]
    pids: tuple[int, ...] = ()
    iperf: list[str] | None = None
    by_gateway: bool = True
    rates: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    costs: list[float] = field(default_factory=list)

    def note(self, grants: int, what: str, rate: float) -> None:
        """Keep one round's rate."""
        self.rates.setdefault((grants, what), []).append(rate)


def iperf_rate(way: Way, streams: int, seconds: float) -> float:
    """Mbit/s that iperf3 tells of a way."""
    assert way.iperf is not None
    options = ["--json", "--parallel", str(streams), "--time", str(max(1, round(seconds)))]
    deadline = time.monotonic() + BUSY
    while True:
        done = subprocess.run(
            [*way.iperf, *options, "--omit", "0"], capture_output=True, text=True, check=False
        )
        found = json.loads(done.stdout)
        if (error := found.get("error")) is None:
            return float(found["end"]["sum_received"]["bits_per_second"]) / 1e6
        # A server that several ways share may not have done with the one before.
        if "busy" not in error or time.monotonic() > deadline:
            raise RuntimeError(f"{way.name}: iperf3: {error}")
        time.sleep(0.1)


@contextlib.contextmanager
def open_ways(
    remarks: list[str], *, iperf: bool, other: bool
) -> Iterator[tuple[hubs.Gateway, list[Way]]]:
    """Everything running: the gateway, and all ways that this machine has.

    Args:
        remarks: what is left out is said there.
        iperf: with servers and clients of iperf3.
        other: with a program of others, which is fetched and built if need be.
    """
    with contextlib.ExitStack() as stack:
        if iperf and shutil.which("iperf3") is None:
            remarks.append("iperf3 is missing, so its rows are left out (Debian: iperf3).")
            iperf = False
        if iperf:
            remarks.append(
                "iperf3 knows no proxy: for the userspace proxy and wireproxy it goes through a "
                "relay that splices, the same for both. It sends, and runs for a second."
            )
        yield _Ways(stack, remarks, iperf, other).open()


class _Ways:
    """Starts what the ways consist of."""

    def __init__(
        self, stack: contextlib.ExitStack, remarks: list[str], iperf: bool, other: bool
    ) -> None:
        self.stack, self.remarks, self.iperf, self.other = stack, remarks, iperf, other

    def open(self) -> tuple[hubs.Gateway, list[Way]]:
        gateway, device = self.stack.enter_context(hubs.gateway(GATEWAY))
        self.remarks.append(f"The gateway's interface is of the kind {device}.")
        served = self.server("127.0.0.1")
        self.iperf_server(())
        ways = [
            Way(
                LOOPBACK,
                lambda: plain("127.0.0.1", served),
                iperf=self.client((), "127.0.0.1"),
                by_gateway=False,
            )
        ]
        ways += self.raw()
        ways.append(self.between(BETWEEN, gateway))
        connector = self.end(gateway, 2, "netstack")
        connector.forward(PORT, served)
        connector.forward(IPERF, IPERF)
        for name, kind, last in (
            (INTERFACE, "interface", 3),
            (NAMESPACE, "namespace", 4),
            (PROXY, "netstack", 5),
        ):
            agent = self.end(gateway, last, kind)
            ways.append(
                Way(
                    name,
                    lambda agent=agent: agent.connect(connector.address, PORT),
                    (gateway.pid, connector.engine.pid, agent.engine.pid),
                    self.client(agent.within, connector.address)
                    if kind != "netstack"
                    else self.relayed(agent.made["proxy"], connector.address, hubs.SECRET),
                )
            )
        return gateway, ways + self.wireproxy(gateway, connector)

    def raw(self) -> list[Way]:
        """wireguard-go by itself, with one hop and with two."""
        program = rawgo.build()
        if program is None:
            self.remarks.append("wireguard-go could not be built here: its rows are left out.")
            return []
        within, there, pids = self.stack.enter_context(hubs.direct(program, DIRECT))
        port = self.server(there, within)
        self.iperf_server(within)
        one = Way(RAW, lambda: plain(there, port), pids, self.client((), there), by_gateway=False)
        hub = self.stack.enter_context(hubs.plain(program, PLAIN))
        return [one, self.between(RAW_HUB, hub, by_gateway=False)]

    def between(self, name: str, hub: hubs.Hub, *, by_gateway: bool = True) -> Way:
        """From one TUN to another by a hub: both ends are the same for every hub."""
        near, far = self.end(hub, 11, "namespace"), self.end(hub, 12, "namespace")
        listener = self.stack.enter_context(far.listen(PORT))
        self.server(listener.fileno())
        self.iperf_server(far.within)
        return Way(
            name,
            lambda: near.connect(far.address, PORT),
            (hub.pid, near.engine.pid, far.engine.pid),
            self.client(near.within, far.address),
            by_gateway,
        )

    def wireproxy(self, gateway: hubs.Gateway, connector: hubs.End) -> list[Way]:
        if not self.other:
            return []
        program = wireproxy.build()
        if program is None:
            self.remarks.append("wireproxy could not be built here: its rows are left out.")
            return []
        address = f"{gateway.network}.0.6"
        config = (
            f"[Interface]\nPrivateKey = {gateway.admit(address)}\nAddress = {address}/32\n"
            f"[Peer]\nPublicKey = {gateway.public}\nAllowedIPs = {gateway.network}.0.0/16\n"
            f"Endpoint = 127.0.0.1:{gateway.port}\nPersistentKeepalive = 25\n"
        )
        proxy, pid = self.stack.enter_context(wireproxy.running(program, config))
        host, _, port = proxy.removeprefix("http://").partition(":")
        return [
            Way(
                WIREPROXY,
                lambda: hubs.by_connect((host, int(port)), connector.address, PORT),
                (gateway.pid, connector.engine.pid, pid),
                self.relayed({"host": host, "port": port}, connector.address),
            )
        ]

    def end(self, hub: hubs.Hub, last: int, kind: str) -> hubs.End:
        engine = self.stack.enter_context(EngineProcess.start_netstack())
        return hub.open(engine, last, {"kind": kind})

    def server(self, at: str | int, within: tuple[str, ...] = ()) -> int:
        """An HTTP server on an address, or on a listener of ours; its port."""
        numbers = [at] if isinstance(at, int) else []
        process = pump.start("serve", str(at), within=within, descriptors=numbers)
        self._end_with_the_rest(process)
        assert process.stdout is not None
        return int(process.stdout.readline())

    def iperf_server(self, within: tuple[str, ...]) -> None:
        if not self.iperf:
            return
        process = subprocess.Popen(
            [*within, "iperf3", "--server", "--forceflush"], stdout=subprocess.PIPE
        )
        self._end_with_the_rest(process)
        assert process.stdout is not None
        while b"listening" not in (line := process.stdout.readline()):
            if not line:
                raise RuntimeError("iperf3 did not start")

    def client(self, within: tuple[str, ...], to: str) -> list[str] | None:
        return [*within, "iperf3", "--client", to] if self.iperf else None

    def relayed(self, proxy: dict[str, Any], to: str, *secret: str) -> list[str] | None:
        """iperf3 through an HTTP proxy, of which it knows nothing."""
        if not self.iperf:
            return None
        command = [sys.executable, "-m", "benchmarks.relay", f"{proxy['host']}:{proxy['port']}"]
        process = subprocess.Popen(
            [*command, f"{to}:{IPERF}", *secret], cwd=ROOT, stdout=subprocess.PIPE
        )
        self._end_with_the_rest(process)
        assert process.stdout is not None
        return [
            "iperf3",
            "--client",
            "127.0.0.1",
            "--port",
            process.stdout.readline().decode().strip(),
        ]

    def _end_with_the_rest(self, process: subprocess.Popen[bytes]) -> None:
        self.stack.enter_context(process)
        self.stack.callback(process.kill)


def plain(host: str, port: int) -> socket.socket:
    """A connection of this network namespace."""
    connection = socket.create_connection((host, port), 20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection

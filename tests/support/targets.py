"""What a program that got out would find: services of the host that answer anybody."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.node import BRIDGE

GREETING = b"you are out\n"
GROUP = "239.192.77.77"  # RFC 2365: organization-local scope
MDNS = ("224.0.0.251", 5353)  # RFC 6762, 3
SECRET = "sesame-of-the-host"


@dataclass
class Targets:
    """Where the services of the host are.

    Attributes:
        addresses: IPv4 addresses of the host, loopback first.
        seen: senders of datagrams that came, with their text.
        giver: a path socket that gives a descriptor away to whoever says something.
        connected: an inheritable descriptor of a connection of the host.
        victim: a process of the host with a secret in its environment.
    """

    addresses: list[str] = field(default_factory=list)
    tcp: int = 0
    udp: int = 0
    tcp6: int = 0
    udp6: int = 0
    multicast: int = 0
    dns: int = 0
    unix: Path = Path()
    unix_datagram: Path = Path()
    giver: Path = Path()
    abstract: str = ""
    connected: int = -1
    victim: int = 0
    seen: list[tuple[str, bytes]] = field(default_factory=list)


def own_addresses() -> list[str]:
    """The IPv4 addresses of this machine, loopback first (rtnetlink(7), RTM_GETADDR).

    Without that of the pods' bridge, which goes when other tests have run their pods.
    """
    found = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(5)
        netlink.send(struct.pack("IHHIIB7x", 24, 22, 0x301, 1, 0, socket.AF_INET))
        while True:
            data = netlink.recv(1 << 16)
            while len(data) >= 16:
                length, kind = struct.unpack("IH", data[:6])
                if kind == 3:  # NLMSG_DONE
                    return sorted(found, key=lambda address: not address.startswith("127."))
                attributes, told = data[24:length], dict[int, bytes]()
                while len(attributes) >= 4:
                    size, number = struct.unpack("HH", attributes[:4])
                    told[number] = attributes[4:size]
                    attributes = attributes[(size + 3) & ~3 :]
                # IFA_LABEL and IFA_ADDRESS
                if told.get(3, b"").rstrip(b"\0") != BRIDGE.encode():
                    found.append(socket.inet_ntoa(told[1]))
                data = data[length:]


def own_addresses6() -> list[str]:
    """The IPv6 addresses of this machine that need no interface beside them, loopback first."""
    found = []
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0]))
            if not address.startswith("fe80:"):
                found.append(address)
    return sorted(found, key=lambda address: address != "::1")


def _open_both(open_socket: Callable[[int, int], socket.socket]) -> int:
    """A port for datagrams and for streams: what is free for one may be taken for the other."""
    for _ in range(50):
        port = int(open_socket(socket.SOCK_DGRAM, 0).getsockname()[1])
        try:
            open_socket(socket.SOCK_STREAM, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return port
    raise AssertionError("no port is free for both, in fifty tries")


@contextlib.contextmanager
def start_targets(directory: Path) -> Iterator[Targets]:
    """Start them; all end with the block.

    Args:
        directory: for the path sockets.
    """
    targets = Targets(addresses=own_addresses())
    with contextlib.ExitStack() as stack:
        streams: list[socket.socket] = []
        datagrams: list[socket.socket] = []

        def open_socket(family: int, kind: int, address: object) -> socket.socket:
            opened = stack.enter_context(socket.socket(family, kind))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind(address)
            if kind == socket.SOCK_STREAM:
                opened.listen()
            (streams if kind == socket.SOCK_STREAM else datagrams).append(opened)
            return opened

        every = ("0.0.0.0", 0)
        tcp = open_socket(socket.AF_INET, socket.SOCK_STREAM, every)
        targets.tcp = tcp.getsockname()[1]
        targets.udp = open_socket(socket.AF_INET, socket.SOCK_DGRAM, every).getsockname()[1]
        six = ("::", 0)
        targets.tcp6 = open_socket(socket.AF_INET6, socket.SOCK_STREAM, six).getsockname()[1]
        targets.udp6 = open_socket(socket.AF_INET6, socket.SOCK_DGRAM, six).getsockname()[1]
        group = open_socket(socket.AF_INET, socket.SOCK_DGRAM, every)
        targets.multicast = group.getsockname()[1]
        membership = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
        group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        neighbours = open_socket(socket.AF_INET, socket.SOCK_DGRAM, MDNS)
        membership = socket.inet_aton(MDNS[0]) + socket.inet_aton("127.0.0.1")
        neighbours.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        targets.dns = _open_both(lambda kind, port: open_socket(socket.AF_INET, kind, ("", port)))
        targets.unix = directory / "service.sock"
        open_socket(socket.AF_UNIX, socket.SOCK_STREAM, str(targets.unix))
        targets.unix_datagram = directory / "log.sock"
        open_socket(socket.AF_UNIX, socket.SOCK_DGRAM, str(targets.unix_datagram))
        targets.giver = directory / "giver.sock"
        open_socket(socket.AF_UNIX, socket.SOCK_STREAM, str(targets.giver))
        targets.abstract = f"@lattice-escape-{os.getpid()}"
        open_socket(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + targets.abstract[1:])
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", targets.tcp)))
        connection.set_inheritable(True)
        targets.connected = connection.fileno()
        victim = stack.enter_context(_victim())
        targets.victim = victim.pid
        server = threading.Thread(target=_serve, args=(streams, datagrams, targets, stack))
        wake, told = socket.socketpair()
        streams.append(told)
        server.start()
        try:
            yield targets
        finally:
            wake.close()
            server.join()
            told.close()


@contextlib.contextmanager
def _victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        env={**os.environ, "HOST_SECRET": SECRET},
    ) as victim:
        try:
            yield victim
        finally:
            victim.kill()


def _serve(
    streams: list[socket.socket],
    datagrams: list[socket.socket],
    targets: Targets,
    stack: contextlib.ExitStack,
) -> None:
    """Answer until the last of ``streams``, one end of a pair, is at its end."""
    with selectors.DefaultSelector() as selector:
        for listener in [*streams, *datagrams]:
            selector.register(listener, selectors.EVENT_READ, listener)
        while True:
            for key, _ in selector.select():
                ready: socket.socket = key.data
                if ready is streams[-1]:
                    return
                with contextlib.suppress(OSError):
                    if ready in streams:
                        accepted = stack.enter_context(ready.accept()[0])
                        if ready.getsockname() == str(targets.giver):
                            socket.send_fds(accepted, [b"take it\n"], [accepted.fileno()])
                        selector.register(accepted, selectors.EVENT_READ, accepted)
                    elif ready in datagrams:
                        data, sender = ready.recvfrom(4096)
                        targets.seen.append((str(sender), data))
                        if sender:
                            ready.sendto(GREETING, sender)
                    elif ready.recv(4096):
                        ready.sendall(GREETING)
                    else:
                        selector.unregister(ready)
                        ready.close()

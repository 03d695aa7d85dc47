"""A gateway that moves: a relay in front of it, and programs that find it by a name."""

from __future__ import annotations

import os
import select
import socket
import threading
from pathlib import Path

# A user and mount namespace whose /etc/hosts is a file of the test's.
OWN_HOSTS = (
    *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c"),
    'mount --bind "$0" /etc/hosts && exec "$@"',
)


class DatagramRelay:
    """Context manager. What comes in at ``host`` goes to a UDP port of loopback, and back.

    Args:
        host: address of loopback to listen on.
        target: that port.
        port: to listen on; any when left out.

    Attributes:
        port: where it listens.
    """

    def __init__(self, host: str, target: int, port: int = 0) -> None:
        self._target = target
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.bind((host, port))
        self.port: int = self._front.getsockname()[1]
        self._backs: dict[tuple[str, int], socket.socket] = {}
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> DatagramRelay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        """End it. Again without effect."""
        if self._stop < 0:
            return
        os.close(self._stop)
        self._stop = -1
        self._thread.join(10)
        os.close(self._wake)
        for one in (self._front, *self._backs.values()):
            one.close()

    def _run(self) -> None:
        while True:
            clients = {back: client for client, back in self._backs.items()}
            ready, _, _ = select.select([self._wake, self._front, *clients], [], [])
            if self._wake in ready:
                return
            for one in ready:
                try:
                    packet, source = one.recvfrom(65536)
                    if one is self._front:
                        self._back(source).send(packet)
                    else:
                        self._front.sendto(packet, clients[one])
                except ConnectionError:
                    continue  # nobody listens there just now

    def _back(self, client: tuple[str, int]) -> socket.socket:
        if client not in self._backs:
            back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            back.connect(("127.0.0.1", self._target))
            self._backs[client] = back
        return self._backs[client]


def write_hosts(file: Path, **names: str) -> None:
    """Let names lead to addresses. In place: the file is mounted."""
    lines = ["127.0.0.1 localhost", *(f"{to} {name}.test" for name, to in names.items())]
    file.write_text("\n".join(lines) + "\n")

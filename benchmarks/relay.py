"""Lets a program that knows no proxy go through one: a port on loopback that leads to one target.

    python -m benchmarks.relay HOST:PORT TARGET:PORT [SECRET]    prints its port

Bytes are spliced from socket to socket and never seen here (splice(2)), so that next to nothing of
the processor is taken from what is measured.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

from benchmarks.hubs import by_connect

AT_ONCE = 1 << 20  # bytes


def carry(source: socket.socket, sink: socket.socket) -> None:
    """All there is from one to the other, and then its end."""
    read, write = os.pipe()
    with contextlib.suppress(OSError):
        while moved := os.splice(source.fileno(), write, AT_ONCE):
            while moved:
                moved -= os.splice(read, sink.fileno(), moved)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
    os.close(read)
    os.close(write)


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    proxy, target = (one.rpartition(":") for one in arguments[:2])
    secret = arguments[2] if len(arguments) > 2 else ""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            near, _ = listener.accept()
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far = by_connect((proxy[0], int(proxy[2])), target[0], int(target[2]), secret)
            far.settimeout(None)
            for ends in ((near, far), (far, near)):
                threading.Thread(target=carry, args=ends, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])

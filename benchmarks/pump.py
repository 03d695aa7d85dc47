"""Moves bytes over sockets that somebody else has made, in a process of its own.

    python -m benchmarks.pump serve HOST|FD     an HTTP server; prints its port
    python -m benchmarks.pump take SECONDS FD…  downloads over each; prints bytes and seconds
    python -m benchmarks.pump give SECONDS FD…  uploads over each; likewise

The server speaks as much HTTP as its client: GET / is answered with two bytes over a connection
that stays, GET /endless never ends, POST /sink takes all there is and answers with what it got.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

CHUNK = 256 * 1024
SMALL = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
ENDLESS = b"GET /endless HTTP/1.1\r\nHost: bench\r\n\r\n"
SINK = b"POST /sink HTTP/1.1\r\nHost: bench\r\nTransfer-Encoding: identity\r\n\r\n"
END = b"\r\n\r\n"
ROOT = Path(__file__).parent.parent


def start(
    *arguments: str, within: Sequence[str] = (), descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """This program with descriptors of ours, by a command that leads into a namespace."""
    return subprocess.Popen(
        [*within, sys.executable, "-m", "benchmarks.pump", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        pass_fds=descriptors,
    )


def move(
    direction: str, connect: Callable[[], socket.socket], streams: int, seconds: float
) -> tuple[int, float]:
    """Bytes that so many connections have moved in so many seconds, and how many those were.

    Args:
        direction: ``take`` or ``give``.
        connect: makes one connection.
        streams: how many at once.
        seconds: for how long.
    """
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(connect()) for _ in range(streams)]
        numbers = [one.fileno() for one in made]
        with start(direction, str(seconds), *map(str, numbers), descriptors=numbers) as process:
            assert process.stdout is not None
            answer = json.loads(process.stdout.read())
    return answer["bytes"], answer["seconds"]


def exchange(connection: socket.socket) -> None:
    """One small request and its answer."""
    connection.sendall(SMALL)
    seen = b""
    while len(seen) < len(ANSWER):
        more = connection.recv(4096)
        if not more:
            raise RuntimeError("the server closed the connection")
        seen += more


def _serve(listener: socket.socket) -> None:
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError), connection:
        waiting = b""
        while True:
            while END not in waiting:
                more = connection.recv(4096)
                if not more:
                    return
                waiting += more
            request, _, waiting = waiting.partition(END)
            if request.startswith(b"GET /endless"):
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                chunk = bytes(CHUNK)
                while True:
                    connection.sendall(chunk)
            if request.startswith(b"POST"):
                buffer, got = bytearray(CHUNK), len(waiting)
                while size := connection.recv_into(buffer):
                    got += size
                connection.sendall(str(got).encode())
                return
            connection.sendall(ANSWER)


def _run(direction: str, seconds: float, connections: list[socket.socket]) -> None:
    """The first fifth is not counted: connections grow their windows."""
    moved = [0] * len(connections)
    over = threading.Event()

    def take(number: int, connection: socket.socket) -> None:
        buffer = bytearray(CHUNK)
        connection.sendall(ENDLESS)
        while not over.is_set():
            size = connection.recv_into(buffer)
            if not size:
                raise RuntimeError("the server closed the connection")
            moved[number] += size

    def give(number: int, connection: socket.socket) -> None:
        chunk = memoryview(bytes(CHUNK))
        connection.sendall(SINK)
        while not over.is_set():
            moved[number] += connection.send(chunk)

    work = {"take": take, "give": give}[direction]
    for number, connection in enumerate(connections):
        connection.settimeout(20)
        threading.Thread(target=work, args=(number, connection), daemon=True).start()
    time.sleep(seconds / 5)
    before, started = sum(moved), time.perf_counter()
    time.sleep(seconds)
    print(json.dumps({"bytes": sum(moved) - before, "seconds": time.perf_counter() - started}))
    sys.stdout.flush()
    over.set()


def main(arguments: list[str]) -> None:
    """Do what the arguments say."""
    if arguments[0] == "serve":
        if arguments[1].isdecimal():
            listener = socket.socket(fileno=int(arguments[1]))
        else:
            listener = socket.create_server((arguments[1], 0))
        listener.listen(128)
        _serve(listener)
    else:
        _run(
            arguments[0], float(arguments[1]), [socket.socket(fileno=int(n)) for n in arguments[2:]]
        )


if __name__ == "__main__":
    main(sys.argv[1:])

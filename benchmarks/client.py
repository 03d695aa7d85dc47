"""A client process that costs little: HTTP/1.1 over kept-alive connections, one request at a time.

It shares the machine with what it measures, so that requests are made beforehand, answers are
hardly looked at while the clock runs, and what it used of the processor is told with the rest.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.report import percentile

ROOT = Path(__file__).parent.parent


@dataclass
class Load:
    """What a run of requests came to."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answers: list[dict[str, str]] = field(default_factory=list)
    client_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latency."""
        return percentile(self.latencies, 99) * 1000

    @property
    def client_us(self) -> float:
        """Microseconds of processor time that the client took for one request."""
        return self.client_cpu / len(self.latencies) * 1e6


def request(method: str, path: str, token: str, body: bytes = b"") -> bytes:
    """A whole HTTP/1.1 request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def drive(url: str, clients: int, requests: Iterable[bytes], processes: int = 2) -> Load:
    """Send requests from so many clients, each of which waits for its answer before the next.

    Raises:
        RuntimeError: an answer is no success.
    """
    address = urlsplit(url)
    work = list(requests)
    count = min(processes, clients)
    started = [
        _start(
            str(address.hostname),
            address.port or 80,
            clients // count + (number < clients % count),
            work[number::count],
        )
        for number in range(count)
    ]
    for process in started:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise RuntimeError("a client process did not start")
    load = Load()
    begun = time.perf_counter()
    for process in started:
        _write(process, b"go\n")
    for process in started:
        out, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(out.decode(errors="replace"))
        done = json.loads(out)
        load.latencies += done["latencies"]
        load.answers += [json.loads(body) for body in done["answers"] if body]
        load.client_cpu += done["cpu"]
        load.seconds = max(load.seconds, done["ended"] - begun)
    return load


def _start(
    host: str, port: int, connections: int, requests: Sequence[bytes]
) -> subprocess.Popen[bytes]:
    job = {
        "host": host,
        "port": port,
        "connections": connections,
        "requests": [one.decode() for one in requests],
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.client"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    _write(process, json.dumps(job).encode() + b"\n")
    return process


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    if process.stdin is not None:
        process.stdin.write(data)
        process.stdin.flush()


class _Connection:
    """One client: what it waits for, and since when."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.since = 0.0

    def send(self, data: bytes) -> None:
        self.since = time.perf_counter()
        self.socket.sendall(data)

    def answer(self) -> bytes | None:
        """The body, once the answer is whole.

        Raises:
            RuntimeError: it is no success, or the connection has ended.
        """
        data = self.socket.recv(65536)
        self.received = self.received + data if self.received else data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not data or not self.received.startswith(b"HTTP/1.1 2"[: len(self.received)]):
            raise RuntimeError(self.received.decode(errors="replace") or "no answer")
        if not end:
            return None
        place = head.lower().find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(body) < length:
            return None
        self.received = b""
        return body


def _main() -> None:
    job = json.loads(sys.stdin.buffer.readline())
    waiting = iter([text.encode() for text in job["requests"]])
    connections = [_Connection(job["host"], job["port"]) for _ in range(job["connections"])]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.readline()
    before = resource.getrusage(resource.RUSAGE_SELF)
    latencies: list[float] = []
    answers: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        busy = 0
        for connection in connections:
            first = next(waiting, None)
            if first is not None:
                connection.send(first)
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                busy += 1
        while busy:
            for key, _ in selector.select():
                connection = key.data
                body = connection.answer()
                if body is None:
                    continue
                latencies.append(time.perf_counter() - connection.since)
                answers.append(body)
                following = next(waiting, None)
                if following is None:
                    selector.unregister(connection.socket)
                    busy -= 1
                else:
                    connection.send(following)
    ended = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF)
    json.dump(
        {
            "latencies": latencies,
            "answers": [body.decode() for body in answers],
            "ended": ended,
            "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    try:
        _main()
    except RuntimeError as error:
        sys.stdout.write(str(error))
        sys.exit(1)

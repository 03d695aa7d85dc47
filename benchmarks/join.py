"""Join: from entering an agent to the first byte of a designated service."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from benchmarks import wireproxy
from benchmarks.certificate import self_signed
from benchmarks.fabrics import fabric, in_fresh_interpreter
from benchmarks.report import Section

from lattice_sdk import LatticeAgent, hookimpl
from lattice_sdk.plugins import manager

URL = "http://github-tools.lattice/"
COLD = """
import json, sys
import httpx
from lattice_sdk import LatticeAgent
from benchmarks.join import first_byte
print(json.dumps(first_byte(json.loads(sys.stdin.read()))))
"""


def first_byte(settings: dict[str, Any]) -> float:
    """Seconds from entering the agent to the first byte of a designated service."""
    started = time.perf_counter()
    with (
        LatticeAgent(**settings) as agent,
        agent.http_client() as http,
        http.stream("GET", URL) as answer,
    ):
        next(answer.iter_raw())
        return time.perf_counter() - started


def measure(*, quick: bool) -> Section:
    """The floor, warm and cold joins of each backend, and another program's join."""
    section = Section("Join: enter → first byte")
    rounds = 5 if quick else 30
    with fabric() as (running, settings), https_server() as floor_url:
        floor = [bare(floor_url, running.url) for _ in range(rounds)]
        section.add("floor: one HTTPS request and a TCP connect", ms(floor), "ms")
        phases = Phases()
        manager().register(phases)
        try:
            for backend in ("userspace", "netns"):
                chosen = {**settings, "backend": backend}
                with LatticeAgent(**chosen):  # keeps the engine running
                    first_byte(chosen)
                    phases.seen.clear()
                    warm = [first_byte(chosen) for _ in range(rounds)]
                limit = min(60.0, 3 * statistics.median(ms(floor)))
                section.at_most(f"warm, {backend}", ms(warm), "ms", round(limit, 1))
                ratio = statistics.median(warm) / statistics.median(floor)
                section.at_most(f"warm, {backend}, beside the floor", ratio, "×", 3)
                for name, values in phases.seen.items():
                    section.add(f"  of it: {name}", ms(values), "ms")
                cold = [cold_join(chosen) for _ in range(max(3, rounds // 3))]
                section.add(f"cold, {backend}: the engine starts as well", ms(cold), "ms")
        finally:
            manager().unregister(phases)
        if (program := wireproxy.build()) is None:
            section.remarks.append("wireproxy could not be built here, so nothing stands beside")
        else:
            others = [wireproxy.join(program, settings, URL) for _ in range(max(3, rounds // 3))]
            section.add("wireproxy with a config that is ready (no enrollment)", ms(others), "ms")
    return section


class Phases:
    """Collects where the time goes."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}

    @hookimpl
    def lattice_tunnel_up(self, phases: dict[str, float]) -> None:
        """Called by the SDK for each tunnel."""
        for name, seconds in phases.items():
            self.seen.setdefault(name, []).append(seconds)


def cold_join(settings: dict[str, Any]) -> float:
    """The same in a fresh interpreter, after its imports."""
    return float(in_fresh_interpreter(COLD, text=json.dumps(settings)))


def bare(https_url: str, other: str) -> float:
    """What no join can be without: one HTTPS request, and a TCP connection to the service."""
    url = httpx.URL(other)
    started = time.perf_counter()
    with httpx.Client(verify=_trust(), trust_env=False) as http:
        http.get(https_url).raise_for_status()
    socket.create_connection((url.host, url.port or 80), 5).close()
    return time.perf_counter() - started


_context: ssl.SSLContext | None = None


def _trust() -> ssl.SSLContext:
    if _context is None:
        raise RuntimeError("no https_server() runs")
    return _context


@contextlib.contextmanager
def https_server() -> Iterator[str]:
    """A server that answers at once, with a certificate for loopback."""
    global _context

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            return

    with tempfile.TemporaryDirectory() as directory:
        certificate, key = self_signed(Path(directory))
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        _context = ssl.create_default_context(cafile=str(certificate))
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def ms(values: list[float]) -> list[float]:
    """Seconds as milliseconds."""
    return [value * 1000 for value in values]

"""Join: from entering an agent to the first byte of a designated service."""

from __future__ import annotations

import contextlib
import json
import os
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

from benchmarks import place, wireproxy
from benchmarks.certificate import self_signed
from benchmarks.exec import CLOCK, LATTICE, started
from benchmarks.fabrics import fabric, in_fresh_interpreter
from benchmarks.report import Section
from lattice_sdk import LatticeAgent, hookimpl
from lattice_sdk.plugins import manager
from lattice_server.fabric import Fabric

URL = "http://github-tools.lattice/"
BOTH = "userspace", "netns"
FIRST_BYTE, EXEC = 100, 150  # ms
SIZES: dict[str, dict[str, Any]] = {
    "full": {"rounds": 40, "cold": 10, "backends": BOTH, "other": True, "exec": 20},
    "quick": {"rounds": 8, "cold": 2, "backends": BOTH, "other": True, "exec": 3},
    "tiny": {"rounds": 1, "cold": 1, "backends": BOTH[:1], "other": False, "exec": 1},
}
WARM = (
    "the enrollment, which waits for the gateway to have the peer, is most of it. It would take a "
    "control plane that answers with less of the processor, or before the gateway has the peer"
)
STARTS = (
    "an enrollment, a network namespace with its tunnel, and the start of the engine that keeps "
    "it. It would take an engine that runs already, for its start"
)
FLOOR = (
    "the floor is a request that is answered at once (over TLS, which the join here has not); a "
    "join is an enrollment that a database and the gateway have confirmed, a WireGuard handshake, "
    "and a request over two tunnels. It would take a control plane that answers from memory"
)
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


def measure(size: str) -> Section:
    """The floor, warm and cold joins of each backend, and another program's join."""
    options = SIZES[size]
    section = Section("Join: enter → first byte")
    with fabric() as (running, settings), https_server() as floor_url:
        bare(floor_url, running.url)
        floor = [bare(floor_url, running.url) for _ in range(options["rounds"])]
        section.add("floor: one HTTPS request and a TCP connect", ms(floor), "ms")
        warm = [
            join
            for backend in options["backends"]
            for join in _backend(
                section, {**settings, "backend": backend}, floor_url, running.url, options
            )
        ]
        told = f"enroll → first byte, p50 of {len(warm)} warm joins"
        section.at_most(told, ms(warm), "ms", FIRST_BYTE, note=WARM)
        _exec(section, running, options["exec"])
        if not options["other"]:
            return section
        if (program := wireproxy.build()) is None:
            section.remarks.append("wireproxy could not be built here, so nothing stands beside.")
        else:
            others = [wireproxy.join(program, settings, URL) for _ in range(options["cold"])]
            section.add("wireproxy with a config that is ready (no enrollment)", ms(others), "ms")
    return section


def _backend(
    section: Section, settings: dict[str, Any], floor_url: str, other: str, options: dict[str, Any]
) -> list[float]:
    """Joins of one backend; before each the floor, so that a slow moment is one of both."""
    backend, phases = settings["backend"], Phases()
    manager().register(phases)
    try:
        with LatticeAgent(**settings):  # keeps the engine running
            first_byte(settings)
            phases.seen.clear()
            pairs = [
                (bare(floor_url, other), first_byte(settings)) for _ in range(options["rounds"])
            ]
    finally:
        manager().unregister(phases)
    warm = [join for _, join in pairs]
    section.at_most(f"warm, {backend}", ms(warm), "ms", 60, note=WARM)
    ratio = statistics.median(warm) / statistics.median(floor for floor, _ in pairs)
    section.at_most(f"warm, {backend}, beside the floor", ratio, "×", 3, note=FLOOR)
    for name, values in phases.seen.items():
        section.add(f"  of it: {name}", ms(values), "ms")
    cold = [cold_join(settings) for _ in range(options["cold"])]
    section.add(f"cold, {backend}: the engine starts as well", ms(cold), "ms")
    return warm


def _exec(section: Section, running: Fabric, rounds: int) -> None:
    """From a command's start to its program's first instruction, bare and by ``lattice exec``."""
    if (why := place.missing()) is not None:
        section.remarks.append(f"lattice exec was not measured: {why}.")
        return
    environment = {
        **os.environ,
        "LATTICE_SERVER": running.url,
        "LATTICE_TOKEN": running.workspace_token,
        "LATTICE_ISOLATION": "required",
    }
    commands = {"bare": CLOCK, "exec": [*LATTICE, *CLOCK]}
    for command in commands.values():
        started(command, environment)
    taken: dict[str, list[float]] = {way: [] for way in commands}
    for _ in range(rounds):
        for way, command in commands.items():
            taken[way].append(started(command, environment)[0])
    section.add("lattice exec, start to the program", ms(taken["exec"]), "ms")
    over = [one - bare for one, bare in zip(taken["exec"], taken["bare"], strict=True)]
    told = "lattice exec, start over the bare command's"
    section.at_most(told, ms(over), "ms", EXEC, note=STARTS)


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

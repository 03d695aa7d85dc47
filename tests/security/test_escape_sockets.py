"""No socket and no descriptor of the host is of use in a sandbox."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lattice_sdk import LatticeAgent
from support.attempts import command, outside, told
from support.targets import Targets

Held = Callable[..., Any]


def test_path_socket_of_the_host_is_not_reached(host: Targets, held: Held) -> None:
    held("unix", path=str(host.unix))


def test_datagram_socket_of_the_host_is_not_reached(
    host: Targets, held: Held, inside: Held
) -> None:
    held("unix", path=str(host.unix_datagram), kind="dgram")
    before = len(host.seen)
    assert not inside("unix_by_pair", path=str(host.unix_datagram)).reached
    assert len(host.seen) == before
    assert outside("unix_by_pair", path=str(host.unix_datagram)).reached


def test_abstract_socket_of_the_host_is_not_reached(host: Targets, held: Held) -> None:
    held("unix", path=host.abstract)


def test_socket_that_is_bound_after_the_start_is_not_reached(
    agent: LatticeAgent, tmp_path: Path
) -> None:
    """What is hidden is not a list of what there was."""
    path = tmp_path / "late.sock"
    script = (
        "import pathlib, runpy, sys, time\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments = command("unix", {"path": str(path)})[2:]
    with agent.popen(
        [sys.executable, "-I", "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            output, _ = program.communicate("\n", timeout=60)
    assert not json.loads(output.splitlines()[-1])["reached"]


def test_engine_and_its_sockets_are_not_reached(agent: LatticeAgent) -> None:
    """The control socket holds every key of the process; another one gives sockets away."""
    sockets = _sockets_of(agent.engine_pid)
    assert sockets
    for path in sockets:
        free = outside("unix", path=str(path))
        assert free.reached or "without an answer" in free.why, free
    for path in sockets:
        for name in ("unix", "receive_descriptor"):
            caught = _inside(agent, name, path=str(path))
            assert not caught.reached, caught.why


def test_engine_is_not_reached_where_unix_sockets_are_allowed(agent: LatticeAgent) -> None:
    """Allowing them is no way to the engine."""
    for path in _sockets_of(agent.engine_pid):
        attempt = command("unix", {"path": str(path)})
        done = agent.run(attempt, unix_sockets=True, capture_output=True, text=True, timeout=60)
        caught = told(done)
        assert not caught.reached, caught.why
        assert "denied" not in caught.why, "Unix sockets were to be allowed"


def test_descriptor_of_the_host_is_not_inherited(host: Targets, agent: LatticeAgent) -> None:
    arguments = command("descriptor", {"number": host.connected})
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False}
    inherited = {"pass_fds": [host.connected]}
    assert told(subprocess.run(arguments, **options, **inherited)).reached
    caught = told(subprocess.run(agent.wrap(arguments), **options, **inherited))
    assert not caught.reached, caught.why


def test_nothing_is_inherited(agent: LatticeAgent, inside: Held, host: Targets) -> None:
    assert not (found := inside("every_descriptor")).reached, found.why
    done = subprocess.run(
        agent.wrap(command("every_descriptor", {})),
        pass_fds=[host.connected],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not (found := told(done)).reached, found.why


def _inside(agent: LatticeAgent, name: str, /, **arguments: Any) -> Any:
    return told(agent.run(command(name, arguments), capture_output=True, text=True, timeout=60))


def _sockets_of(pid: int | None) -> list[Path]:
    """The path sockets that a process listens on."""
    assert pid is not None
    inodes = {
        os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").removesuffix("]")
        for fd in os.listdir(f"/proc/{pid}/fd")
        if os.path.lexists(f"/proc/{pid}/fd/{fd}")
    }
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [Path(line[7]) for line in lines if len(line) > 7 and line[6] in inodes]


@pytest.fixture(autouse=True)
def _no_leak(host: Targets) -> None:
    os.set_inheritable(host.connected, False)

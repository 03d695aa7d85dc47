"""No socket and no descriptor of the host is of use in a sandbox."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lattice_sdk import LatticeAgent
from support.attempts import Attempt, command, outside, told
from support.inside import Inside
from support.targets import Targets

Held = Callable[..., Attempt]
PATIENCE = 60.0  # seconds for a program to connect or to say why it does not


def test_path_socket_of_the_host_is_not_reached(host: Targets, held: Held) -> None:
    held("unix", path=str(host.unix))


def test_datagram_socket_of_the_host_is_not_reached(
    host: Targets, held: Held, inside: Inside
) -> None:
    held("unix", path=str(host.unix_datagram), kind="dgram")
    before = len(host.seen)
    assert not inside("unix_by_pair", path=str(host.unix_datagram)).reached
    assert len(host.seen) == before
    assert outside("unix_by_pair", path=str(host.unix_datagram)).reached


def test_abstract_socket_of_the_host_is_not_reached(host: Targets, held: Held) -> None:
    held("unix", path=host.abstract)


def test_socket_that_is_bound_after_the_start_is_not_reached(
    inside: Inside, tmp_path: Path
) -> None:
    """What is hidden is not a list of what there was."""
    free = _late(lambda argv: argv, dict(os.environ), tmp_path / "control.sock")
    assert free.reached, f"the attempt proves nothing: {free.why}"
    caught = _late(inside.wrap, inside.environment, tmp_path / "late.sock")
    assert not caught.reached
    assert "Permission denied" in caught.why


def _late(
    wrap: Callable[[list[str]], list[str]], environment: dict[str, str], path: Path
) -> Attempt:
    """An attempt at a socket that is bound when the program runs already."""
    script = (
        "import runpy, sys\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments = command("unix", {"path": str(path)})[2:]
    with subprocess.Popen(
        wrap([sys.executable, "-I", "-c", script, *arguments]),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen()
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
            if listener in select.select([listener, program.stdout], [], [], PATIENCE)[0]:
                with listener.accept()[0] as accepted:
                    accepted.recv(100)
                    accepted.sendall(b"you are out")
            line = program.stdout.readline()
        program.communicate(timeout=60)
    return told(subprocess.CompletedProcess(arguments, 0, line, ""))


def test_engine_and_its_sockets_are_not_reached(agent: LatticeAgent, inside: Inside) -> None:
    """The control socket holds every key of the process; another one gives sockets away."""
    sockets = _sockets_of(agent.engine_pid)
    assert sockets
    for path in sockets:
        free = outside("unix", path=str(path))
        assert free.reached or "without an answer" in free.why, free
    given = [outside("receive_descriptor", path=str(path)) for path in sockets]
    assert any(each.reached for each in given), "none of them gives sockets away"
    for path in sockets:
        for name in ("unix", "receive_descriptor"):
            caught = inside(name, path=str(path))
            assert not caught.reached, caught.why


def test_engine_is_not_reached_where_unix_sockets_are_allowed(agent: LatticeAgent) -> None:
    """Allowing them is no way to the engine."""
    for path in _sockets_of(agent.engine_pid):
        attempt = command("unix", {"path": str(path)})
        done = agent.run(attempt, unix_sockets=True, capture_output=True, text=True, timeout=60)
        caught = told(done)
        assert not caught.reached, caught.why
        assert "denied" not in caught.why, "Unix sockets were to be allowed"


def test_descriptor_is_not_handed_in(host: Targets, held: Held) -> None:
    held("receive_descriptor", path=str(host.giver))


def test_descriptor_of_the_host_is_not_inherited(host: Targets, inside: Inside) -> None:
    argv = command("descriptor", {"number": host.connected})
    free = _inheriting(host, argv, dict(os.environ))
    assert free.reached, f"the attempt proves nothing: {free.why}"
    caught = _inheriting(host, inside.wrap(argv), inside.environment)
    assert not caught.reached, caught.why


def test_nothing_is_inherited(inside: Inside, host: Targets) -> None:
    assert not (found := inside("every_descriptor")).reached, found.why
    argv = command("every_descriptor", {})
    free = _inheriting(host, argv, dict(os.environ))
    assert free.reached, f"the attempt proves nothing: {free.why}"
    found = _inheriting(host, inside.wrap(argv), inside.environment)
    assert not found.reached, found.why


def _inheriting(host: Targets, argv: list[str], environment: dict[str, str]) -> Attempt:
    """An attempt of a command to which a connection of the host is left open."""
    done = subprocess.run(
        argv,
        env=environment,
        pass_fds=[host.connected],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return told(done)


def _sockets_of(pid: int | None) -> list[Path]:
    """The path sockets that a process listens on."""
    assert pid is not None
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
            inodes.add(link.removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [Path(line[7]) for line in lines if len(line) > 7 and line[6] in inodes]


@pytest.fixture(autouse=True)
def _no_leak(host: Targets) -> None:
    os.set_inheritable(host.connected, False)

"""Programs in a sandbox neither see nor touch those outside, and do not outlive their command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lattice_sdk import LatticeAgent
from support.attempts import NEW_NETWORK, command, outside, unshared
from support.targets import SECRET, Targets
from support.waiting import processes_mentioning, wait_for

Held = Callable[..., Any]
ROOT = os.geteuid() == 0


@pytest.mark.parametrize("name", ["see", "root_of", "kill"])
def test_process_of_the_host_is_out_of_reach(host: Targets, held: Held, name: str) -> None:
    held(name, pid=host.victim)


def test_process_of_the_host_cannot_be_traced(host: Targets, held: Held) -> None:
    held("ptrace", pid=host.victim)


def test_descriptor_of_a_process_of_the_host_cannot_be_taken(host: Targets, held: Held) -> None:
    held("steal_descriptor", pid=host.victim, number=0)


def test_environment_of_the_host_cannot_be_read(host: Targets, held: Held) -> None:
    held("environment", pid=host.victim, marker=SECRET)


@pytest.mark.parametrize("name", ["see", "kill", "ptrace"])
def test_engine_is_not_seen(agent: LatticeAgent, inside: Held, name: str) -> None:
    assert agent.engine_pid is not None
    free = outside(name, pid=agent.engine_pid)
    # It lets nobody trace it, its own user included (prctl(2), PR_SET_DUMPABLE).
    assert free.reached or (name == "ptrace" and "not permitted" in free.why), free.why
    assert not inside(name, pid=agent.engine_pid).reached


def test_first_process_of_the_sandbox_cannot_be_traced(inside: Held) -> None:
    """It may be seen."""
    assert inside("see", pid=1).reached
    assert not inside("ptrace", pid=1).reached


def test_network_namespace_of_the_host_cannot_be_entered(host: Targets, inside: Held) -> None:
    if ROOT:  # others may enter none outside
        free = unshared(NEW_NETWORK, "enter_namespaces", pid=host.victim)
        assert free.why == f"entered /proc/{host.victim}/ns/net"
    for pid in (1, host.victim):
        attempt = inside("enter_namespaces", pid=pid)
        assert not attempt.reached, attempt.why


@pytest.mark.parametrize("ending", ["return", "terminate", "kill"])
def test_daemon_does_not_outlive_its_command(
    agent: LatticeAgent, tmp_path: Path, ending: str
) -> None:
    beat = tmp_path / "beat"
    attempt = command("outlive", {"file": str(beat)})
    if ending == "return":
        assert agent.run(attempt, timeout=60).returncode == 0
    else:
        script = "import subprocess, sys, time; subprocess.run(sys.argv[1:]); time.sleep(60)"
        program = agent.popen([sys.executable, "-c", script, *attempt])
        wait_for("the daemon to work", beat.exists)
        program.send_signal(signal.SIGTERM if ending == "terminate" else signal.SIGKILL)
        program.wait(20)
    wait_for("its processes to end", lambda: not processes_mentioning(str(beat)))


def test_the_daemon_would_outlive_a_bare_command(tmp_path: Path) -> None:
    """What the test before stands on."""
    outlives(tmp_path / "beat", "outlive")


def outlives(beat: Path, name: str, **arguments: Any) -> None:
    """What an attempt starts outside goes on after it; it is ended here."""
    assert outside(name, file=str(beat), **arguments).reached
    left = processes_mentioning(str(beat))
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    assert left


def test_a_fork_bomb_would_outlive_a_bare_command(tmp_path: Path) -> None:
    """Likewise; a small one will do."""
    outlives(tmp_path / "beat", "fork_bomb", number=3)


def test_fork_bomb_does_not_outlive_its_command(agent: LatticeAgent, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    done = agent.run(command("fork_bomb", {"file": str(beat), "number": 100}), timeout=60)
    assert done.returncode == 0
    wait_for("its processes to end", lambda: not processes_mentioning(str(beat)))


def test_the_end_of_the_agent_is_the_end_of_its_programs(
    agent: LatticeAgent, tmp_path: Path
) -> None:
    """The programs of one that is killed; they are not left without a network either."""
    pids = tmp_path / "pid"
    script = (
        "import sys, threading, pathlib\n"
        "from lattice_sdk import LatticeAgent\n"
        "agent = LatticeAgent(isolation='required').open()\n"
        "agent.popen([sys.executable, '-c', 'import time; time.sleep(60)', sys.argv[1]])\n"
        "pathlib.Path(sys.argv[1]).write_text(agent.peer_id)\n"
        "threading.Event().wait()\n"
    )
    terms = agent._life.terms
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(terms.token.get_secret_value())
    program = subprocess.Popen(
        [sys.executable, "-c", script, str(pids)],
        env={**os.environ, "LATTICE_SERVER": terms.server, "LATTICE_TOKEN_FILE": str(token)},
    )
    try:
        wait_for("the program to run", lambda: len(processes_mentioning(str(pids))) > 2)
    finally:
        program.kill()
        program.wait()
    wait_for("its programs to end", lambda: not processes_mentioning(str(pids)))

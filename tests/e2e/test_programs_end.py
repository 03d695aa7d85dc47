"""Programs of an agent end with it, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import World
from lattice_sdk import (
    IdentityClosed,
)
from lattice_sdk.testing.leftovers import descendants
from support.waiting import long_sleep, process_alive, processes_mentioning, sleeping, wait_for
from support.wrapped import GRANTED, curl


@pytest.mark.parametrize("road", ["close", "garbage"])
def test_programs_end_with_their_agent(world: World, road: str) -> None:
    agent, long = world.agent(isolation="required").open(), long_sleep()
    script = f"trap '' TERM HUP INT; (setsid sleep {long} &) ; echo up; sleep {long}"
    line = agent.wrap(["sh", "-c", script])
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        directory = Path(line[4]).parent
        if road == "close":
            agent.close()
            assert not processes_mentioning(f"sleep {long}"), "closed, and programs run on"
        else:
            import gc

            del agent
            gc.collect()
        assert process.wait(20) == -signal.SIGKILL
        wait_for("programs to be gone", lambda: not processes_mentioning(f"sleep {long}"))
        wait_for("their files to be removed", lambda: not directory.exists())
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 125
    assert "the agent of this sandbox has ended" in done.stderr


def test_agent_that_is_kept_by_a_program_is_not_closed(world: World) -> None:
    process = world.agent(isolation="required").open().popen(["sh", "-c", "read -r _"], stdin=-1)
    import gc

    gc.collect()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process._keeping.close()  # type: ignore[attr-defined]
    process.communicate()


def test_killed_agent_leaves_no_program_and_no_file(world: World, tmp_path: Path) -> None:
    long = long_sleep()
    code = f"""
import sys
from lattice_sdk import LatticeAgent
with LatticeAgent(isolation="required") as agent:
    with agent.popen(["sh", "-c", "setsid sleep {long} & sleep {long}"]) as process:
        print(agent.engine_pid, agent.wrap(["x"])[4], agent.peer_id, flush=True)
        sys.stdin.read()
"""
    environment = {
        **os.environ,
        "LATTICE_SERVER": world.fabric.url,
        "LATTICE_TOKEN": world.fabric.workspace_token,
        "TMPDIR": str(tmp_path),
    }
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        engine, spec, _ = process.stdout.readline().split()
        wait_for("the programs", lambda: len(sleeping(long)) == 2)
        process.kill()
        wait_for("programs to be gone", lambda: not processes_mentioning(f"sleep {long}"))
        wait_for("the engine to end", lambda: not process_alive(int(engine)))
        wait_for("their files to be removed", lambda: not list(tmp_path.iterdir()))
    assert not Path(spec).exists()
    assert not processes_mentioning(str(tmp_path))


def test_programs_keep_running_without_a_network_after_expiry(world: World) -> None:
    """They may save what they have; the network is gone, and the agent's end ends them."""
    from lattice_sdk.testing.gate import Gate

    with Gate(world.fabric.url) as gate:
        agent = world.agent(isolation="required", server=gate.url).open()
        script = f"curl -sS --max-time 30 -o /dev/null {GRANTED} && echo reached; read -r _; "
        script += f"curl -sS --max-time 5 -o /dev/null {GRANTED} && echo reached; echo saved"
        with agent.popen(
            ["sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "reached\n"
            agent.renew(ttl="5s")  # only now: what came before takes its time on a busy machine
            gate.close()
            wait_for("the identity to expire", lambda: agent.state == "expired")
            assert process.communicate("go\n", timeout=60)[0] == "saved\n"
        agent.close()


def test_killed_keeper_is_replaced(world: World) -> None:
    """The namespace is gone with it, and what ran there; the agent has a new one."""
    with world.agent(isolation="required") as agent:
        process = agent.popen(["sleep", "60"])
        engine = agent.engine_pid
        assert engine is not None
        keepers = [pid for pid in descendants(engine) if "keeper" in _name(pid)]
        assert len(keepers) == 1
        os.kill(keepers[0], signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL

        def works() -> bool:
            with contextlib.suppress(Exception):
                done = agent.run(curl("-o", "/dev/null", GRANTED), capture_output=True)
                return done.returncode == 0
            return False

        wait_for("programs to have a network again", works)
        assert agent.engine_pid == engine


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_closed_agent_starts_no_programs(world: World) -> None:
    agent = world.agent()
    for start in (agent.popen, agent.run, agent.wrap):
        with pytest.raises(IdentityClosed):
            start(["true"])
    agent.open()
    agent.close()
    for start in (agent.popen, agent.run, agent.wrap):
        with pytest.raises(IdentityClosed):
            start(["true"])
    assert agent.isolation == "none"

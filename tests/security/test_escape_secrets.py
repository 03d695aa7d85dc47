"""No secret of the identity can be read from inside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lattice_sdk import LatticeAgent
from lattice_sdk.testing.leftovers import descendants
from lattice_sdk.testing.world import World
from support.attempts import command, outside, told
from support.inside import EXEC, Inside


def _secrets(agent: LatticeAgent, world: World) -> list[str]:
    identity = agent._identity()
    return [
        world.token,
        identity.enrollment_token.get_secret_value(),
        identity.private_key.get_secret_value(),
        agent.proxy_env()["HTTP_PROXY"].split("@")[0].rpartition(":")[2],
    ]


def test_no_secret_is_in_files_or_processes(
    agent: LatticeAgent, lattice_world: World, inside: Inside, tmp_path: Path
) -> None:
    secrets = [secret[::-1] for secret in _secrets(agent, lattice_world)]
    # The control plane of these tests belongs to the same user, who may read what it keeps.
    temporary = Path(tempfile.gettempdir())
    places = [
        str(place) for place in temporary.glob("lattice-*") if place != lattice_world.directory
    ]
    places += ["/run", str(Path("/run/user") / str(os.getuid()))]
    bait = tmp_path / "bait"
    bait.write_text(secrets[0][::-1])
    found = outside("find_secrets", secrets=secrets, directories=[str(tmp_path)])
    assert found.reached, "the search finds nothing at all"
    bait.unlink()
    attempt = inside("find_secrets", secrets=secrets, directories=places)
    assert not attempt.reached, attempt.why


def test_environment_of_the_caller_gives_no_credential(
    way: list[str], lattice_world: World, tmp_path: Path
) -> None:
    """Neither the token nor the file that it is in, nor what else means credentials to Lattice."""
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(lattice_world.token)
    config = tmp_path / "config.toml"
    config.touch(0o600)
    config.write_text(f'token = "{lattice_world.token}"\n')
    environment = {
        **os.environ,
        "LATTICE_SERVER": lattice_world.server,
        "LATTICE_TOKEN": lattice_world.token,
        "LATTICE_TOKEN_FILE": str(token),
        "LATTICE_CONFIG": str(config),
        "HTTP_PROXY": "http://user:password@127.0.0.1:9",
    }
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    done = _run(way, environment, sys.executable, "-c", show)
    inside = json.loads(done.stdout)
    assert lattice_world.token not in done.stdout
    assert "password" not in done.stdout
    assert inside["PATH"] == os.environ["PATH"], "the rest of the environment is the caller's"
    for path in (token, config):
        assert lattice_world.token in outside("read", path=str(path)).why
        caught = told(_run(way, environment, *command("read", {"path": str(path)})))
        assert not caught.reached or lattice_world.token not in caught.why, f"{path} can be read"


def test_arguments_of_the_launcher_hold_no_secret(
    agent: LatticeAgent, lattice_world: World
) -> None:
    program = agent.popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        public = _public(program.pid)
        assert b"input()" in public
        for secret in _secrets(agent, lattice_world):
            assert secret.encode() not in public
    finally:
        program.communicate(b"\n")


def test_processes_of_a_command_hold_no_secret(way: list[str], lattice_world: World) -> None:
    """Neither its engine nor its launcher nor its program; its own environment is the caller's."""
    token = lattice_world.token.encode()
    environment = os.environ | {
        "LATTICE_SERVER": lattice_world.server,
        "LATTICE_TOKEN": lattice_world.token,
    }
    with subprocess.Popen(
        [*way, sys.executable, "-c", "print('up', flush=True); input()"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n"
        assert token in _public(program.pid), "secrets are not found where they are"
        others = descendants(program.pid)
        assert len(others) >= 3, "engine, launcher and program"
        holding = [pid for pid in others if token in _public(pid)]
        assert not holding, [_public(pid) for pid in holding]
        program.communicate(b"\n", timeout=60)


def _public(pid: int) -> bytes:
    """Arguments and environment of a process."""
    public = Path(f"/proc/{pid}/cmdline").read_bytes()
    with contextlib.suppress(PermissionError):  # then nobody reads it
        public += Path(f"/proc/{pid}/environ").read_bytes()
    return public


@pytest.fixture(params=["agent", "lattice exec"])
def way(request: pytest.FixtureRequest) -> list[str]:
    """A command that runs a program as an agent, all of whose settings are its environment's."""
    script = (
        "import sys\n"
        "from lattice_sdk import LatticeAgent\n"
        "with LatticeAgent(isolation='required') as agent:\n"
        "    sys.exit(agent.run(sys.argv[1:]).returncode)\n"
    )
    return EXEC if request.param == "lattice exec" else [sys.executable, "-c", script]


def _run(
    way: list[str], environment: dict[str, str], *argv: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*way, *argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

"""No secret of the identity can be read from inside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lattice_sdk import LatticeAgent
from lattice_sdk.testing.world import World
from support.attempts import command, outside, told

Held = Callable[..., Any]


def _secrets(agent: LatticeAgent, world: World) -> list[str]:
    identity = agent._identity()
    return [
        world.token,
        identity.enrollment_token.get_secret_value(),
        identity.private_key.get_secret_value(),
        agent.proxy_env()["HTTP_PROXY"].split("@")[0].rpartition(":")[2],
    ]


def test_no_secret_is_in_files_or_processes(
    agent: LatticeAgent, lattice_world: World, inside: Held, tmp_path: Path
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
    lattice_world: World, tmp_path: Path
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
    done = _exec(environment, sys.executable, "-c", show)
    inside = json.loads(done.stdout)
    assert lattice_world.token not in done.stdout
    assert "password" not in done.stdout
    assert inside["PATH"] == os.environ["PATH"], "the rest of the environment is the caller's"
    for path in (token, config):
        assert outside("read", path=str(path)).reached
        caught = told(_exec(environment, *command("read", {"path": str(path)})))
        assert not caught.reached or lattice_world.token not in caught.why, f"{path} can be read"


def test_arguments_of_the_launcher_hold_no_secret(
    agent: LatticeAgent, lattice_world: World
) -> None:
    program = agent.popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        public = Path(f"/proc/{program.pid}/cmdline").read_bytes()
        with contextlib.suppress(PermissionError):  # then nobody reads it
            public += Path(f"/proc/{program.pid}/environ").read_bytes()
        for secret in _secrets(agent, lattice_world):
            assert secret.encode() not in public
    finally:
        program.communicate(b"\n")


def _exec(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    """A program of an agent that takes everything from its environment."""
    script = (
        "import sys\n"
        "from lattice_sdk import LatticeAgent\n"
        "with LatticeAgent(isolation='required') as agent:\n"
        "    sys.exit(agent.run(sys.argv[1:]).returncode)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

"""Programs inside a sandbox, as an agent starts them and as ``lattice exec`` does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lattice_sdk import LatticeAgent
from lattice_sdk.testing.world import World
from support.attempts import Attempt, command, told

EXEC = [sys.executable, "-m", "lattice_sdk", "exec", "--isolation", "required", "--"]
# Makes one attempt after another, with whatever descriptors it has itself.
RUNNER = """
import json, os, subprocess, sys
identity = json.load(open(os.environ["LATTICE_SANDBOX"]))
print(json.dumps([identity["peerId"], identity["overlayIP"]]), flush=True)
for line in sys.stdin:
    done = subprocess.run(
        json.loads(line), stdin=subprocess.DEVNULL, capture_output=True, text=True, close_fds=False
    )
    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)
"""


class Inside:
    """Makes attempts inside: called with the name of one and what it is to be told.

    Attributes:
        peer_id: whose sandbox it is.
        overlay_ip: its address.
        environment: of commands of :meth:`wrap`.
    """

    def __init__(self, peer_id: str, overlay_ip: str, environment: Mapping[str, str]) -> None:
        self.peer_id, self.overlay_ip = peer_id, overlay_ip
        self.environment = dict(environment)

    def __call__(self, name: str, /, **arguments: Any) -> Attempt:
        return told(self.execute(command(name, arguments)))

    def execute(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a program inside."""
        raise NotImplementedError

    def wrap(self, argv: list[str]) -> list[str]:
        """A command that makes a program run inside, for others to execute."""
        raise NotImplementedError


class OfAgent(Inside):
    """Inside the sandbox of an agent of this process."""

    def __init__(self, agent: LatticeAgent) -> None:
        super().__init__(agent.peer_id, agent.overlay_ip, os.environ)
        self._agent = agent

    def execute(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return self._agent.run(argv, capture_output=True, text=True, timeout=60)

    def wrap(self, argv: list[str]) -> list[str]:
        return self._agent.wrap(argv)


class OfExec(Inside):
    """Inside a ``lattice exec``, which is one for all attempts; a command has one of its own."""

    def __init__(self, world: World, process: subprocess.Popen[str]) -> None:
        self._process = process
        super().__init__(*self._line(), exec_environment(world))

    def execute(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(argv) + "\n")
        self._process.stdin.flush()
        code, out, err = self._line()
        return subprocess.CompletedProcess(argv, code, out, err)

    def wrap(self, argv: list[str]) -> list[str]:
        return [*EXEC, *argv]

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"lattice exec has ended: {self._process.wait(20)}"
        return json.loads(line)


def exec_environment(world: World) -> dict[str, str]:
    """Settings for a ``lattice exec`` of a world."""
    return {**os.environ, "LATTICE_SERVER": world.server, "LATTICE_TOKEN": world.token}


@contextlib.contextmanager
def inside_exec(world: World) -> Iterator[OfExec]:
    """A ``lattice exec`` until the end of the block, started as it ordinarily is.

    Raises:
        AssertionError: it went by the SDK, which makes sandboxes for agents too.
    """
    with subprocess.Popen(
        [*EXEC, sys.executable, "-I", "-c", RUNNER],
        env=exec_environment(world),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            made = OfExec(world, process)
            loaded = Path(f"/proc/{process.pid}/maps").read_text()
            assert "pydantic" not in loaded, "this is not the fast start"
            yield made
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)

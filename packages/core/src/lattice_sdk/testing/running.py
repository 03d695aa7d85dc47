"""Starts :mod:`lattice_sdk.testing.program` and looks at it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattice_sdk.testing.adapter import Adapter
    from lattice_sdk.testing.world import World

__all__ = ["Program", "arguments", "environment"]


class Program:
    """An agent program that runs.

    Args:
        adapter: what it enters by.
        world: where it enrolls.
        mode: what it does then, of :data:`lattice_sdk.testing.program.MODES`.
        directory: empty; its home.

    Attributes:
        process: of the program.
        temporary: where it makes temporary files.
        secrets: file in which the mode ``fail`` tells the test what must not be told.
        told: what it has written so far.
    """

    def __init__(self, adapter: type[Adapter], world: World, mode: str, directory: Path) -> None:
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.secrets = directory / "secrets.json"
        self.told = ""
        self._log = directory / "stderr"
        token = directory / "token"
        token.touch(0o600)
        token.write_text(world.token)
        command = [sys.executable, "-m", "lattice_sdk.testing.program"]
        command += [f"{adapter.__module__}:{adapter.__qualname__}", mode]
        self.process = subprocess.Popen(
            command,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(directory),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "TMPDIR": str(self.temporary),
                "LATTICE_SERVER": world.server,
                "LATTICE_TOKEN_FILE": str(token),
                "LATTICE_TEST_SECRETS": str(self.secrets),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if mode == "fail" else self._log.open("w"),
            text=True,
        )

    def line(self) -> dict[str, Any]:
        """The next JSON line of the program."""
        if self.process.stdout is None:
            raise RuntimeError("no output is captured")
        for text in self.process.stdout:
            self.told += text
            with contextlib.suppress(ValueError):
                found: dict[str, Any] = json.loads(text)
                return found
        raise AssertionError(f"the agent program ended without a line: {self.errors()}")

    def errors(self) -> str:
        """What it wrote to standard error."""
        if self.process.stderr is not None:
            return self.process.stderr.read()
        return self._log.read_text()


def arguments(pid: int) -> str:
    """The command line of a process, which every user can read; nothing once it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def environment(pid: int) -> str:
    """The environment that a process was started with, as far as this user may read it.

    Of a process that lets nobody of its user look into it, as a keeper of namespaces, there is
    nothing to be read.
    """
    with contextlib.suppress(PermissionError, FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return ""

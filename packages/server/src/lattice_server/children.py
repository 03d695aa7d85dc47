"""Child processes of a fabric: started, waited for until ready, watched, ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

LOG_LINES = 20  # of a child's log, shown when it fails


class FabricError(Exception):
    """A part of the fabric failed; the message says which and why, with the end of its log."""


class Child:
    """A daemon of this package as a child process that has said it is ready."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self.ready: dict[str, Any] = {}
        self._process = process

    @classmethod
    def start(
        cls,
        command: str,
        arguments: list[str],
        *,
        log: Path,
        lifeline: int,
        environment: dict[str, str],
        timeout: float,
    ) -> Child:
        """Start ``lattice COMMAND ARGUMENTS`` and wait until it is ready.

        Args:
            command: ``server``, ``gateway`` or ``egress``.
            arguments: its options.
            log: file that its output is appended to.
            lifeline: read end of a pipe; the child ends when the pipe does.
            environment: added to this process's, less the settings (``LATTICE_*``) in there.
            timeout: seconds.

        Raises:
            FabricError: it ended or was not ready in time; the error has the end of its log.
        """
        kept = {k: v for k, v in os.environ.items() if not _is_setting(k)}
        ready, written = os.pipe()
        program = [sys.executable, "-m", "lattice_server.cli", command]
        program += ["--ready-fd", str(written), "--parent-fd", str(lifeline)]
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, ready)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                process = subprocess.Popen(
                    [*program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=descriptor,
                    stderr=descriptor,
                    env=kept | environment,
                    pass_fds=(written, lifeline),
                    # Ctrl-C in a terminal is for the parent, which ends its children in order.
                    start_new_session=True,
                )
            finally:
                os.close(written)
                os.close(descriptor)
            child = cls(command, process, log)
            stack.callback(child.kill)
            line = _read_line(ready, time.monotonic() + timeout)
            if line is None:
                raise FabricError(
                    f"the {command} was not ready within {timeout:g} s{child.log_tail()}"
                )
            if not line:
                child.wait(5)
                raise FabricError(child.explain())
            child.ready = json.loads(line)
            stack.pop_all()
            os.close(ready)
        return child

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def explain(self) -> str:
        """How it ended, with the end of its log."""
        code = self._process.poll()
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
        return f"the {self.name} ended with {how}{self.log_tail()}"

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout: float) -> bool:
        """Wait for its end; whether it came."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return not self.alive()

    def end(self, timeout: float) -> None:
        """SIGTERM, after ``timeout`` seconds SIGKILL."""
        self._process.terminate()
        if not self.wait(timeout):
            self.kill()

    def log_tail(self) -> str:
        """The last lines of its log, to be appended to a sentence."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        except OSError:
            lines = []
        return f"; the end of {self.log}:" + "".join(f"\n  {line}" for line in lines)


def end_with_parent(descriptor: int) -> None:
    """SIGTERM for this process when the pipe ``descriptor`` ends, which is when its parent does."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(descriptor, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    os.set_inheritable(descriptor, False)
    threading.Thread(target=watch, name="lattice-parent", daemon=True).start()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when it is not there or is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_setting(name: str) -> bool:
    return name.startswith("LATTICE_") and name != "LATTICE_ENGINE"


def _read_line(descriptor: int, deadline: float) -> bytes | None:
    """A line; empty when the other side closed without one, ``None`` when time is up."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = b""
    while b"\n" not in data:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return b""
        data += chunk
    return data.partition(b"\n")[0]

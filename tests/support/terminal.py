"""A pseudo-terminal with a shell of a few lines, which runs one command as a job in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from typing import Any

from support.waiting import process_state, wait_for

# The session's leader, as a shell is: without one, the command's process group would be orphaned,
# and the kernel would not stop it. It tells what becomes of the job on descriptor 3, and does on 4
# what it is told: "fg".
SHELL = """
import fcntl, json, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    # What started the tests may ignore the keys' signals, as a shell does in the background.
    for number in (signal.SIGTTOU, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.close(3)
    os.close(4)
    os.execvp(sys.argv[1], sys.argv[1:])
with __import__("contextlib").suppress(OSError):
    os.setpgid(job, job)
def tell(**what):
    os.write(3, json.dumps(what).encode() + b"\\n")
tell(job=job)
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    had_terminal = os.tcgetpgrp(0) == job
    os.tcsetpgrp(0, os.getpgrp())
    if not os.WIFSTOPPED(status):
        tell(status=status, terminal=had_terminal)
        break
    tell(stopped=os.WSTOPSIG(status))
    os.read(4, 64)
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
os.read(4, 64)
"""


class Terminal:
    """A command in a terminal of its own, as a shell runs it in the foreground.

    Args:
        command: what to run.
        environment: its own.
        size: of the window, rows and columns.

    Attributes:
        job: the command's process id.
        screen: what has been written so far.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str] | None = None,
        size: tuple[int, int] = (24, 80),
    ) -> None:
        self._keys, slave = pty.openpty()
        self.resize(*size)
        self._told, telling = os.pipe()
        doing, self._orders = os.pipe()

        def arrange() -> None:
            os.dup2(telling, 9)
            os.dup2(doing, 10)
            os.dup2(9, 3)
            os.dup2(10, 4)

        self._shell = subprocess.Popen(
            [sys.executable, "-c", SHELL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=dict(environment) if environment is not None else None,
            preexec_fn=arrange,
            close_fds=False,
        )
        for descriptor in (slave, telling, doing):
            os.close(descriptor)
        self.screen, self._rest = "", b""
        self.job = int(self.news()["job"])

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.job, signal.SIGKILL)
        self._shell.kill()
        self._shell.wait()
        for descriptor in (self._keys, self._told, self._orders):
            os.close(descriptor)

    def type(self, text: str) -> None:
        """Press keys; ``\\x03`` is Ctrl-C."""
        os.write(self._keys, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size."""
        fcntl.ioctl(self._keys, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: str, timeout: float = 60.0) -> None:
        """Read the screen until this comes, and forget what was up to there.

        Raises:
            AssertionError: it does not.
        """
        end = time.monotonic() + timeout
        while text not in self.screen:
            left = end - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{text!r} did not come; there is {self.screen!r}")
        self.screen = self.screen.partition(text)[2]

    def rest(self) -> str:
        """What else is on the screen, once the command has ended."""
        while self._read(0.05):
            pass
        found, self.screen = self.screen, ""
        return found

    def news(self, timeout: float = 60.0) -> dict[str, Any]:
        """What the shell says has become of the job.

        Raises:
            AssertionError: nothing.
        """
        end = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._told, self._keys], [], [], end - time.monotonic())
            if self._keys in ready:
                self._read(0)
            if self._told in ready:
                data = os.read(self._told, 4096)
                assert data, f"the shell has ended: {self.screen!r}"
                self._rest += data
            assert ready, f"nothing has become of the job; there is {self.screen!r}"
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def kill_shell(self) -> None:
        """SIGKILL of the shell, upon which the kernel hangs the terminal's foreground job up."""
        self._shell.kill()
        self._shell.wait()

    def foreground(self, *, dead: bool = False) -> None:
        """Have a stopped job go on, with the terminal; one that is ``dead`` has its end noticed."""
        os.write(self._orders, b"fg")
        if not dead:
            wait_for("the terminal to be its", lambda: os.tcgetpgrp(self._keys) == self.job)
            wait_for("it to go on", lambda: process_state(self.job) != "T")

    def _read(self, timeout: float) -> bool:
        if not select.select([self._keys], [], [], max(0.0, timeout))[0]:
            return False
        try:
            self.screen += os.read(self._keys, 65536).decode(errors="replace")
        except OSError:  # nobody has the terminal open any more
            return False
        return True

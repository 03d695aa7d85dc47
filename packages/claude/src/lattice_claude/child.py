"""Run a program in this process's place: its terminal, its signals, its exit status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["end_like", "run"]

READ = 4096  # bytes; one for each signal
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# The terminal sends these to the whole foreground process group, the program included.
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run ``command`` until it ends, in this session and process group.

    Call it from the main thread.

    Returns:
        Its exit status; ``-N`` when signal ``N`` ended it.
    """
    # What this process itself has open is closed on exec; what it was handed is the program's.
    with (
        subprocess.Popen(command, env=environment, close_fds=False) as child,
        _passing_on(child) as woken,
    ):
        while (status := child.poll()) is None:
            woken.recv(READ)
        return status


def end_like(status: int) -> None:
    """End this process as the program ended, by the same signal if it was one.

    Raises:
        SystemExit: with its exit status.
    """
    if status < 0:
        with suppress(OSError):  # SIGKILL has no other effect anyway
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        status = 128 - status  # a signal that does not end a process by itself
    raise SystemExit(status)


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[socket.socket]:
    """Pass signals on; what it gives can be read after each signal, and when the child has ended.

    The kernel may hand a signal to any thread, and Python runs its handler in the main one: that
    must wait in something that ends then, which waiting for the child does not.
    """

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if number not in _FROM_TERMINAL or not _in_foreground():
            child.send_signal(number)

    woken, wake = socket.socketpair()
    wake.setblocking(False)
    handlers = dict.fromkeys((*_FORWARDED, *_FROM_TERMINAL), pass_on)
    handlers[signal.SIGCHLD] = lambda *_: None
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    woken_before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    try:
        yield woken
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        woken.close()
        wake.close()


def _in_foreground() -> bool:
    try:
        terminal = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False  # there is none
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)

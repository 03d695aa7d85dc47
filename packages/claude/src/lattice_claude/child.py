"""Run a program in this process's place: its terminal, its signals, its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["end_like", "run"]

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
        _passing_on(child),
    ):
        return child.wait()


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
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        if number not in _FROM_TERMINAL or not _in_foreground():
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (*_FORWARDED, *_FROM_TERMINAL)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

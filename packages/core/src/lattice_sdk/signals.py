"""Termination by signal: identities are given back before the process dies of it.

Only a signal that would kill without unwinding is taken (its disposition is the default one). A
program with a handler of its own, Python's for SIGINT included, unwinds by itself: left alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

_FATAL = [
    number
    for name in ("SIGTERM", "SIGINT", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
]
_clean_up: Callable[[], None] | None = None


def install(clean_up: Callable[[], None]) -> None:
    """Run ``clean_up`` before the process dies of a signal. Only possible in the main thread.

    From any other thread it is without effect; then the engine, which outlives this process, gives
    the identities back.
    """
    global _clean_up
    if threading.current_thread() is not threading.main_thread():
        return
    _clean_up = clean_up
    for number in _FATAL:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _die)


def _die(number: int, _frame: FrameType | None) -> None:
    # A second signal while the first is being handled ends the process at once.
    signal.signal(number, signal.SIG_DFL)
    if _clean_up is not None:
        _clean_up()
    os.kill(os.getpid(), number)

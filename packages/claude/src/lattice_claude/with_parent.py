"""Become a program that ends with its parent: ``with_parent.py PARENT PROGRAM ARGUMENT…``.

Run with ``-I -S`` in a process of its own, as nothing of this is safe between a fork and an exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept over exec

parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != int(parent):
        sys.exit(f"{command[0]} is not started: who wanted it has ended")
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # as Python does on start
    signal.signal(ignored, signal.SIG_DFL)
try:
    os.execvp(command[0], command)  # noqa: S606 - that is what it is for
except OSError as error:
    sys.exit(f"{command[0]} cannot be executed: {error.strerror}")

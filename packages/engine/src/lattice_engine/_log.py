"""Where an engine's standard error goes when nobody asked for it: a bounded file without a name."""

from __future__ import annotations

import fcntl
import os

TAIL_BYTES = 4096
KEEP_BYTES = 1 << 20


class EngineLog:
    """An unlinked temporary file: nothing to clean up, and its tail explains a failure.

    Not a pipe: an engine that outlives its parent to revoke identities would die of SIGPIPE.
    """

    def __init__(self) -> None:
        self._file = os.fdopen(_unnamed(), "ab+")

    def fileno(self) -> int:
        """The descriptor the engine writes to (append mode, so that trimming is safe)."""
        return self._file.fileno()

    def tail(self) -> str:
        """The last lines, at most 4 KiB."""
        if self._file.closed:
            return ""
        return tail_of(self._file.fileno())

    def trim(self) -> None:
        """Empty the file when it has grown past 1 MiB."""
        if not self._file.closed and os.fstat(self._file.fileno()).st_size > KEEP_BYTES:
            os.ftruncate(self._file.fileno(), 0)

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()


def _unnamed() -> int:
    """A descriptor of a file without a name, in append mode."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("lattice-engine-log", os.MFD_CLOEXEC)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        return descriptor
    import tempfile

    with tempfile.TemporaryFile(mode="ab+", prefix="lattice-engine-log-") as file:
        return os.dup(file.fileno())


def tail_of(descriptor: int) -> str:
    """The last 4 KiB of an open file as text, beginning at a line."""
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES))
    if size > TAIL_BYTES:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace").strip()

"""Directories for what no sandboxed program may see: all of a user's are below one.

A sandbox hides that one, and with it also those that are made while it runs.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator

_TRIES = 100


def shared_name() -> str:
    """The name of the directory in the one for temporary files; the engine's, see place.go."""
    return f"lattice-{os.geteuid()}"


@contextlib.contextmanager
def private_directory(prefix: str) -> Iterator[str]:
    """A new directory (0700), that goes with the block and all that is in it.

    Args:
        prefix: how its name begins.

    Raises:
        OSError: it cannot be made.
    """
    path = make_private_directory(prefix)
    try:
        yield path
    finally:
        remove_private_directory(path)


def make_private_directory(prefix: str) -> str:
    """The same, without an end. Raises :class:`OSError` where it cannot be made."""
    temporary = tempfile.gettempdir()
    shared = os.path.join(temporary, shared_name())
    for _ in range(_TRIES):
        with contextlib.suppress(FileExistsError):
            os.mkdir(shared, 0o700)
        try:
            found = os.lstat(shared)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                shared = tempfile.mkdtemp(prefix=f"{shared_name()}-", dir=temporary)
            elif stat.S_IMODE(found.st_mode) != 0o700:
                os.chmod(shared, 0o700)
            return tempfile.mkdtemp(prefix=prefix, dir=shared)
        except FileNotFoundError:
            continue  # the last one in it has just gone, and it with that
    raise FileNotFoundError(f"{shared}: it vanishes again and again")


def remove_private_directory(path: str) -> None:
    """Remove it, with all that is in it, and the shared one unless others are in that."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(path))

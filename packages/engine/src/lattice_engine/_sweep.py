"""Directories of engines that were killed together with the processes that would tidy up."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from lattice_engine._place import remove_private_directory, shared_name

PREFIX = "engine-"
AGE = 60.0  # seconds; a younger one's engine may not listen yet


def sweep(directory: str) -> list[str]:
    """Remove what engines of this user left in a directory for temporary files; what it was.

    Args:
        directory: where engines make theirs.
    """
    removed: list[str] = []
    for shared in _directories(directory, shared_name()):
        for entry in _directories(shared.path, PREFIX):
            if _is_left(entry):
                remove_private_directory(entry.path)
                removed.append(entry.path)
    return removed


def _directories(path: str, prefix: str) -> list[os.DirEntry[str]]:
    """This user's in a directory, with names that begin so."""
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return [
            entry
            for entry in entries
            if entry.name.startswith(prefix)
            and entry.is_dir(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        ]
    return []


def _is_left(entry: os.DirEntry[str]) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
        return time.time() - status.st_mtime > AGE and not _answers(f"{entry.path}/control.sock")
    except OSError:
        return False


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # whatever it is, somebody is there
        return True

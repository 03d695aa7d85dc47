"""Directories of engines that were killed together with the processes that would tidy up."""

from __future__ import annotations

import os
import shutil
import socket
import time

PREFIX = "lattice-engine-"
AGE = 60.0  # seconds; a younger one's engine may not listen yet


def sweep(directory: str) -> list[str]:
    """Remove what engines of this user left in a directory for temporary files; what it was.

    Args:
        directory: where engines make theirs.
    """
    removed: list[str] = []
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return removed
    for entry in entries:
        if entry.name.startswith(PREFIX) and _is_left(entry):
            shutil.rmtree(entry.path, ignore_errors=True)
            removed.append(entry.path)
    return removed


def _is_left(entry: os.DirEntry[str]) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
        if not entry.is_dir(follow_symlinks=False) or status.st_uid != os.geteuid():
            return False
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

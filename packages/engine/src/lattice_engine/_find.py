"""Finds the engine binary: the one named by ``LATTICE_ENGINE``, or the one inside the wheel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lattice_engine._errors import EngineMissing

BINARY = "lattice-engine.exe" if sys.platform == "win32" else "lattice-engine"


def engine_path() -> Path:
    """The absolute path of the engine binary.

    Raises:
        EngineMissing: there is none, or it cannot be executed.
    """
    named = os.environ.get("LATTICE_ENGINE")
    path = Path(named).absolute() if named else Path(__file__).parent / "_bin" / BINARY
    if not path.is_file():
        raise EngineMissing(
            "engine_missing",
            f"LATTICE_ENGINE names {path}, which is not there: correct or unset it"
            if named
            else f"the engine binary is not at {path}: this lattice-engine was installed from "
            "source without its binary. Install the lattice-engine wheel of this platform, or run "
            "`make setup` in a clone (it needs Go), or set LATTICE_ENGINE to such a binary",
        )
    if not os.access(path, os.X_OK):
        raise EngineMissing(
            "engine_missing",
            f"the engine binary {path} may not be executed by this user: "
            "check its mode (chmod 755) and that its file system is not mounted noexec",
        )
    return path

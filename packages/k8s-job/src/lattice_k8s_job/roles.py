"""What both roles have in common: settings, log, and how a failure is told."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from lattice_k8s_job import settings as pod
from lattice_k8s_job.ending import Ending
from lattice_sdk.errors import LatticeError, redact

log = logging.getLogger("lattice.k8s")

DEFECT = 70  # EX_SOFTWARE, sysexits.h
PR_SET_DUMPABLE = 4  # prctl(2)


def run(role: str, ending: Ending) -> int:
    """Be ``init`` or ``sidecar``; the exit status."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    close_to_others()
    try:
        settings = pod.load()
        own_scratch(settings.state_dir.parent / "tmp")
        if role == "init":
            from lattice_k8s_job.init import init

            return asyncio.run(init(settings, ending))
        from lattice_k8s_job.sidecar import sidecar

        return asyncio.run(sidecar(settings, ending))
    except LatticeError as error:
        # The last lines are what `kubectl describe pod` shows of a container that failed.
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  what to do: {error.hint}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        text = redact(f"{type(error).__name__}: {error}")
        print(f"error: this is a defect of lattice-k8s: {text}", file=sys.stderr)
        return DEFECT


def close_to_others() -> None:
    """Keep this process's memory and files from others of the pod, where processes are shared.

    Not dumpable, it is closed also to a root without CAP_SYS_PTRACE that takes on its user id
    (ptrace(2), "Ptrace access mode checking").
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def own_scratch(path: Path) -> None:
    """Make temporary files go to the shared volume: the root file system is read-only.

    What a killed predecessor left there is removed.
    """
    if not path.parent.is_dir():
        return
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(path)

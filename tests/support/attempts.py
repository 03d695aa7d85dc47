"""Making the attempts of :mod:`support.attack`, and how they came out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ATTACK = Path(__file__).parent / "attack.py"


@dataclass(frozen=True)
class Attempt:
    """How one came out."""

    reached: bool
    why: str
    seconds: float


def told(done: subprocess.CompletedProcess[str]) -> Attempt:
    """What an attempt printed last."""
    assert done.stdout.strip(), f"exit {done.returncode}: {done.stderr}"
    line = json.loads(done.stdout.splitlines()[-1])
    return Attempt(line["reached"], str(line["why"]), line["seconds"])


def command(name: str, arguments: dict[str, Any]) -> list[str]:
    return [sys.executable, "-I", str(ATTACK), name, json.dumps(arguments)]


def outside(name: str, /, **arguments: Any) -> Attempt:
    """An attempt by a program that is in no sandbox."""
    done = subprocess.run(
        command(name, arguments), capture_output=True, text=True, timeout=60, check=False
    )
    return told(done)


# What runs an attempt after unshare(2), with loopback up where the network is its own.
UNSHARED = """
import ctypes, fcntl, runpy, socket, struct, sys
flags = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(flags) == 0, ctypes.get_errno()
if flags & 0x40000000:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NEW_MOUNTS, NEW_USER, NEW_NETWORK = 0x20000, 0x10000000, 0x40000000  # linux/sched.h


def unshared(flags: int, name: str, /, **arguments: Any) -> Attempt:
    """An attempt by a program in no sandbox, but in new namespaces."""
    done = subprocess.run(
        [sys.executable, "-c", UNSHARED, str(flags), *command(name, arguments)[2:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return told(done)


def in_own_namespaces(name: str, /, **arguments: Any) -> Attempt:
    """An attempt by somebody who has every capability, in namespaces of his own."""
    return unshared(NEW_MOUNTS | NEW_USER | NEW_NETWORK, name, **arguments)

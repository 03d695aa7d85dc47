"""The contract suite finds what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lattice_sdk.testing.leftovers import Leftovers

# Into namespaces of its own, without root; waits for the end of its input.
PROGRAM = """
import ctypes, sys
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
assert ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
print("there", flush=True)
sys.stdin.read()
"""


def test_namespace_that_somebody_still_holds_is_found(tmp_path: Path) -> None:
    leftovers = Leftovers(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        leftovers.note()
        held = os.open(f"/proc/{child.pid}/ns/net", os.O_RDONLY)
        assert any(f"process {child.pid}:" in line for line in leftovers.found())
    left = leftovers.of_program()
    assert len(left) == 1
    assert left[0].startswith("namespace net:[")
    assert f"process {os.getpid()}:" in left[0]
    os.close(held)
    assert leftovers.of_program() == []
    assert leftovers.found() == []


def test_namespaces_and_processes_of_before_are_nobodys_leftovers(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as before:
        leftovers = Leftovers(tmp_path)
        leftovers.note()
        assert leftovers.found() == []
        before.kill()

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


# A program of its own: whatever it leaves is adopted by an ancestor of it, whoever runs the tests.
ORPHAN = f"""
import subprocess, sys
from pathlib import Path
from lattice_sdk.testing.leftovers import Leftovers, _namespaces

def orphan():
    '''Process id of one in namespaces of its own, whose parent has ended.'''
    program = 'exec 3<&0; "$@" <&3 & echo $!'
    command = ["sh", "-c", program, "sh", sys.executable, "-c", {PROGRAM!r}]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    lines = [parent.stdout.readline(), parent.stdout.readline()]
    parent.wait()
    return next(int(line) for line in lines if line != "there\\n"), parent.stdin

stranger, _stranger_ends = orphan()
leftovers = Leftovers(Path(sys.argv[1]))
left, _left_ends = orphan()
# As if children that were noted had been in these.
leftovers._noted_namespaces = _namespaces(stranger) - leftovers._own
print(leftovers.of_program())
leftovers._noted_namespaces = _namespaces(left) - leftovers._own
print(sorted(line.split(":[")[0] for line in leftovers.of_program()))
"""


def test_namespace_of_the_same_number_in_another_tree_is_nobodys_leftover(tmp_path: Path) -> None:
    """The kernel gives the number of one that has gone to the next that anybody makes."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "[]\n['namespace net', 'namespace user']\n", done.stderr

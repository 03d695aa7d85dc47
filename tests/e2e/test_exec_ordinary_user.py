"""``lattice exec`` as an ordinary user: namespaces, keeper and engine all without root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import World
from support.left import Left, watched
from support.sandboxes import NOBODY_IN_PARTICULAR
from support.waiting import long_sleep, processes_mentioning, wait_for
from support.wrapped import GRANTED

# The tests' own Python may be in a directory of root's, so files may be read; that is all. The
# program inside has not even that.
ORDINARY = ["setpriv", "--reuid", str(NOBODY_IN_PARTICULAR), "--regid", str(NOBODY_IN_PARTICULAR)]
ORDINARY += ["--clear-groups", "--inh-caps", "+dac_read_search"]
ORDINARY += ["--ambient-caps", "+dac_read_search"]


class Ordinary:
    """Runs the command as somebody who is not root."""

    def __init__(self, world: World, home: Path, left: Left) -> None:
        self.left = left
        prefix = ORDINARY if os.getuid() == 0 else []
        self.prefix = [*prefix, sys.executable, "-m", "lattice_sdk", "exec", "--"]
        self.temporary = home / "t"
        if os.getuid() == 0:
            for place in (home, self.temporary):
                os.chown(place, NOBODY_IN_PARTICULAR, NOBODY_IN_PARTICULAR)
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "TMPDIR": str(self.temporary),
            "LATTICE_SERVER": world.fabric.url,
            "LATTICE_TOKEN": world.fabric.workspace_token,
            "LATTICE_ISOLATION": "required",
        }

    def run(self, *program: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        settings = {"capture_output": True, "text": True, "timeout": 60, "cwd": "/", **settings}
        return subprocess.run([*self.prefix, *program], env=self.environment, **settings)


@pytest.fixture
def ordinary(world: World) -> Iterator[Ordinary]:
    """In a directory that is not within one of root's, as pytest's are."""
    with tempfile.TemporaryDirectory(prefix="lattice-home-") as home:
        temporary = Path(home, "t")
        temporary.mkdir()
        with watched(world.fabric, temporary) as left:
            yield Ordinary(world, Path(home), left)


def test_network_is_the_tunnel(ordinary: Ordinary, world: World) -> None:
    script = f"id -u; grep CapEff /proc/self/status; curl -sS --max-time 9 {GRANTED}; echo; "
    script += f"ls /sys/class/net; curl -sS --max-time 9 {world.fabric.url}"
    done = ordinary.run("sh", "-c", script)
    uid, capabilities, answer, *rest = done.stdout.splitlines()
    assert uid == str(NOBODY_IN_PARTICULAR if os.getuid() == 0 else os.getuid())
    assert capabilities.split()[1] == "0" * 16
    assert json.loads(answer)["client"].startswith("10.96.")
    assert rest == ["lattice0", "lo"]
    assert done.returncode == 7
    assert ordinary.left.found() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_kill_leaves_nothing(ordinary: Ordinary, number: signal.Signals) -> None:
    """The launcher's user namespace is not the starter's: who may signal whom is not the same."""
    long = long_sleep()
    script = f"trap '' TERM; (setsid sleep {long} &); echo up; sleep {long}"
    script = script if number == signal.SIGKILL else f"echo up; exec sleep {long}"
    with subprocess.Popen(
        [*ordinary.prefix, "sh", "-c", script],
        env=ordinary.environment,
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        ordinary.left.note()
        process.send_signal(number)
        killed = time.monotonic()
        wait_for("programs to be gone", lambda: not processes_mentioning(f"sleep {long}"))
        assert time.monotonic() - killed < 10  # two are promised, on a machine that does only this
        assert process.wait(20) == -number
    wait_for("nothing to be left", lambda: not ordinary.left.found(), instead=ordinary.left.found)


def test_many_at_once(ordinary: Ordinary) -> None:
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda code: ordinary.run("sh", "-c", f"exit {code}"), range(12)))
    assert [each.returncode for each in done] == list(range(12))
    assert ordinary.left.found() == []

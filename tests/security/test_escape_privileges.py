"""Nobody gets privileges in a sandbox, nor changes its network, its mounts or the kernel."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lattice_sdk import LatticeAgent
from support.attempts import command, outside, told

Held = Callable[..., Any]
ROOT = os.geteuid() == 0


def in_own_namespaces(name: str, /, **arguments: Any) -> Any:
    """An attempt by somebody who has every capability in namespaces of his own."""
    script = (
        "import ctypes, os, runpy, sys\n"
        "assert ctypes.CDLL(None).unshare(0x10000000 | 0x40000000 | 0x20000) == 0\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments_of = command(name, arguments)[2:]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments_of],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return told(done)


@pytest.mark.parametrize("what", ["address", "route", "rule", "interface"])
def test_network_cannot_be_configured(inside: Held, what: str) -> None:
    free = in_own_namespaces("configure", what=what)
    assert free.reached or (what == "route" and "Network is down" in free.why), free.why
    attempt = inside("configure", what=what)
    assert not attempt.reached, attempt.why


@pytest.mark.parametrize("name", ["own_user_namespace", "own_network_namespace"])
def test_namespaces_cannot_be_made(held: Held, inside: Held, name: str) -> None:
    if ROOT or name == "own_user_namespace":
        held(name)
    else:
        assert not inside(name).reached


@pytest.mark.parametrize("target", ["/etc/hosts", "/proc", "/tmp", "/run"])
def test_mounts_cannot_be_changed(inside: Held, target: str) -> None:
    if os.path.isdir(target):
        assert in_own_namespaces("mount", target=target).reached
    for name in ("mount", "unmount"):
        attempt = inside(name, target=target)
        assert not attempt.reached, f"{name} {target}: {attempt.why}"


def test_no_capability_is_held(held: Held) -> None:
    held("capabilities")


def test_setuid_program_gives_no_privilege(held: Held, inside: Held, tmp_path: Path) -> None:
    program = shutil.which("su") or "/bin/su"
    if ROOT:  # who is root already has nothing to gain; a program of somebody else's then
        copy = tmp_path / "cat"
        program = str(copy)
        other = 65534  # nobody
        shutil.copy(os.path.realpath(shutil.which("cat") or "/bin/cat"), copy)
        os.chown(copy, other, other)
        copy.chmod(0o4755)
        for parent in (tmp_path, *tmp_path.parents):
            if parent.owner() == "root" and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    held("setuid", program=program)


def test_system_calls_past_the_filter_are_not_to_be_had(held: Held, inside: Held) -> None:
    held("foreign_system_call")
    assert not inside("io_uring").reached


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
    ],
)
def test_settings_of_the_kernel_cannot_be_written(held: Held, inside: Held, path: str) -> None:
    if ROOT and os.path.exists(path):
        held("write_file", path=path)
    else:  # an ordinary user may not write them outside either
        assert not inside("write_file", path=path).reached


def test_devices_of_the_host_cannot_be_opened(held: Held) -> None:
    disks = [f"/dev/{name}" for name in os.listdir("/dev") if name in ("vda", "sda", "nvme0n1")]
    for path in ["/dev/mem", "/dev/kmsg", *disks]:
        if outside("write_file", path=path).reached:
            held("write_file", path=path)


def test_nothing_is_typed_into_the_callers_terminal(agent: LatticeAgent) -> None:
    attempt = command("push_input", {"text": "id\n"})
    master, slave = pty.openpty()
    try:
        script = (
            "import fcntl, os, sys, termios\n"
            "os.setsid()\n"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "os.execv(sys.argv[1], sys.argv[1:])\n"
        )
        session = [sys.executable, "-c", script]
        options: dict[str, Any] = {
            "stdin": slave,
            "stdout": subprocess.PIPE,
            "text": True,
            "timeout": 60,
            "check": False,
        }
        free = told(subprocess.run([*session, *attempt], **options))
        assert free.reached, f"the attempt proves nothing: {free.why}"
        caught = told(subprocess.run([*session, *agent.wrap(attempt)], **options))
        assert not caught.reached
    finally:
        os.close(master)
        os.close(slave)

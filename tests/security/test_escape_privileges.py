"""Nobody gets privileges in a sandbox, nor changes its network, its mounts or the kernel."""

from __future__ import annotations

import os
import platform
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.attempts import command, in_own_namespaces, outside, told
from support.inside import Inside

Held = Callable[..., Any]
ROOT = os.geteuid() == 0
DISKS = [f"/dev/{name}" for name in os.listdir("/dev") if name in ("vda", "sda", "nvme0n1")]


@pytest.mark.parametrize("what", ["address", "route", "rule", "interface"])
def test_network_cannot_be_configured(held: Held, what: str) -> None:
    held("configure", free=in_own_namespaces, what=what)


@pytest.mark.parametrize("name", ["own_user_namespace", "own_network_namespace"])
def test_namespaces_cannot_be_made(held: Held, name: str) -> None:
    # A network of one's own takes a privilege, which everybody has in a user namespace of his own.
    held(name, free=outside if name == "own_user_namespace" else in_own_namespaces)


@pytest.mark.parametrize("target", ["/etc/hosts", "/etc/resolv.conf", "/proc", "/tmp", "/run"])
def test_mounts_cannot_be_changed(held: Held, inside: Held, target: str) -> None:
    held("mount", free=in_own_namespaces, target=target)
    free = in_own_namespaces("unmount", target=target, mounted=False)
    assert free.reached, f"the attempt proves nothing, it fails outside too: {free.why}"
    caught = inside("unmount", target=target)
    assert not caught.reached
    assert "Operation not permitted" in caught.why, "there is nothing to unmount"


def test_no_capability_is_held(held: Held) -> None:
    held("capabilities")


def test_setuid_program_gives_no_privilege(held: Held, tmp_path: Path) -> None:
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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 has a second set of calls")
def test_system_calls_past_the_filter_are_not_to_be_had(held: Held) -> None:
    held("foreign_system_call")


def test_ring_is_not_to_be_had(inside: Held) -> None:
    free = outside("io_uring")
    if not free.reached:  # sysctl kernel.io_uring_disabled, or a kernel that is built without
        assert "not permitted" in free.why or "not implemented" in free.why, free.why
    caught = inside("io_uring")
    assert not caught.reached
    assert "not implemented" in caught.why


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/dev/mem",
        "/dev/kmsg",
        *DISKS,
    ],
)
def test_kernel_and_devices_of_the_host_cannot_be_written(inside: Held, path: str) -> None:
    free = outside("write_file", path=path)
    # What an ordinary user may not write outside either, nor root in a container its devices.
    if ROOT and os.path.exists(path) and not path.startswith("/dev/"):
        assert free.reached, f"the attempt proves nothing, it fails outside too: {free.why}"
    caught = inside("write_file", path=path)
    assert not caught.reached, caught.why


def test_nothing_is_typed_into_the_callers_terminal(inside: Inside) -> None:
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
        caught = told(
            subprocess.run([*session, *inside.wrap(attempt)], env=inside.environment, **options)
        )
        assert not caught.reached
    finally:
        os.close(master)
        os.close(slave)

"""Where a machine forbids sandboxes, the launcher says precisely what does, and starts nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from lattice_sdk.sandbox import trouble
from support.sandboxes import Sandbox

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="changes the machine's mounts")


def refusal(sandbox: Sandbox, machine: str) -> str:
    """The launcher's sentence on a machine that was changed so."""
    done = sandbox.run("sh", "-c", "echo the program ran", machine=machine)
    assert done.returncode == 125, done.stderr
    assert done.stdout == ""
    return done.stderr


def test_masked_proc(sandbox: Sandbox) -> None:
    """As container runtimes have it."""
    said = refusal(sandbox, "mount -t tmpfs tmpfs /proc/bus")
    assert "/proc/bus hides a part of /proc, as containers do" in said
    assert "systempaths=unconfined" in said
    assert "procMount: Unmasked" in said


def test_machine_without_hosts(sandbox: Sandbox) -> None:
    machine = "mount -t tmpfs t /mnt && cp -a /etc /mnt/etc && rm /mnt/etc/hosts"
    said = refusal(sandbox, f"{machine} && mount --bind /mnt/etc /etc")
    assert "touch /etc/hosts" in said


def test_machine_without_resolv_conf_is_as_good(sandbox: Sandbox) -> None:
    """The resolver then asks 127.0.0.1, which is the sandbox's own."""
    machine = "mount -t tmpfs t /mnt && cp -a /etc /mnt/etc && rm /mnt/etc/resolv.conf"
    done = sandbox.run("true", machine=f"{machine} && mount --bind /mnt/etc /etc")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("limit", ["max_pid_namespaces", "max_mnt_namespaces"])
def test_limit_of_namespaces(own_sandbox: Sandbox, limit: str) -> None:
    """Set in the user namespace of the sandbox, as an administrator would for the machine."""
    lower = f"""
import ctypes, os
assert ctypes.CDLL(None).setns(os.open({own_sandbox.spec.user!r}, os.O_RDONLY), 0) == 0
open("/proc/sys/user/{limit}", "w").write("0")
"""
    subprocess.run([sys.executable, "-c", lower], check=True, timeout=20)
    done = own_sandbox.run("echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert f"user.{limit} is " in done.stderr
    assert f"sysctl -w user.{limit}=10000" in done.stderr


SETTINGS = {
    trouble.APPARMOR: ("1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    trouble.USERNS_CLONE: ("0", "kernel.unprivileged_userns_clone=1"),
}


@pytest.mark.parametrize("path", SETTINGS)
def test_settings_of_distributions_are_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This kernel does not have them, so what is read is given."""
    value, advice = SETTINGS[path]
    monkeypatch.setattr(trouble, "setting", lambda asked: value if asked == path else "")
    assert advice in trouble.cause(errno.EPERM)


def test_seccomp_of_a_container_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "field", {"Seccomp": "2"}.get)
    assert "seccomp=unconfined" in trouble.cause(errno.EPERM)


def test_old_kernel_is_named() -> None:
    assert "Linux 5.12" in trouble.cause(errno.ENOSYS)

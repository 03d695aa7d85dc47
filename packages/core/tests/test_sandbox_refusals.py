"""Where a machine forbids sandboxes, the launcher says precisely what does, and starts nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from lattice_sdk.sandbox import trouble
from lattice_sdk.sandbox.spec import NAMESPACE, PROBE
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


# Executes what follows under a filter that refuses new namespaces, as a container runtime's does.
FILTERED = """
import ctypes, errno, os, sys
sys.path.insert(0, sys.argv[1])
from lattice_sdk.sandbox import kernel, seccomp
allow = 0x7FFF0000  # seccomp(2)
judge = seccomp.Program()
judge.load_argument(0)
judge.if_any_bit(int(sys.argv[2]), errno.EPERM)
judge.returns(allow)
program = seccomp.Program()
program.load(0)
for name in ("unshare", "clone"):
    program.on(seccomp.SYSCALLS[os.uname().machine][name], judge)
program.returns(allow)
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
kernel.install_filter(bytes(program))
os.execv(sys.argv[3], sys.argv[3:])
"""
NEW_TIME, NEW_USER, NEW_PID = 0x80, 0x10000000, 0x20000000  # linux/sched.h


def under_filter(sandbox: Sandbox, flags: int) -> subprocess.CompletedProcess[str]:
    """A program of a sandbox whose launcher may make no namespaces of these kinds."""
    before = (sandbox.python, "-I", "-S", "-c", FILTERED, str(sandbox.code), str(flags))
    return sandbox.run("echo", "ran", before=before)


@pytest.mark.parametrize(
    ("kind", "flag", "step"),
    [
        (NAMESPACE, NEW_PID, "a process namespace of its own"),
        (PROBE, NEW_USER, "a user namespace"),
        (PROBE, NEW_PID, "a process namespace of its own"),
    ],
)
def test_seccomp_of_a_container_is_named(
    own_sandbox: Sandbox, kind: str, flag: int, step: str
) -> None:
    own_sandbox.spec.kind = kind
    own_sandbox.write()
    free = under_filter(own_sandbox, NEW_TIME)
    assert (free.returncode, free.stdout) == (0, "ran\n"), free.stderr
    done = under_filter(own_sandbox, flag)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"the sandbox cannot be made: {step}: Operation not permitted" in done.stderr
    assert "seccomp=unconfined" in done.stderr


def test_old_kernel_is_named() -> None:
    assert "Linux 5.12" in trouble.cause(errno.ENOSYS)

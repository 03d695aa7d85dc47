"""A program in a sandbox has no powers, whoever starts it; made attempts, for real."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from support.sandboxes import Sandbox

STATUS = """
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(f"{name}={fields[name].strip()}" for name in NAMES))
"""


def status(sandbox: Sandbox, *names: str) -> dict[str, str]:
    """Fields of /proc/self/status, inside."""
    text = sandbox.script(STATUS.replace("NAMES", repr(names)))
    return dict(pair.split("=", 1) for pair in text.split(" "))


def attempt(sandbox: Sandbox, code: str, **settings: object) -> str:
    """The name of the error that ``code`` ends with inside, or what it printed."""
    wrapped = f"""
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result
def number(x86, arm):
    return x86 if os.uname().machine == "x86_64" else arm
try:
{"".join(f"    {line}{chr(10)}" for line in code.strip().splitlines())}
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    return sandbox.script(wrapped, **settings)


def test_there_are_no_capabilities_and_none_can_be_had(sandbox: Sandbox) -> None:
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert set(status(sandbox, *names).values()) == {"0" * 16}
    assert attempt(sandbox, "print(hex(libc.prctl(27, 0, 0, 0, 0)))") == "0xef"  # securebits
    assert status(sandbox, "NoNewPrivs", "Seccomp") == {"NoNewPrivs": "1", "Seccomp": "2"}


def test_user_and_group_are_as_outside(sandbox: Sandbox) -> None:
    assert sandbox.script("import os; print(os.getuid(), os.getgid())") == (
        f"{sandbox.uid} {sandbox.uid}"
    )


def test_setuid_programs_gain_nothing(sandbox: Sandbox) -> None:
    owner = 1 if os.getuid() == 0 else os.getuid()
    with tempfile.TemporaryDirectory(prefix="lattice-place-") as place:
        Path(place).chmod(0o755)
        program = Path(place, "id")
        program.write_bytes(Path("/usr/bin/id").read_bytes())
        os.chown(program, owner, owner)
        program.chmod(0o6755)
        outside = sandbox_user_runs(sandbox, str(program), "-u")
        assert outside == str(owner), "outside the bit works, so the test can fail"
        inside = sandbox.run(str(program), "-u").stdout.strip()
        assert inside == str(sandbox.uid)


def sandbox_user_runs(sandbox: Sandbox, *command: str) -> str:
    """Run something outside, as the sandbox's user."""
    import subprocess

    settings = sandbox._as_user()
    return subprocess.run(
        command, capture_output=True, text=True, check=True, **settings
    ).stdout.strip()


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("call(libc.unshare(0x10000000))", "EPERM"),
        ("call(libc.unshare(0x40000000))", "EPERM"),
        ("call(libc.unshare(0x00020000))", "EPERM"),
        ("call(libc.setns(os.open('/proc/self/ns/net', os.O_RDONLY), 0))", "EPERM"),
        ("call(libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None))", "EPERM"),
        ("call(libc.umount2(b'/etc/hosts', 2))", "EPERM"),
        ("call(libc.umount2(b'/run', 2))", "EPERM"),
        ("call(libc.mount(None, b'/proc/sys', None, 32 | 4096, None))", "EPERM"),
        ("call(libc.chroot(b'/tmp'))", "EPERM"),
        ("call(libc.sethostname(b'x', 1))", "EPERM"),
        ("call(libc.syscall(number(425, 425), 8, 0))", "ENOSYS"),
        ("call(libc.syscall(number(250, 219), 0, -3, 0))", "ENOSYS"),
        ("call(libc.syscall(number(321, 280), 0, 0, 0))", "ENOSYS"),
        ("os.mknod('/tmp/lattice-node', 0o20600, os.makedev(1, 3))", "EPERM"),
        ("os.setgroups([0])", "EPERM"),
    ],
)
def test_what_needs_a_power_is_refused(sandbox: Sandbox, code: str, answer: str) -> None:
    assert attempt(sandbox, code) == answer


CLONE3 = """
import struct
arguments = ctypes.create_string_buffer(struct.pack("QQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, 0, 0))
child = call(libc.syscall(435, arguments, 64))
if child == 0:
    os._exit(0)
print("a child in a user namespace of its own")
"""


def test_clone3_makes_no_user_namespace(sandbox: Sandbox) -> None:
    """seccomp cannot look at its flags; the limit of the sandbox's own user namespace is 0."""
    assert attempt(sandbox, CLONE3) == "ENOSPC"
    raised = 'open("/proc/sys/user/max_user_namespaces", "w").write("9")'
    assert attempt(sandbox, raised) in ("EROFS", "EACCES")


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "answer"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, 0, "EACCES"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, 0, "EACCES"),
        (socket.AF_PACKET, socket.SOCK_RAW, 0, "EAFNOSUPPORT"),
        (socket.AF_VSOCK, socket.SOCK_STREAM, 0, "EAFNOSUPPORT"),
        (socket.AF_ALG, socket.SOCK_SEQPACKET, 0, "EAFNOSUPPORT"),
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP, "EPERM"),
        (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP, "EPERM"),
        (socket.AF_INET, socket.SOCK_STREAM, 0, "made"),
        (socket.AF_INET6, socket.SOCK_DGRAM, 0, "made"),
        (socket.AF_NETLINK, socket.SOCK_RAW, 0, "made"),
    ],
)
def test_sockets_are_of_the_families_that_the_namespace_bounds(
    sandbox: Sandbox, family: int, kind: int, protocol: int, answer: str
) -> None:
    code = f"socket.socket({int(family)}, {int(kind)}, {protocol}); print('made')"
    assert attempt(sandbox, code) == answer


def test_pairs_of_sockets_lead_nowhere_else(sandbox: Sandbox) -> None:
    assert attempt(sandbox, "socket.socketpair(); print('made')") == "made"
    datagrams = "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); print('made')"
    assert attempt(sandbox, datagrams) == "EACCES"


def test_unix_sockets_can_be_asked_for(sandbox: Sandbox) -> None:
    code = "socket.socket(socket.AF_UNIX); print('made')"
    assert attempt(sandbox, code, options=("--unix-sockets",)) == "made"


def test_first_process_is_out_of_reach(sandbox: Sandbox) -> None:
    assert attempt(sandbox, "call(libc.ptrace(16, 1, 0, 0))") == "EPERM"
    assert attempt(sandbox, "os.readlink('/proc/1/fd/0')") in ("EACCES", "EPERM")
    if sandbox.uid:
        assert attempt(sandbox, "open('/proc/1/environ').read()") == "EACCES"
    assert attempt(sandbox, "open('/proc/1/mem', 'rb')") in ("EACCES", "EPERM")
    survives = "os.kill(1, 9); os.kill(1, 19); os.kill(1, 15); print('here')"
    assert attempt(sandbox, survives) == "here"


def test_nothing_outside_is_seen(sandbox: Sandbox) -> None:
    """Neither the launcher nor any other process of the user."""
    pids = sandbox.script("import os; print(*[p for p in os.listdir('/proc') if p.isdigit()])")
    assert set(map(int, pids.split())) <= {1, 2}
    assert sandbox.script("import os; print(os.getppid(), os.getpid())") == "1 2"
    assert attempt(sandbox, f"os.kill({os.getpid()}, 0)") == "ESRCH"


def test_program_itself_may_be_debugged(sandbox: Sandbox) -> None:
    """The launcher's secrecy does not stick to the program."""
    code = "print(len(open('/proc/self/environ').read()) > 0, os.access('/proc/self/mem', os.R_OK))"
    assert attempt(sandbox, code) == "True True"

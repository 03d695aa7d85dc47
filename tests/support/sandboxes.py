"""Namespaces of a test's own, and programs that the launcher runs in them, as root or without."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lattice_sdk import sandbox
from lattice_sdk.sandbox.spec import Spec

NOBODY_IN_PARTICULAR = 60123  # an ordinary user; needs no entry in /etc/passwd
# Run by the user whose namespaces they become; it waits for the end of its input.
HOLDER = """
import ctypes, fcntl, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.getuid(), os.getgid()
(made, making), (mapped, mapping) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    if libc.unshare(0x10000000 | 0x40000000) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    os.write(making, b"x")
    os.read(mapped, 1)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
        cookie = any_socket.getsockopt(socket.SOL_SOCKET, 71, 8)
    print(os.getpid(), int.from_bytes(cookie, sys.byteorder), flush=True)
    sys.stdin.read()
    os._exit(0)
os.read(made, 1)
def tell(name, text):
    with open(f"/proc/{child}/{name}", "w") as file:
        file.write(text)
if uid:
    tell("setgroups", "deny")
    tell("uid_map", f"{uid} {uid} 1")
    tell("gid_map", f"{gid} {gid} 1")
else:
    tell("uid_map", "0 0 4294967295")
    tell("gid_map", "0 0 4294967295")
os.write(mapping, b"x")
os.waitpid(child, 0)
"""


def users() -> list[int]:
    """Who tests run as: this process's user, and if that is root an ordinary one too."""
    return [0, NOBODY_IN_PARTICULAR] if os.getuid() == 0 else [os.getuid()]


def interpreter(uid: int) -> str:
    """A Python that this user can execute."""
    mine = os.path.realpath(sys.executable)
    if uid == os.getuid() or all(
        os.stat(place).st_mode & stat.S_IXOTH for place in (mine, *map(str, Path(mine).parents))
    ):
        return mine
    return "/usr/bin/python3"


class Sandbox:
    """A user and a network namespace with loopback, and what an agent prepares for its programs.

    Args:
        uid: whose it is.

    Attributes:
        spec: for the launcher; :meth:`write` after changes.
        directory: the agent's own, which no program sees.
        code: where the launcher's modules are.
    """

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.python = interpreter(uid)
        self.directory = Path(tempfile.mkdtemp(prefix="lattice-sandbox-"))
        self.code = Path(tempfile.mkdtemp(prefix="lattice-code-"))
        self.spec = Spec("namespace")

    def __enter__(self) -> Sandbox:
        home = self.code / "lattice_sdk" / "sandbox"
        shutil.copytree(Path(sandbox.__file__).parent, home)
        self._enter = home / "enter.py"
        view = self.directory / "view"
        view.mkdir()
        (view / "hosts").write_text("127.0.0.1 localhost\n10.96.0.7 github-tools.lattice\n")
        (view / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        (view / "identity.json").write_text('{"peerId": "peer-1"}')
        os.mkfifo(self.directory / "lifeline", 0o600)
        for place in (self.directory, view, self.directory / "lifeline", self.code):
            os.chown(place, self.uid, self.uid)
        self.code.chmod(0o755)
        self._holder = subprocess.Popen(
            [self.python, "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **self._as_user(),
        )
        assert self._holder.stdout is not None
        keeper, cookie = map(int, self._holder.stdout.readline().split())
        self._lifeline = os.open(self.directory / "lifeline", os.O_RDWR | os.O_CLOEXEC)
        spec = self.spec
        spec.user, spec.net = f"/proc/{keeper}/ns/user", f"/proc/{keeper}/ns/net"
        spec.cookie, spec.keeper, spec.view = cookie, keeper, str(view)
        spec.lifeline = str(self.directory / "lifeline")
        spec.masked = [str(self.directory)]
        spec.variables = {"LATTICE_SANDBOX": "/run/lattice/identity.json"}
        self.write()
        return self

    def __exit__(self, *_: object) -> None:
        self.drop_lifeline()
        self._holder.communicate("", timeout=10)
        shutil.rmtree(self.directory)
        shutil.rmtree(self.code)

    def write(self) -> None:
        """Make the spec's file anew."""
        self.spec.write(str(self.directory / "spec"))
        os.chown(self.directory / "spec", self.uid, self.uid)

    def drop_lifeline(self) -> None:
        """End as an agent does."""
        descriptor, self._lifeline = self._lifeline, -1
        if descriptor >= 0:
            os.close(descriptor)

    def kill_keeper(self) -> None:
        """End as an engine that is killed does."""
        os.kill(self.spec.keeper, 9)

    def command(self, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
        """What runs a program inside."""
        launcher = [self.python, "-I", "-S", str(self._enter), *options]
        return [*launcher, str(self.directory / "spec"), "--", *arguments]

    def run(
        self,
        *arguments: str,
        options: tuple[str, ...] = (),
        machine: str = "",
        before: tuple[str, ...] = (),
        **settings: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside and wait for it.

        Args:
            arguments: of the program.
            options: of the launcher.
            before: words of a command that executes the launcher.
            machine: shell commands of root that change the machine's mounts, for this run alone.
            settings: of :func:`subprocess.run`.
        """
        command = [*before, *self.command(*arguments, options=options)]
        user = self._as_user()
        if machine:
            who = f"exec setpriv --reuid {self.uid} --regid {self.uid} --clear-groups"
            who = who if self.uid else "exec"
            command = ["unshare", "-m", "sh", "-ec", f'{machine}\n{who} "$@"', "sh", *command]
            user = {}
        return subprocess.run(
            command,
            **{
                "capture_output": True,
                "text": True,
                "timeout": 30,
                "cwd": "/",
                "stdin": subprocess.DEVNULL,
                **user,
                **settings,
            },
        )

    def script(self, code: str, **settings: Any) -> str:
        """Run Python inside; what it printed.

        Raises:
            AssertionError: it failed.
        """
        done = self.run(self.python, "-I", "-c", code, **settings)
        assert done.returncode == 0, f"status {done.returncode}: {done.stderr}"
        return done.stdout.strip()

    def popen(
        self, *arguments: str, options: tuple[str, ...] = (), **settings: Any
    ) -> subprocess.Popen[str]:
        """Start a program inside."""
        command = self.command(*arguments, options=options)
        return subprocess.Popen(command, **{"text": True, **self._as_user(), **settings})

    def _as_user(self) -> dict[str, Any]:
        if self.uid == os.getuid():
            return {}
        return {"user": self.uid, "group": self.uid, "extra_groups": []}

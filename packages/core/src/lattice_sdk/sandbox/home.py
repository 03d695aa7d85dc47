"""Where an agent keeps what the launcher needs to run its programs: a directory of the engine's.

It is in the engine's own directory, so whatever happens to this process, it goes with the engine.
Imports little, as it is on the way of ``lattice exec``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
import time
import weakref

from lattice_sdk.sandbox.spec import HOME, HOSTS, IDENTITY, INSIDE, NAMESPACE, RESOLV, Spec

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "enter.py")
END_TIMEOUT = 5.0  # seconds for programs to be gone once they are killed
_LOOK = 0.005  # seconds between looks at whether they are
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?")
_RESOLV = """\
# There is no name server in this sandbox: names are in /etc/hosts (Lattice).
nameserver 127.0.0.1
options timeout:1 attempts:1
"""


class Home:
    """The directory of one tunnel's programs.

    Args:
        directory: to be made; nobody else may read where it is.
        spec: what the launcher is told, so far as it is not made here.
        facts: of the identity, as programs inside may know them; see :mod:`.facts`.

    Attributes:
        spec: path of the launcher's file.
    """

    def __init__(self, directory: str, spec: Spec, facts: Mapping[str, Any]) -> None:
        self._directory, self._view = directory, os.path.join(directory, "view")
        self.spec = os.path.join(directory, "spec")
        os.mkdir(directory, 0o700)
        os.mkdir(self._view, 0o755)
        self._lifeline = _Lifeline(os.path.join(directory, "lifeline"))
        self.update(facts)
        spec.lifeline, spec.view = self._lifeline.path, self._view
        if spec.kind == NAMESPACE:
            spec.variables[INSIDE] = f"{HOME}/{IDENTITY}"
        spec.write(self.spec)

    def update(self, facts: Mapping[str, Any]) -> None:
        """Tell running programs what a renewal has changed."""
        _overwrite(os.path.join(self._view, HOSTS), hosts_file(facts))
        _overwrite(os.path.join(self._view, RESOLV), _RESOLV)
        _overwrite(os.path.join(self._view, IDENTITY), json.dumps(facts, indent=1) + "\n")

    def end_programs(self, timeout: float = END_TIMEOUT) -> bool:
        """Kill all programs and wait until they are gone; whether they are. Again without effect.

        Args:
            timeout: seconds to wait.
        """
        return self._lifeline.end(timeout)

    def close(self) -> None:
        """:meth:`end_programs`, and remove the directory."""
        import shutil

        self.end_programs()
        shutil.rmtree(self._directory, ignore_errors=True)


def command(
    spec: str,
    arguments: Iterable[str],
    *,
    directory: str | None = None,
    unix_sockets: bool = False,
    options: Iterable[str] = (),
) -> list[str]:
    """What runs a program as a spec says.

    Args:
        spec: path of the launcher's file.
        arguments: the program and its arguments.
        directory: where it begins; where its starter is when left out.
        unix_sockets: whether it may make sockets of the Unix family.
        options: further ones of the launcher.
    """
    more = [*(("--cwd", directory) if directory else ()), *options]
    more += ["--unix-sockets"] if unix_sockets else []
    return [sys.executable, "-I", "-S", LAUNCHER, *more, spec, "--", *arguments]


def hosts_file(facts: Mapping[str, Any]) -> str:
    """``/etc/hosts`` for programs inside: loopback, and what the enrollment named."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    if _NAME.fullmatch(own := os.uname().nodename) and own != "localhost":
        lines.append(f"127.0.1.1 {own}")
    for service in facts.get("services", ()):
        # Whatever a control plane says, these become no other lines.
        names = [name for name in service.get("hostnames", ()) if _NAME.fullmatch(name)]
        if names and re.fullmatch(r"[0-9.]+", service.get("address", "")):
            lines.append(" ".join([service["address"], *names]))
    return "\n".join(lines) + "\n"


def namespace_spec(
    tunnel: Mapping[str, Any], engine: str, secret_files: Iterable[str | None]
) -> Spec:
    """What the launcher is told of a tunnel with a network namespace.

    Args:
        tunnel: the engine's answer about it.
        engine: the engine's directory.
        secret_files: where settings keep credentials.
    """
    namespace, spec = tunnel["network"]["namespace"], Spec(NAMESPACE)
    spec.user, spec.net = str(namespace["user"]), str(namespace["net"])
    spec.cookie, spec.keeper = int(namespace["cookie"]), int(namespace["pid"])
    spec.masked = secret_places(engine, secret_files)
    return spec


def secret_places(engine: str, named: Iterable[str | None]) -> list[str]:
    """Files and directories that hold credentials of Lattice, and that no program is to see.

    Args:
        engine: the engine's directory.
        named: paths from settings; those that are ``None`` are left out.
    """
    home = os.path.expanduser("~")
    places = [
        _shared(engine),
        *(os.path.abspath(os.path.expanduser(name)) for name in named if name),
    ]
    for variable, usual in (("XDG_CONFIG_HOME", ".config"), ("XDG_STATE_HOME", ".local/state")):
        places.append(os.path.join(os.environ.get(variable) or f"{home}/{usual}", "lattice"))
    # Of other agents, and of a fabric for development, which has an admin token; now and later.
    shared = f"lattice-{os.geteuid()}"
    for directory in (os.environ.get("TMPDIR"), "/tmp"):  # noqa: S108
        places += [f"{directory}/{shared}"] if directory else []
    return [place for place in dict.fromkeys(places) if os.path.exists(place)]


def _shared(engine: str) -> str:
    """The directory of all this user's engines, where this one is in it; see place.go."""
    parent = os.path.dirname(engine)
    return parent if os.path.basename(parent).startswith(f"lattice-{os.geteuid()}") else engine


class _Lifeline:
    """A FIFO that is held open for as long as programs may run; all launchers watch its end."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.mkfifo(path, 0o600)
        # For both directions, as else opening would wait for a launcher.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        _lifelines.add(self)

    def end(self, timeout: float) -> bool:
        if self._descriptor < 0:
            return True
        self.drop()
        # Each launcher has it locked until everything of its sandbox is gone.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return _locked(descriptor, time.monotonic() + timeout)
            finally:
                os.close(descriptor)
        return True

    def drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = drop


def _locked(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK)
        else:
            return True


def _overwrite(path: str, text: str) -> None:
    """Write a file in place, for it is mounted where programs read it; never half of a line."""
    data = text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        longer = os.fstat(descriptor).st_size - len(data)
        os.pwrite(descriptor, data + b"\n" * longer, 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


_lifelines: weakref.WeakSet[_Lifeline] = weakref.WeakSet()


def _drop_lifelines() -> None:
    for lifeline in list(_lifelines):
        lifeline.drop()


if hasattr(os, "register_at_fork"):
    # A forked child must not keep the programs of its parent alive.
    os.register_at_fork(after_in_child=_drop_lifelines)

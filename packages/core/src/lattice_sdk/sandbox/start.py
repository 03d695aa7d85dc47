"""Starting programs by the launcher, as :mod:`subprocess` and :mod:`asyncio` start them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, AnyStr, Generic, Literal

from lattice_sdk.errors import BackendUnavailable, ConfigurationError
from lattice_sdk.sandbox.home import command
from lattice_sdk.sandbox.program import is_withheld

if TYPE_CHECKING:
    from lattice_sdk.lifecycle import Lifecycle

StrOrBytesPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Command = StrOrBytesPath | Sequence[StrOrBytesPath]

# Of subprocess.Popen: the identity is this user's.
_OTHER_USER = ("user", "group", "extra_groups")


def wrapped(
    life: Lifecycle,
    arguments: Iterable[StrOrBytesPath],
    *,
    directory: StrOrBytesPath | None = None,
    unix_sockets: bool = False,
    options: Iterable[str] = (),
) -> list[str]:
    """What runs a program with the network of an identity.

    Raises:
        IdentityClosed: it is not open.
        IdentityExpired: its life is over.
        TunnelFailed: its tunnel is being rebuilt.
        BackendUnavailable: its backend runs no programs.
    """
    if sys.platform != "linux":
        raise BackendUnavailable(
            "only Linux programs can be started with an agent's network",
            hint="Start it yourself, with proxy_env() in its environment",
        )
    spec = life.living_tunnel().launcher_spec()
    where = os.fsdecode(directory) if directory is not None else None
    return command(
        spec,
        [os.fsdecode(word) for word in arguments],
        directory=where,
        unix_sockets=unix_sockets,
        options=options,
    )


class Program(subprocess.Popen[AnyStr], Generic[AnyStr]):
    """A program that runs with the network of an identity.

    As :class:`subprocess.Popen`, whose methods act on the program: what signals the launcher gets,
    the program gets, and the launcher ends as it ends.
    """

    def __init__(
        self,
        life: Lifecycle,
        arguments: Command,
        keeping: object,
        *,
        unix_sockets: bool = False,
        **settings: Any,
    ) -> None:
        self._keeping = keeping  # an agent that is forgotten is closed, and its programs end
        name, words = _words(arguments, settings)
        with _Report() as report:
            given = _settings(settings, report)
            options = _options(name, words, given, report)
            line = wrapped(life, words, unix_sockets=unix_sockets, options=options)
            super().__init__(line, **given)
            report.hand_over()
            failure = report.read()
            if failure is not None:
                self._abandon()
                raise _error(failure, name, life)

    def _abandon(self) -> None:
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def run(
    life: Lifecycle,
    arguments: Command,
    keeping: object,
    *,
    input: Any = None,  # noqa: A002 - as subprocess.run calls it
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **settings: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end; see :func:`subprocess.run`.

    Raises:
        CalledProcessError: ``check``, and its exit status is not 0.
        TimeoutExpired: it was killed after ``timeout`` seconds.
    """
    if input is not None:
        if settings.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        settings["stdin"] = subprocess.PIPE
    if capture_output:
        if settings.get("stdout") is not None or settings.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        settings["stdout"] = settings["stderr"] = subprocess.PIPE
    process: Program[Any]
    with Program(life, arguments, keeping, **settings) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()  # and with the launcher all that it has started
            raise
    done = subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


async def create_subprocess_exec(
    life: Lifecycle,
    program: StrOrBytesPath,
    arguments: Iterable[StrOrBytesPath],
    keeping: object,
    *,
    unix_sockets: bool = False,
    **settings: Any,
) -> asyncio.subprocess.Process:
    """Start a program from an event loop; see :func:`asyncio.create_subprocess_exec`."""
    stream_limit = {key: settings.pop(key) for key in ("limit",) if key in settings}
    name, words = _words([program, *arguments], settings)
    with _Report() as report:
        given = _settings(settings, report)
        options = _options(name, words, given, report)
        line = wrapped(life, words, unix_sockets=unix_sockets, options=options)
        given |= stream_limit
        process = await asyncio.create_subprocess_exec(line[0], *line[1:], **given)
        vars(process)["lattice_agent"] = keeping  # see Program
        report.hand_over()
        try:
            failure = await report.aread()
        except BaseException:
            process.kill()
            raise
        if failure is not None:
            await process.wait()
            raise _error(failure, name, life)
    return process


def scrubbed(environment: Mapping[Any, Any] | None) -> dict[str, str]:
    """An environment for a launcher: without credentials, which all of this user could see there.

    Args:
        environment: this process's when left out.
    """
    if environment is None:
        environment = os.environ
    decoded = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
    return {name: value for name, value in decoded.items() if not is_withheld(name)}


class _Report:
    """A pipe on which the launcher tells why a program has not started; it ends when it has."""

    def __enter__(self) -> _Report:
        self._reading, self.writing = os.pipe()
        return self

    def __exit__(self, *_: object) -> None:
        self.hand_over()
        os.close(self._reading)

    def hand_over(self) -> None:
        """The launcher has it."""
        descriptor, self.writing = self.writing, -1
        if descriptor >= 0:
            os.close(descriptor)

    def read(self) -> bytes | None:
        """Wait until the program has started; why it has not."""
        told = b""
        while data := os.read(self._reading, 4096):
            told += data
        return told or None

    async def aread(self) -> bytes | None:
        """:meth:`read`, awaited."""
        loop = asyncio.get_running_loop()
        os.set_blocking(self._reading, False)
        told = b""
        while True:
            readable = asyncio.Event()
            loop.add_reader(self._reading, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._reading)
            try:
                data = os.read(self._reading, 4096)
            except BlockingIOError:
                continue
            if not data:
                return told or None
            told += data


def _words(arguments: Command, settings: dict[str, Any]) -> tuple[str, list[str]]:
    """The program's name and its words, as :class:`subprocess.Popen` reads them."""
    if isinstance(arguments, (str, bytes, os.PathLike)):
        words = [os.fsdecode(arguments)]
    else:
        words = [os.fsdecode(word) for word in arguments]
    executable = settings.pop("executable", None)
    if settings.pop("shell", False):
        shell = os.fsdecode(executable) if executable is not None else "/bin/sh"
        return shell, [shell, "-c", *words]
    return (os.fsdecode(executable) if executable is not None else words[0]), words


def _settings(settings: dict[str, Any], report: _Report) -> dict[str, Any]:
    for name in _OTHER_USER:
        if settings.get(name) is not None:
            raise ConfigurationError(
                f"{name}: a program of the agent is run as the user that the agent is",
                hint="Start the whole agent as that user",
            )
    if settings.get("close_fds") is False:
        raise ConfigurationError(
            "close_fds=False: descriptors of this process would get into the agent's network",
            hint="Name those that the program needs in pass_fds",
        )
    kept = tuple(settings.get("pass_fds") or ())
    return {
        **settings,
        "env": scrubbed(settings.get("env")),
        "pass_fds": (*kept, report.writing),
    }


def _options(name: str, words: list[str], given: Mapping[str, Any], report: _Report) -> list[str]:
    kept = [str(each) for each in given["pass_fds"] if each != report.writing]
    options = ["--report", str(report.writing)]
    options += ["--fds", ",".join(kept)] if kept else []
    return options + (["--execute", name] if name != words[0] else [])


def _error(told: bytes, name: str, life: Lifecycle) -> Exception:
    """What the launcher's report means."""
    status, number, sentence = told.decode(errors="replace").split(" ", 2)
    if int(status) != _NOT_SANDBOXED:
        return OSError(int(number), os.strerror(int(number)), name)
    identity = life.identity
    return BackendUnavailable(
        sentence,
        code="sandbox_failed",
        peer_id=identity.peer_id if identity else None,
        hint="`lattice doctor` says what to change",
    )


_NOT_SANDBOXED: Literal[125] = 125

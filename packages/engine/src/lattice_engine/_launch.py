"""Starting an engine: its environment, its standard streams, its ready line."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
import weakref
from pathlib import Path

from lattice_engine._errors import EngineError
from lattice_engine._find import engine_path
from lattice_engine._log import EngineLog, tail_of

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from typing import Any, BinaryIO

# Where the engine may put files and find certificate authorities, knobs of the Go runtime, and what
# steers tests.
# Nothing else: the environment of an agent's process holds tokens.
KEPT_ENVIRONMENT = (
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SYSTEMROOT",
    "GODEBUG",
    "GOGC",
    "GOMEMLIMIT",
    "GOMAXPROCS",
    "GORACE",
    "GOTRACEBACK",
    "LATTICE_TEST_SILENCE",
)
KILL_WAIT = 2.0  # seconds between SIGTERM and SIGKILL of an engine that never became ready


class ParentPipe:
    """The write end of a netstack engine's standard input; its end is the engine's end."""

    def __init__(self) -> None:
        self.read, self._write = os.pipe()
        _pipes.add(self)

    def close(self) -> None:
        descriptor, self._write = self._write, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


_pipes: weakref.WeakSet[ParentPipe] = weakref.WeakSet()


def _drop_pipes_after_fork() -> None:
    # A forked child that kept the pipe open would keep the parent's engine alive after the parent.
    for pipe in list(_pipes):
        pipe.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_pipes_after_fork)


class Launch:
    """An engine that has been started, and may not be ready yet.

    Args:
        arguments: of the engine.
        log: file (appended to) or descriptor for the engine's log; a bounded one when left out.
        parent_pipe: whether its standard input is a pipe that this process holds open.

    Attributes:
        process: the engine's.
        pipe: that pipe, if there is one.
        log: the bounded log, if there is one.

    Raises:
        EngineMissing: there is no engine binary.
        EngineError: it cannot be executed.
    """

    def __init__(self, arguments: list[str], log: Path | int | None, *, parent_pipe: bool) -> None:
        command = [str(engine_path()), *arguments]
        self._named_log = log
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as always:
            self.pipe = ParentPipe() if parent_pipe else None
            if self.pipe is not None:
                undo.callback(self.pipe.close)
                always.callback(os.close, self.pipe.read)
            self.log = EngineLog() if log is None else None
            stderr: int
            if self.log is not None:
                undo.callback(self.log.close)
                stderr = self.log.fileno()
            elif isinstance(log, int):
                stderr = log
            else:
                stderr = always.enter_context(_appending(log)).fileno() if log else 0
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=self.pipe.read if self.pipe is not None else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env={
                        name: value for name in KEPT_ENVIRONMENT if (value := os.environ.get(name))
                    },
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineError(
                    "engine_start_failed",
                    f"{command[0]} cannot be executed ({error.strerror}): "
                    "is it built for this machine's system and processor?",
                ) from error
            undo.pop_all()

    def ready(self, timeout: float) -> dict[str, Any]:
        """Wait for the ready line; leaves nothing behind when there is none.

        Args:
            timeout: seconds to wait.

        Raises:
            EngineError: it did not start; the error has the engine's reason or its last log lines.
        """
        try:
            return _read_ready(self.process, timeout, self.log, self._named_log)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """End it, whether or not it is ready."""
        _end(self.process)
        if self.log is not None:
            self.log.close()
        if self.pipe is not None:
            self.pipe.close()


def _read_ready(
    process: subprocess.Popen[bytes],
    timeout: float,
    own_log: EngineLog | None,
    log: Path | int | None,
) -> dict[str, Any]:
    """The ready line, or the reason why there is none."""
    line = _read_line(process, time.monotonic() + timeout)
    try:
        ready = json.loads(line) if line else None
    except ValueError:
        ready = None
    if isinstance(ready, dict) and ready.get("ready") is True:
        return ready
    if line is None:
        code = "engine_start_timeout"
        reason = f"the engine was not ready within {timeout:g} s"
    elif isinstance(ready, dict):
        code = str(ready.get("code") or "engine_start_failed")
        reason = str(ready.get("error") or "the engine did not start")
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_WAIT)
        code = "engine_start_failed"
        reason = f"the engine ended with {exit_text(process.poll())} before it was ready"
    tail = _tail(own_log, log)
    raise EngineError(code, reason + (f"; its last log lines:\n{tail}" if tail else ""))


def _read_line(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """The first line of standard output; empty at its end, ``None`` when time is up."""
    stdout = process.stdout
    assert stdout is not None  # noqa: S101 - made with stdout=PIPE
    data = b""
    with stdout:
        while b"\n" not in data:
            left = deadline - time.monotonic()
            if left <= 0 or not readable(stdout.fileno(), left):
                return None
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                break
            data += chunk
    return data.partition(b"\n")[0]


def _tail(own_log: EngineLog | None, log: Path | int | None) -> str:
    if own_log is not None:
        return own_log.tail()
    if isinstance(log, Path):
        with contextlib.suppress(OSError), log.open("rb") as file:
            return tail_of(file.fileno())
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End an engine that did not become ready, without waiting for its good will."""
    process.terminate()
    try:
        process.wait(KILL_WAIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def exit_text(code: int | None) -> str:
    """How a process ended, for a sentence."""
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"


def readable(descriptor: int, timeout: float) -> bool:
    """Whether a descriptor is readable within ``timeout`` seconds.

    By poll: select fails on descriptors past 1023, which a busy agent process has.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _appending(path: Path) -> BinaryIO:
    """A log file, which is nobody else's business: it names peers and addresses."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "ab")

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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lattice_engine._errors import EngineError
from lattice_engine._find import engine_path
from lattice_engine._log import EngineLog, tail_of

# Where the engine may put files and find certificate authorities, and knobs of the Go runtime.
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


@dataclass
class Launched:
    """A started engine: its ready line and what must be kept while it runs."""

    ready: dict[str, Any]
    process: subprocess.Popen[bytes]
    pipe: ParentPipe | None
    log: EngineLog | None


def launch(
    arguments: list[str], log: Path | int | None, timeout: float, *, parent_pipe: bool
) -> Launched:
    """Start the engine and wait until it is ready; leaves nothing behind when it is not.

    Raises:
        EngineMissing: there is no engine binary.
        EngineError: it did not start; the error has the engine's reason or its last log lines.
    """
    command = [str(engine_path()), *arguments]
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as always:
        pipe = ParentPipe() if parent_pipe else None
        if pipe is not None:
            undo.callback(pipe.close)
            always.callback(os.close, pipe.read)
        own_log = EngineLog() if log is None else None
        stderr: IO[bytes] | EngineLog | int
        if own_log is not None:
            undo.callback(own_log.close)
            stderr = own_log
        else:
            stderr = always.enter_context(log.open("ab")) if isinstance(log, Path) else log or 0
        try:
            process = subprocess.Popen(
                command,
                stdin=pipe.read if pipe is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr if isinstance(stderr, int) else stderr.fileno(),
                env={name: value for name in KEPT_ENVIRONMENT if (value := os.environ.get(name))},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(
                "engine_start_failed",
                f"{command[0]} cannot be executed ({error.strerror}): "
                "is it built for this machine's system and processor?",
            ) from error
        undo.callback(_end, process)
        ready = _read_ready(process, timeout, own_log, log)
        undo.pop_all()
    return Launched(ready, process, pipe, own_log)


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

"""One running engine: started or taken up, spoken to, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lattice_engine._client import EngineClient
from lattice_engine._launch import Launch, exit_text, readable

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from typing import Any, Literal


class EngineProcess:
    """One running engine. Made by :meth:`start_netstack`, :meth:`start_gateway`, :meth:`attach`.

    A context manager that closes the engine.

    Attributes:
        pid: process id of the engine.
        control: path of its control socket.
        mode: ``netstack`` or ``gateway``.
        version: the engine's version.
        client: the control API.
    """

    pid: int
    control: Path
    mode: str
    version: str
    client: EngineClient

    def __init__(
        self,
        ready: dict[str, Any],
        *,
        launched: Launch | None = None,
        owns_directory: bool = False,
    ) -> None:
        self.pid = int(ready["pid"])
        self.control = Path(ready["control"])
        self.mode = str(ready["mode"])
        self.version = str(ready.get("version", ""))
        self._owner = os.getpid()
        self._process = launched.process if launched else None
        self._pipe = launched.pipe if launched else None
        self._log = launched.log if launched else None
        self._owns_directory = owns_directory
        # A gateway in a namespace of its own is two processes: the one that serves, inside, and its
        # parent outside, which ends with it.
        self._pidfds = [] if self._process and self._process.pid == self.pid else _pidfds(self.pid)
        self._ended = False
        self.client = EngineClient(
            self.control,
            on_request=self._log.trim if self._log else None,
            explain=self._explain,
        )

    def __repr__(self) -> str:
        return f"EngineProcess(mode={self.mode!r}, pid={self.pid}, control={str(self.control)!r})"

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._drop_pidfds()

    @classmethod
    def start_netstack(
        cls,
        *,
        runtime_dir: Path | None = None,
        log: Path | int | None = None,
        timeout: float = 10,
    ) -> EngineProcess:
        """Start an engine for the tunnels of this process; it ends with this process.

        Args:
            runtime_dir: directory of the control socket; one of the engine's own when left out.
            log: file (appended to) or descriptor for the engine's log; nowhere when left out.
            timeout: seconds until it must be ready.

        Raises:
            EngineMissing: there is no engine binary.
            EngineError: it did not start; the error has the engine's reason or its last log lines.
        """
        launched = cls.launch_netstack(runtime_dir=runtime_dir, log=log)
        return cls.of(launched, timeout=timeout, owns_directory=runtime_dir is None)

    @classmethod
    def launch_netstack(
        cls, *, runtime_dir: Path | None = None, log: Path | int | None = None
    ) -> Launch:
        """:meth:`start_netstack` without waiting for it, which :meth:`of` does."""
        arguments = ["netstack", "--parent-pipe", *_runtime_dir(runtime_dir)]
        return Launch(arguments, log, parent_pipe=True)

    @classmethod
    def of(
        cls, launched: Launch, *, timeout: float = 10, owns_directory: bool = True
    ) -> EngineProcess:
        """The engine that has been launched, once it is ready.

        Args:
            launched: by :meth:`launch_netstack`.
            timeout: seconds until it must be ready.
            owns_directory: whether its runtime directory is one of its own.

        Raises:
            EngineError: it did not start; the error has the engine's reason or its last log lines.
        """
        return cls(launched.ready(timeout), launched=launched, owns_directory=owns_directory)

    @classmethod
    def start_gateway(
        cls,
        *,
        private_key_file: Path,
        listen_port: int,
        address: str,
        namespace: Literal["own", "host"] | None = None,
        interface: str | None = None,
        runtime_dir: Path | None = None,
        log: Path | int | None = None,
        timeout: float = 20,
    ) -> EngineProcess:
        """Start a gateway's data plane; it outlives this process.

        Args:
            private_key_file: file with the gateway's private key as ``wg genkey`` prints it.
            listen_port: UDP port, 0 for any free one (``status()["listenPort"]`` tells).
            address: the gateway's overlay address with the overlay's prefix, ``10.96.0.1/16``.
            namespace: ``own`` (needs no root) or ``host``; the engine's choice when left out.
            interface: name of the WireGuard interface.
            runtime_dir: directory of the control socket; one of the engine's own when left out.
            log: file (appended to) or descriptor for the engine's log; nowhere when left out.
            timeout: seconds until it must be ready.

        Raises:
            EngineMissing: there is no engine binary.
            EngineError: it did not start; the error has the engine's reason or its last log lines.
        """
        arguments = ["gateway", "--private-key-file", str(private_key_file.absolute())]
        arguments += ["--listen-port", str(listen_port), "--address", address]
        arguments += ["--namespace", namespace] if namespace else []
        arguments += ["--interface", interface] if interface else []
        arguments += _runtime_dir(runtime_dir)
        launched = Launch(arguments, log, parent_pipe=False)
        return cls.of(launched, timeout=timeout, owns_directory=runtime_dir is None)

    @classmethod
    def attach(cls, control: Path) -> EngineProcess:
        """Take up an engine that runs already.

        Raises:
            EngineError: nobody answers at that socket.
        """
        probe = EngineClient(control)
        try:
            status = probe.status()
        finally:
            probe.close()
        return cls({**status, "control": str(control)})

    @staticmethod
    def sweep() -> list[str]:
        """Remove the directories of engines that were killed with all who knew of them."""
        from lattice_engine._sweep import sweep

        return sweep(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - where engines make theirs

    def alive(self) -> bool:
        """Whether the engine's process runs."""
        if self._ended:
            return False
        if self._pidfds:
            return not readable(self._pidfds[0], 0)
        if self._process is not None and self._owner == os.getpid():
            return self._process.poll() is None
        return _exists(self.pid)

    def close(self, timeout: float = 12) -> None:
        """End the engine and wait for it; again, or in a forked child, without effect.

        A netstack engine carries out its revokes first. One that does not end in time is killed.

        Args:
            timeout: seconds to wait.
        """
        if self._pipe is not None:
            self._pipe.close()
        self.client.close()
        if self._ended or self._owner != os.getpid():
            return
        if self.mode == "gateway" or self._pipe is None:
            self._signal(signal.SIGTERM)
        if not self._wait(timeout):
            self._signal(signal.SIGKILL)
            self._wait(timeout)
        self._ended = True
        self._drop_pidfds()
        self._remove_leftovers()
        if self._log is not None:
            self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._pidfds:
                # A pidfd never means another process that got the same number.
                signal.pidfd_send_signal(self._pidfds[0], number)
            elif self._process is not None:
                self._process.send_signal(number)
            else:
                os.kill(self.pid, number)

    def _wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        for descriptor in self._pidfds:
            if not readable(descriptor, max(0.0, deadline - time.monotonic())):
                return False
        if self._process is not None:
            try:
                self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
        while not self._pidfds and self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _drop_pidfds(self) -> None:
        descriptors, self._pidfds = getattr(self, "_pidfds", []), []
        for descriptor in descriptors:
            os.close(descriptor)

    def _remove_leftovers(self) -> None:
        """What a killed engine could not remove itself."""
        if self._owns_directory:
            from lattice_engine._place import remove_private_directory

            remove_private_directory(str(self.control.parent))
            return
        for left in (self.control, *self.control.parent.glob("sockets-*.sock")):
            with contextlib.suppress(OSError):
                left.unlink()

    def _explain(self) -> str:
        if self._process is None or self._owner != os.getpid():
            return "it runs but does not answer" if self.alive() else "it has ended"
        code = self._process.poll()
        if code is None:
            return "it runs but does not answer"
        tail = self._log.tail() if self._log is not None else ""
        return f"it ended with {exit_text(code)}" + (f"; last log lines:\n{tail}" if tail else "")


def _runtime_dir(path: Path | None) -> list[str]:
    return ["--runtime-dir", str(path.absolute())] if path is not None else []


def _pidfds(pid: int) -> list[int]:
    """Descriptors of an engine's process and of its parent if that is an engine too."""
    descriptors: list[int] = []
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            descriptors.append(os.pidfd_open(pid))
            parent = int(_proc(pid, "stat").rpartition(b")")[2].split()[1])
            ours, theirs = (_proc(p, "cmdline").split(b"\0")[:2] for p in (pid, parent))
            if ours == theirs:
                descriptors.append(os.pidfd_open(parent))
    return descriptors


def _proc(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""A whole fabric on this machine: control plane, gateway daemon and gateway engine, as processes.

What `lattice dev`, `lattice demo` and the tests run, with an egress connector where it is wanted.
The parts are the real ones, started as users start them; all of their files are in one directory.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import subprocess
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx

from lattice_engine import EngineError, EngineProcess, remove_private_directory
from lattice_server.children import Child, FabricError, read_json
from lattice_server.ports import free_port, is_free

__all__ = ["Fabric", "FabricError"]

LOOPBACK = "127.0.0.1"
START_TIMEOUT = 120.0  # seconds; two cores need 3, and many times that when all else starts too
STOP_TIMEOUT = 15.0
# Ends the engine when this process is killed while the gateway daemon, which would do it, is dead
# too. A shell, because it waits for as long as the fabric lives and needs next to no memory.
GUARD = """
read -r _
pid=$(sed -n 's/^ "pid": \\([0-9]*\\),*$/\\1/p' "$1/gateway.json")
[ -n "$pid" ] && grep -qaF -- "$1" "/proc/$pid/cmdline" && kill "$pid"
"""


class Fabric:
    """Context manager of one running fabric.

    Args:
        directory: where all files go; made if missing, not removed.
        server_options: settings of the control plane by name (``{"gateway_wait": 10}``).
        namespace: where the gateway's data plane lives; ``own`` when left out, so that the host's
            network is not touched.
        workspace: id of the workspace that is made.
        egress: run an egress connector for it, and let its token permit what that serves.
        host: address of this machine under which control plane and gateway are reached; one that is
            not loopback carries tokens in the clear, and is for containers of this machine.

    Attributes:
        url: of the control plane; the same after a restart.
        admin_token: a token of kind admin.
        workspace_token: a token of kind workspace for ``workspace``.
        workspace: its id.
    """

    def __init__(
        self,
        directory: Path,
        *,
        server_options: Mapping[str, object] | None = None,
        namespace: Literal["own", "host"] | None = None,
        workspace: str = "dev",
        egress: bool = False,
        host: str = LOOPBACK,
    ) -> None:
        self.directory = directory.absolute()
        self.workspace = workspace
        self.url = ""
        self.admin_token = ""
        self.workspace_token = ""
        self._options = dict(server_options or {})
        self._namespace = namespace or "own"
        self._gateway_state = self.directory / "gateway"
        self._server: Child | None = None
        self._gateway: Child | None = None
        self._egress: Child | None = None
        self._with_egress = egress
        self._host = host
        self._guard: subprocess.Popen[bytes] | None = None
        self._lifeline: _Lifeline | None = None

    def __repr__(self) -> str:
        return f"Fabric({str(self.directory)!r}, url={self.url!r})"

    def __enter__(self) -> Fabric:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def server_pid(self) -> int | None:
        """Process id of the control plane; ``None`` when it does not run."""
        return self._server.pid if self._server else None

    @property
    def gateway_pid(self) -> int | None:
        """Process id of the gateway daemon; ``None`` when it does not run."""
        return self._gateway.pid if self._gateway else None

    @property
    def engine_pid(self) -> int | None:
        """Process id of the gateway's engine; ``None`` when it does not run."""
        pid = read_json(self._gateway_state / "gateway.json").get("pid")
        return pid if isinstance(pid, int) else None

    @property
    def gateway_control(self) -> Path:
        """Control socket of the gateway's engine."""
        known = read_json(self._gateway_state / "gateway.json").get("control")
        return Path(known) if known else self._gateway_state / "engine" / "control.sock"

    def start(self) -> None:
        """Start everything and wait until it works.

        Raises:
            FabricError: a part did not start; the error has the end of its log.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._gateway_state.mkdir(mode=0o700, exist_ok=True)
        self._lifeline = _Lifeline()
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, "lattice-guard", str(self._gateway_state)],
                stdin=self._lifeline.read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self.start_server()
            self.admin_token = (self.directory / "server" / "admin.token").read_text().strip()
            self.create_workspace(self.workspace)
            token = self.create_token(kind="gateway")
            _write_private(self.directory / "gateway.token", token)
            self.start_gateway_daemon()
            permits: dict[str, object] = {}
            if self._with_egress:
                self.start_egress()
                permits["allow"] = [{"to": "*"}, {"to": self._overlay}]
            self.workspace_token = self.create_token(
                kind="workspace", workspaceId=self.workspace, **permits
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything; again without effect.

        Leaves no process, socket or namespace, and no file outside of ``directory``.
        """
        for child in (self._egress, self._gateway, self._server):
            if child is not None:
                child.end(STOP_TIMEOUT)
        self._egress = self._gateway = self._server = None
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            self._guard = None
        self._end_engine()
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None

    def start_server(self) -> None:
        """Start the control plane, again at the same URL after :meth:`kill_server`."""
        data = self.directory / "server"
        data.mkdir(mode=0o700, exist_ok=True)
        options = {k: v for k, v in self._options.items() if k != "port"}

        def start(port: object) -> Child:
            arguments = ["--host", self._host, "--port", str(port), "--data-dir", str(data)]
            return self._start_child(
                "server",
                [*arguments, *self._clear()],
                {f"LATTICE_SERVER_{name.upper()}": str(value) for name, value in options.items()},
            )

        given = self.url.rpartition(":")[2] or self._options.get("port")
        self._server = start(given) if given else self._at_free_port(start)
        self.url = str(self._server.ready["url"])

    def _at_free_port(self, start: Callable[[int], Child]) -> Child:
        """Start at a port that is free, where somebody else may take it first."""
        for _ in range(2):
            port = free_port(self._host)
            try:
                return start(port)
            except FabricError:
                if is_free(port, self._host):
                    raise
        return start(free_port(self._host))

    def _clear(self) -> list[str]:
        return [] if self._host == LOOPBACK else ["--insecure-http"]

    def kill_server(self) -> None:
        """SIGKILL the control plane."""
        if self._server is not None:
            self._server.kill()
            self._server = None

    def start_gateway_daemon(self) -> None:
        """Start the gateway daemon, which adopts the engine if that runs."""
        arguments = ["--server", self.url, "--token-file", str(self.directory / "gateway.token")]
        arguments += ["--state-dir", str(self._gateway_state), "--listen-port", "0"]
        arguments += ["--address", _first_host(self._overlay), "--namespace", self._namespace]
        if self._host != LOOPBACK:
            arguments += ["--endpoint", self._host]
        self._gateway = self._start_child("gateway", arguments, {})

    def start_egress(self) -> None:
        """Start the workspace's egress connector."""
        name = {"name": "egress", "workspaceId": self.workspace}
        self.request("POST", "/api/v1/services", {**name, "kind": "egress"})
        token = self.create_token(kind="service", workspaceId=self.workspace, service="egress")
        _write_private(self.directory / "egress.token", token)
        arguments = ["--server", self.url, "--token-file", str(self.directory / "egress.token")]
        self._egress = self._start_child("egress", arguments, {})

    def kill_egress(self) -> None:
        """SIGKILL the egress connector."""
        if self._egress is not None:
            self._egress.kill()
            self._egress = None

    def kill_gateway_daemon(self) -> None:
        """SIGKILL the gateway daemon; its engine goes on."""
        if self._gateway is not None:
            self._gateway.kill()
            self._gateway = None

    def kill_engine(self) -> None:
        """SIGKILL the gateway's engine; the daemon, if it runs, starts another."""
        pid = self.engine_pid
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)

    def failed_part(self) -> str | None:
        """Which daemon has ended by itself, with the end of its log; ``None`` while all run."""
        for child in (self._server, self._gateway, self._egress):
            if child is not None and not child.alive():
                return child.explain()
        return None

    def request(self, method: str, path: str, body: object | None = None) -> Any:
        """A management call as admin.

        Raises:
            FabricError: the control plane refused it or does not answer.
        """
        try:
            answer = httpx.request(
                method,
                f"{self.url}{path}",
                json=body,
                headers={"Authorization": f"Bearer {self.admin_token}"},
                timeout=15,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            raise FabricError(
                f"{method} {path} at {self.url} failed ({error or type(error).__name__}): "
                f"{self.failed_part() or 'the control plane runs but does not answer'}"
            ) from error
        if answer.is_error:
            raise FabricError(f"{method} {path}: HTTP {answer.status_code}: {answer.text[:500]}")
        return answer.json() if answer.content else None

    def create_workspace(self, workspace: str) -> None:
        """Make a workspace, if it is not there."""
        self.request("POST", "/api/v1/workspaces", {"workspaceId": workspace})

    def create_token(self, **body: object) -> str:
        """Make a token; ``body`` as for ``POST /api/v1/tokens``. Returns the secret."""
        return str(self.request("POST", "/api/v1/tokens", body)["token"])

    def create_service(
        self,
        name: str,
        ports: Sequence[Mapping[str, object]],
        *,
        designated: bool = True,
        hostnames: Sequence[str] | None = None,
        workspace: str | None = None,
    ) -> str:
        """Make a tool service and return a token of kind service for its connector.

        Args:
            name: of the service; reached as ``NAME.lattice`` unless ``hostnames`` are given.
            ports: ``[{"port": 443, "protocol": "tcp"}]``.
            designated: whether ``sandboxed`` and ``coordinator`` agents may reach it.
            hostnames: names it is reached under.
            workspace: its workspace, the fabric's own when left out.
        """
        workspace = workspace or self.workspace
        body: dict[str, object] = {"name": name, "workspaceId": workspace}
        body |= {"ports": [dict(port) for port in ports], "designated": designated}
        if hostnames is not None:
            body["hostnames"] = list(hostnames)
        self.request("POST", "/api/v1/services", body)
        return self.create_token(kind="service", workspaceId=workspace, service=name)

    @property
    def _overlay(self) -> str:
        return str(self._options.get("overlay", "10.96.0.0/16"))

    def _start_child(self, command: str, arguments: list[str], extra: dict[str, str]) -> Child:
        if self._lifeline is None:
            raise FabricError(f"the {command} cannot be started: the fabric has been stopped")
        return Child.start(
            command,
            arguments,
            log=self.directory / f"{command}.log",
            lifeline=self._lifeline.read,
            environment=extra,
            timeout=START_TIMEOUT,
        )

    def _end_engine(self) -> None:
        """End an engine that no daemon has ended, and what it left when it was killed."""
        control, pid = self.gateway_control, self.engine_pid
        if pid is not None or control.exists():
            with contextlib.suppress(EngineError):
                EngineProcess.attach(control).close()
        if not control.is_relative_to(self.directory):
            remove_private_directory(str(control.parent))
        elif control.exists():
            control.unlink()


class _Lifeline:
    """A pipe whose write end only this process has: its children see when this process is gone."""

    def __init__(self) -> None:
        self.read, self._write = os.pipe()
        _lifelines.add(self)

    def close(self) -> None:
        self.drop_write_end()
        os.close(self.read)

    def drop_write_end(self) -> None:
        descriptor, self._write = self._write, -1
        if descriptor >= 0:
            os.close(descriptor)


_lifelines: weakref.WeakSet[_Lifeline] = weakref.WeakSet()


def _drop_lifelines() -> None:
    for lifeline in list(_lifelines):
        lifeline.drop_write_end()


# A forked child must not keep the fabric alive after the process that made it.
os.register_at_fork(after_in_child=_drop_lifelines)


def _first_host(overlay: str) -> str:
    network = ipaddress.IPv4Network(overlay)
    return f"{network.network_address + 1}/{network.prefixlen}"


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text + "\n")

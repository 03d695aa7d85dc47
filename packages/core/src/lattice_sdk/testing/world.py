"""A control plane, a gateway and three tool services for a test session, all real."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lattice_engine import EngineClient
from lattice_sdk.client import ControlPlane
from lattice_sdk.testing.tools import ToolService

__all__ = ["World", "start_world"]

GRANTED = "github-tools"
SECOND = "search"
UNDESIGNATED = "payroll"
END_TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class World:
    """What runs.

    Attributes:
        server: URL of the control plane.
        token: a workspace token; secret.
        workspace: its workspace.
        directory: where the fabric's files are.
        gateway_control: control socket of the gateway's data plane.
        addresses: overlay addresses of the tool services, by name.
    """

    server: str
    workspace: str
    directory: Path
    gateway_control: Path
    addresses: Mapping[str, str]
    token: str = field(repr=False)
    admin_token: str = field(repr=False)

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Settings for an agent of this world."""
        return {
            "server": self.server,
            "token": self.token,
            "agent_name": "contract",
            "policy_preset": "sandboxed",
            **changes,
        }

    @contextmanager
    def service(
        self, name: str, target: str, *, port: int = 80, hostname: str | None = None
    ) -> Iterator[str]:
        """A further service that is designated to the workspace, for the length of a block.

        Args:
            name: what to call it.
            target: ``HOST:PORT`` where it really listens.
            port: where agents reach it that enroll meanwhile.
            hostname: by which name they do, ``NAME.lattice`` when left out.

        Yields:
            Its overlay address.
        """
        arguments = ["--workspace", self.workspace, "--hostname", hostname or f"{name}.lattice"]
        connector = _connector(self.server, self.admin_token, name, target, arguments, port=port)
        try:
            with connector as address:
                yield address
        finally:
            # Other tests of the session count what they may reach.
            self.request("DELETE", f"/api/v1/services/{name}?workspaceId={self.workspace}")

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """A call to the control plane as admin.

        Raises:
            LatticeError: as it answers.
        """

        async def call() -> Any:
            async with ControlPlane(self.server, self.admin_token) as api:
                return await api.request(method, path, body)

        return _in_own_loop(call)

    def peers(self) -> set[str]:
        """Ids of the agents that the control plane has."""
        page = self.request("GET", f"/api/v1/peers?workspaceId={self.workspace}&limit=500")
        return {str(peer["peerId"]) for peer in page["items"] if peer["kind"] == "agent"}

    def gateway_peers(self) -> set[str]:
        """Ids of all peers that the gateway's data plane has."""
        client = EngineClient(self.gateway_control)
        try:
            return {str(peer["id"]) for peer in client.peers()}
        finally:
            client.close()

    def knows(self, peer: str) -> bool:
        """Whether control plane or gateway have the peer."""
        return peer in self.peers() or peer in self.gateway_peers()


@contextmanager
def start_world(directory: Path, host: str = "127.0.0.1") -> Iterator[World]:
    """Start ``lattice dev`` and three tool services; end them afterwards.

    Two of the services, ``github-tools`` and ``search``, are designated to the workspace.

    Args:
        directory: for the files; should have a short path, as it holds sockets.
        host: address of this machine under which agents reach the fabric.

    Raises:
        RuntimeError: ``lattice dev`` does not start; is lattice-server installed?
    """
    with ExitStack() as stack:
        dev = stack.enter_context(
            _process(["dev", "--json", "--dir", str(directory), "--host", host], {})
        )
        admin_token = (directory / "server" / "admin.token").read_text().strip()
        addresses = {}
        for name in (GRANTED, SECOND, UNDESIGNATED):
            tool = stack.enter_context(ToolService(name))
            arguments = ["--workspace", dev["LATTICE_WORKSPACE"], "--proxy-protocol"]
            arguments += ["--no-designated"] if name == UNDESIGNATED else []
            connector = _connector(dev["LATTICE_SERVER"], admin_token, name, tool.target, arguments)
            addresses[name] = stack.enter_context(connector)
        yield World(
            server=str(dev["LATTICE_SERVER"]),
            workspace=str(dev["LATTICE_WORKSPACE"]),
            directory=directory,
            gateway_control=Path(dev["gatewayControl"]),
            addresses=addresses,
            token=str(dev["LATTICE_TOKEN"]),
            admin_token=admin_token,
        )


@contextmanager
def _connector(
    server: str, admin_token: str, name: str, target: str, arguments: list[str], port: int = 80
) -> Iterator[str]:
    """A ``lattice connect`` until the end of the block, and the service's overlay address."""
    command = ["connect", name, "--listen", str(port), "--to", target, "--output", "json"]
    environment = {"LATTICE_SERVER": server, "LATTICE_TOKEN": admin_token}
    with _process([*command, *arguments], environment) as line:
        yield str(line["overlayIP"])


@contextmanager
def _process(arguments: list[str], environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A ``lattice`` command until the end of the block, and the line with which it is ready."""
    with subprocess.Popen(
        [sys.executable, "-m", "lattice_sdk", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                why = process.communicate()[1].strip()
                raise RuntimeError(f"`lattice {arguments[0]}` does not start: {why}")
            yield json.loads(line)
        finally:
            process.terminate()
            try:
                process.communicate(timeout=END_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _in_own_loop(call: Any) -> Any:
    """Run a coroutine function, whether or not this thread has a loop that runs."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(call())).result()

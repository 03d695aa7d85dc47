"""The two roles of ``lattice-k8s`` as plain processes, with a directory for the shared volume."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from lattice_server.ports import free_port
from support.waiting import wait_for

PASSWORD = "b0a9a1f0-5c6e-4f4e-9d0e-3f6a3c0d7b11"  # what the pod's uid looks like


class PodProcesses:
    """A pod's init container and sidecar.

    Attributes:
        state: the state directory in the shared volume.
        health: URL of the sidecar's probes.
        proxy: URL of the proxy, as the agent's environment has it.
    """

    def __init__(self, directory: Path, server: str, token: str, **environment: str) -> None:
        self.volume = directory / "volume"
        self.volume.mkdir()
        self.state = self.volume / "identity"
        self._token = directory / "token"
        self._token.write_text(token)
        proxy_port, health_port = free_port(), free_port()
        self.health = f"http://127.0.0.1:{health_port}"
        self.proxy = f"http://pod:{PASSWORD}@127.0.0.1:{proxy_port}"
        self.told: list[str] = []
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "LATTICE_SERVER": server,
            "LATTICE_AGENT_NAME": "job-4711",
            "LATTICE_AGENT_TYPE": "job",
            "LATTICE_STATE_DIR": str(self.state),
            "LATTICE_PROXY_PORT": str(proxy_port),
            "LATTICE_PROXY_PASSWORD": PASSWORD,
            "LATTICE_HEALTH_PORT": str(health_port),
            **environment,
        }

    def start(self, role: str, *, token: bool, **environment: str) -> subprocess.Popen[str]:
        given = {"LATTICE_TOKEN_FILE": str(self._token)} if token else {}
        return subprocess.Popen(
            [sys.executable, "-c", "from lattice_k8s_job.main import main; main()", role],
            env=self._environment | given | environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def init(self, **environment: str) -> tuple[int, str]:
        """Run the init container to its end; its status and what it told."""
        with self.start("init", token=True, **environment) as process:
            told = process.communicate(timeout=60)[1]
        self.told.append(told)
        return process.returncode, told

    @contextlib.contextmanager
    def sidecar(self, *, ready: bool = True) -> Iterator[subprocess.Popen[str]]:
        """The sidecar, which has no token, until the end of the block."""
        process = self.start("sidecar", token=False)
        try:
            if ready:
                wait_for("the sidecar to be ready", lambda: self.ready() or process.poll())
                assert process.poll() is None, process.communicate()[1]
            yield process
        finally:
            process.kill()
            self.told.append(process.communicate()[1])

    def probe(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(self.health + path, trust_env=False, timeout=5)
        except httpx.TransportError:
            return None

    def ready(self) -> bool:
        answer = self.probe("/readyz")
        return answer is not None and answer.status_code == 200

    def get(self, url: str) -> httpx.Response:
        """A request as the agent makes it."""
        with httpx.Client(proxy=self.proxy, timeout=10) as http:
            return http.get(url)


def peers(world: Any) -> dict[str, dict[str, Any]]:
    """The agents that the control plane has, by id."""
    path = f"/api/v1/peers?workspaceId={world.fabric.workspace}&limit=500"
    items = world.fabric.request("GET", path)["items"]
    return {peer["peerId"]: peer for peer in items if peer["kind"] == "agent"}


def named(world: Any, name: str) -> list[dict[str, Any]]:
    return [peer for peer in peers(world).values() if peer["name"] == name]

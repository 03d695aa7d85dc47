"""Over https, as it is deployed, with an authority of one's own."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lattice_engine import EngineClient
from lattice_sdk import LatticeAgent, LatticeError
from lattice_sdk.connector import ServiceConnector
from lattice_sdk.errors import ServerUnreachable
from lattice_sdk.testing.tools import ToolService
from lattice_server.fabric import Fabric
from support.serverprocess import self_signed
from support.waiting import children, process_alive, processes_mentioning, wait_for

SERVICE = "http://github-tools.lattice/"
# What makes `lattice exec` enroll by the engine, and by the SDK.
WAYS: dict[str, dict[str, str]] = {"engine": {}, "sdk": {"LATTICE_TIMEOUT": "30"}}


class SecureFabric(Fabric):
    """A fabric whose control plane has a certificate of an authority of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.ca_file, key = self_signed(directory)
        patient = {"gateway_wait": 20, "delete_wait": 20}
        super().__init__(
            directory, server_options={"tls_cert": self.ca_file, "tls_key": key, **patient}
        )

    def _start_child(self, command: str, arguments: list[str], extra: dict[str, str]) -> Any:
        if command == "gateway":
            arguments = [*arguments, "--ca-file", str(self.ca_file)]
        return super()._start_child(command, arguments, extra)

    def request(self, method: str, path: str, body: object | None = None) -> Any:
        answer = httpx.request(
            method,
            f"{self.url}{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.admin_token}"},
            verify=ssl.create_default_context(cafile=str(self.ca_file)),
            trust_env=False,
            timeout=60,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def agents(self) -> set[str]:
        """Agents that control plane or gateway have."""
        page = self.request("GET", "/api/v1/peers?limit=500")["items"]
        services = {peer["peerId"] for peer in page if peer["kind"] != "agent"}
        client = EngineClient(self.gateway_control)
        try:
            at_gateway = {str(peer["id"]) for peer in client.peers()}
        finally:
            client.close()
        return ({peer["peerId"] for peer in page} | at_gateway) - services

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "LATTICE_SERVER": self.url,
            "LATTICE_TOKEN": self.workspace_token,
            **more,
        }


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFabric]:
    directory = tmp_path_factory.mktemp("https") / "f"
    with SecureFabric(directory) as fabric, ToolService("github-tools") as tool:
        assert fabric.url.startswith("https://")
        token = fabric.create_service("github-tools", [{"port": 80, "protocol": "tcp"}])
        listen = {80: tool.target}
        with ServiceConnector(
            fabric.url,
            token,
            "github-tools",
            listen=listen,
            proxy_protocol="v1",
            verify=fabric.ca_file,
        ):
            yield fabric


@pytest.fixture
def home(fabric: SecureFabric, tmp_path: Path) -> Iterator[Path]:
    """For temporary files; nothing is left there, no process and no identity."""
    home = tmp_path / "t"
    home.mkdir()
    yield home
    wait_for("the identities to be gone", lambda: not fabric.agents())
    wait_for("processes to be gone", lambda: not processes_mentioning(str(home)))
    wait_for("files to be removed", lambda: not list(home.iterdir()))


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """An authority that has nothing to do with the control plane."""
    directory = tmp_path / "stranger"
    directory.mkdir()
    return self_signed(directory)[0]


@pytest.mark.parametrize("backend", ["userspace", "netns"])
def test_agent_enrolls_works_renews_and_leaves(
    fabric: SecureFabric, home: Path, backend: str
) -> None:
    with LatticeAgent(
        server=fabric.url,
        token=fabric.workspace_token,
        agent_name="secure",
        backend=backend,
        verify=fabric.ca_file,
    ) as agent:
        assert fabric.agents() == {agent.peer_id}
        before = agent.expires_at
        agent.renew(ttl="2h")
        assert before is not None
        assert agent.expires_at is not None
        assert agent.expires_at > before
        with agent.http_client(timeout=60) as http:
            assert http.get(SERVICE).json()["client"] == agent.overlay_ip


KILLED = textwrap.dedent(
    """
    import sys
    from lattice_sdk import LatticeAgent
    with LatticeAgent(agent_name="killed", verify=sys.argv[1]) as agent:
        print(agent.peer_id, agent.engine_pid, flush=True)
        sys.stdin.read()
    """
)


def test_identity_of_a_killed_agent_is_revoked_over_tls(fabric: SecureFabric, home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(fabric.ca_file)],
        env=fabric.environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        peer, engine = process.stdout.readline().split()
        assert fabric.agents() == {peer}
        process.send_signal(signal.SIGKILL)
    wait_for("the peer to be gone", lambda: not fabric.agents())
    wait_for("the engine to end", lambda: not process_alive(int(engine)))


def lattice_exec(ca_file: Path, *program: str, options: tuple[str, ...] = ()) -> list[str]:
    command = [sys.executable, "-m", "lattice_sdk", "exec", "--ca-file", str(ca_file)]
    return [*command, *options, "--", *program]


def loaded_the_sdk(pid: int) -> bool:
    return "pydantic_core" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("way", WAYS)
def test_program_enrolls_and_leaves(fabric: SecureFabric, home: Path, way: str) -> None:
    with subprocess.Popen(
        lattice_exec(fabric.ca_file, "sh", "-c", f"curl -sS {SERVICE}; echo; read _"),
        env=fabric.environment(home, **WAYS[way]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["service"] == "github-tools"
        assert loaded_the_sdk(process.pid) == (way == "sdk")  # who has enrolled
        assert len(fabric.agents()) == 1
        process.communicate("\n", timeout=60)
        assert process.returncode == 0


@pytest.mark.parametrize("way", WAYS)
def test_identity_of_a_killed_program_is_revoked_over_tls(
    fabric: SecureFabric, home: Path, way: str
) -> None:
    with subprocess.Popen(
        lattice_exec(fabric.ca_file, "sh", "-c", "echo up; sleep 1000"),
        env=fabric.environment(home, **WAYS[way]),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert len(fabric.agents()) == 1
        process.send_signal(signal.SIGKILL)
        wait_for("the peer to be gone", lambda: not fabric.agents())


def test_program_that_is_longer_than_its_ttl_is_renewed(fabric: SecureFabric, home: Path) -> None:
    visit = f"curl -sS --max-time 5 {SERVICE} || exit 9"
    script = f"for _ in 1 2 3 4 5 6 7 8; do sleep 2; {visit}; echo; done"
    done = subprocess.run(
        lattice_exec(fabric.ca_file, "sh", "-c", script, options=("--ttl", "12s")),
        env=fabric.environment(home),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len({json.loads(line)["client"] for line in done.stdout.splitlines()}) == 1


Opening = Callable[[SecureFabric, Path], object]
FACES: dict[str, Opening] = {
    "agent": lambda fabric, ca: LatticeAgent(
        server=fabric.url, token=fabric.workspace_token, agent_name="lost", verify=ca
    ).open(),
    "connector": lambda fabric, ca: ServiceConnector(
        fabric.url, fabric.workspace_token, "lost", listen={80: "127.0.0.1:9"}, verify=ca
    ).open(),
}


@pytest.mark.parametrize("face", FACES)
def test_strange_certificate_is_refused_and_named(
    fabric: SecureFabric, home: Path, stranger: Path, face: str
) -> None:
    processes = children()
    with pytest.raises(LatticeError) as raised:
        FACES[face](fabric, stranger)
    assert isinstance(raised.value, ServerUnreachable)
    assert raised.value.code == "tls_failed"
    assert "certificate" in raised.value.message
    assert "LATTICE_CA_FILE" in (raised.value.hint or "")
    wait_for("processes to end", lambda: children() <= processes)


@pytest.mark.parametrize("way", WAYS)
def test_program_is_not_started_where_the_certificate_is_strange(
    fabric: SecureFabric, home: Path, stranger: Path, way: str
) -> None:
    done = subprocess.run(
        lattice_exec(stranger, "echo", "ran"),
        env=fabric.environment(home, **WAYS[way]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert "certificate" in done.stderr
    assert "LATTICE_CA_FILE" in done.stderr
    assert "Traceback" not in done.stderr

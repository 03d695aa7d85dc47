"""Two tenants of one control plane, with everything that one could want of the other's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from lattice_sdk import keys
from lattice_server.fabric import Fabric

# A body that is good for each route that takes one.
BODIES: dict[str, Any] = {
    "POST /api/v1/agent-enroll": {"agentName": "helper"},
    "POST /api/v1/agents/{peer_id}/delegate": {"subAgentName": "x"},
    "POST /api/v1/peers/{peer_id}/names": {"name": "files.example.org"},
    "POST /api/v1/peers/{peer_id}/routes": {"wait": 0},
    "POST /api/v1/peers/{peer_id}/refusals": {"refusals": []},
    "POST /api/v1/workspaces": {"workspaceId": "ws-made"},
    "POST /api/v1/tokens": {"kind": "observer"},
    "POST /api/v1/services": {"name": "s", "workspaceId": "ws-made", "ports": [{"port": 1}]},
    "PATCH /api/v1/services/{name}": {"designated": True},
    "POST /api/v1/trusts": {
        "workspaceId": "ws-made",
        "issuer": "https://i.example",
        "audience": "x",
        "claims": {"sub": "x"},
    },
    "PUT /api/v1/workspaces/{workspace_id}/policy": {"presets": {}},
    "POST /api/v1/workspaces/{workspace_id}/policy/test": {"cases": []},
}


class Api:
    """The HTTP API of a running fabric, by hand."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.http = httpx.Client(base_url=fabric.url, timeout=60, trust_env=False)

    def call(
        self, method: str, path: str, token: str | None = None, **options: Any
    ) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.http.request(method, path, headers=headers, **options)

    def manage(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.call(method, path, self.fabric.admin_token, json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def token(self, **body: Any) -> dict[str, Any]:
        return dict(self.manage("POST", "/api/v1/tokens", body))

    def enroll(self, token: str, name: str = "agent", **body: Any) -> httpx.Response:
        path = "/api/v1/agent-enroll"
        return self.call("POST", path, token, json={"agentName": name, **body})

    def enrolled(self, token: str, name: str = "agent", **body: Any) -> dict[str, Any]:
        answer = self.enroll(token, name, publicKey=new_key(), **body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def peers(self) -> dict[str, dict[str, Any]]:
        items = self.manage("GET", "/api/v1/peers?limit=1000")["items"]
        return {item["peerId"]: item for item in items}

    def gateway_peers(self) -> set[str]:
        """What the gateway's data plane has."""
        transport = httpx.HTTPTransport(uds=str(self.fabric.gateway_control))
        with httpx.Client(transport=transport, base_url="http://engine") as client:
            answer = client.get("/v1/peers").raise_for_status().json()
        return {peer["id"] for peer in answer["peers"]}


@dataclass(frozen=True)
class Tenant:
    """A workspace with an agent, its sub-agent, a tool service with a connector, and a trust."""

    workspace: str
    token: dict[str, Any]
    agent: dict[str, Any]
    sub_agent: dict[str, Any]
    delegation: str
    service: str
    service_token: dict[str, Any]
    connector: dict[str, Any]
    trust: dict[str, Any]

    def bearers(self) -> dict[str, str]:
        """All secrets of this tenant, by kind."""
        return {
            "workspace": self.token["token"],
            "enrollment": self.agent["enrollmentToken"],
            "sub-agent": self.sub_agent["enrollmentToken"],
            "connector": self.connector["enrollmentToken"],
            "delegation": self.delegation,
            "service": self.service_token["token"],
        }


def new_key() -> str:
    """The public half of a new pair."""
    return keys.generate().public


def make_tenant(api: Api, workspace: str) -> Tenant:
    """A tenant of its own workspace."""
    api.manage("POST", "/api/v1/workspaces", {"workspaceId": workspace})
    token = api.token(kind="workspace", workspaceId=workspace, allowIsolated=True)
    agent = api.enrolled(token["token"], "lead", policyPreset="coordinator")
    path = f"/api/v1/agents/{agent['peerId']}/delegate"

    def delegate() -> str:
        body = {"subAgentName": "helper"}
        answer = api.call("POST", path, agent["enrollmentToken"], json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["enrollmentToken"])

    service = f"tools-of-{workspace}"
    body = {"name": service, "workspaceId": workspace, "ports": [{"port": 443}]}
    api.manage("POST", "/api/v1/services", body)
    service_token = api.token(kind="service", workspaceId=workspace, service=service)
    connector = api.call("POST", f"/api/v1/services/{service}/connect", service_token["token"])
    assert connector.status_code == 201, connector.text
    trust = {
        "workspaceId": workspace,
        "issuer": f"https://{workspace}.example",
        "audience": "lattice",
        "claims": {"sub": "x"},
    }
    return Tenant(
        workspace,
        token,
        agent,
        api.enrolled(delegate(), "helper"),
        delegate(),
        service,
        service_token,
        connector.json(),
        api.manage("POST", "/api/v1/trusts", trust),
    )


@contextmanager
def two_tenants(directory: Path, **options: Any) -> Iterator[tuple[Api, Tenant, Tenant]]:
    """A fabric with two tenants: the API, ours, theirs."""
    # Time also for the gateway of a busy machine, so that what was answered is so.
    patient = {"gateway_wait": 20, "delete_wait": 20, **options}
    with Fabric(directory, server_options=patient) as fabric:
        api = Api(fabric)
        try:
            yield api, make_tenant(api, "ws-ours"), make_tenant(api, "ws-theirs")
        finally:
            api.http.close()


def raw(api: Api, request: bytes) -> bytes:
    """Send bytes as they are, ``Connection: close`` among them, and read the answer to its end."""
    parts = urlsplit(api.fabric.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as client:
        client.sendall(request)
        answer = b""
        while data := client.recv(65536):
            answer += data
        return answer

"""A tunnel without the SDK: enrolled by hand, with no deadline of the engine's own.

What cuts it off is the gateway and nothing else.
"""

from __future__ import annotations

import configparser
import secrets
import time
from dataclasses import dataclass
from datetime import datetime

import httpx

from lattice_engine import EngineProcess
from lattice_server.fabric import Fabric

__all__ = ["BareTunnel", "open_bare_tunnel"]


@dataclass(repr=False)
class BareTunnel:
    """``deadline`` is the server's ``expiresAt`` on this process's monotonic clock, in seconds."""

    peer_id: str
    token: str
    overlay_ip: str
    deadline: float
    proxy_env: dict[str, str]


def open_bare_tunnel(fabric: Fabric, engine: EngineProcess, ttl: str = "1h") -> BareTunnel:
    """Enroll with a key of the server's making and bring the tunnel up in the given engine.

    Raises:
        httpx.HTTPError: enrollment failed.
        EngineError: the tunnel did not come up.
    """
    answer = httpx.post(
        f"{fabric.url}/api/v1/agent-enroll",
        headers={"Authorization": f"Bearer {fabric.workspace_token}"},
        json={"agentName": "bare", "ttl": ttl, "policyPreset": "sandboxed"},
        timeout=15,
        trust_env=False,
    )
    identity = answer.raise_for_status().json()
    expires_at = datetime.fromisoformat(identity["expiresAt"])
    deadline = time.monotonic() + expires_at.timestamp() - time.time()
    config = configparser.ConfigParser()
    config.read_string(identity["wireguardConfig"])
    interface, peer = config["Interface"], config["Peer"]
    password = secrets.token_urlsafe()
    made = engine.client.put_tunnel(
        identity["peerId"],
        {
            "interface": {
                "privateKey": interface["PrivateKey"],
                "addresses": [interface["Address"]],
                "mtu": int(interface["MTU"]),
            },
            "peer": {
                "publicKey": peer["PublicKey"],
                "endpoint": peer["Endpoint"],
                "allowedIPs": [peer["AllowedIPs"]],
            },
            "probe": {"address": identity["gatewayIP"], "timeout": 10},
            "proxy": {"username": "bare", "password": password},
            "hosts": {
                name: service["address"]
                for service in identity["services"]
                for name in service["hostnames"]
            },
        },
    )
    proxy = f"http://bare:{password}@{made['proxy']['host']}:{made['proxy']['port']}"
    return BareTunnel(
        identity["peerId"],
        identity["enrollmentToken"],
        identity["overlayIP"].split("/")[0],
        deadline,
        {"HTTP_PROXY": proxy},
    )

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


@dataclass
class RawTunnel:
    """``deadline`` is the server's ``expiresAt`` on this process's monotonic clock."""

    peer_id: str
    token: str
    overlay_ip: str
    deadline: float
    proxy_env: dict[str, str]


def open_raw_tunnel(fabric: Fabric, engine: EngineProcess, ttl: str = "1h") -> RawTunnel:
    """Enroll with a server-made key and bring the tunnel up in the given engine."""
    answer = httpx.post(
        f"{fabric.url}/api/v1/agent-enroll",
        headers={"Authorization": f"Bearer {fabric.workspace_token}"},
        json={"agentName": "raw", "ttl": ttl, "policyPreset": "sandboxed"},
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
            "proxy": {"username": "raw", "password": password},
            "hosts": {
                name: service["address"]
                for service in identity["services"]
                for name in service["hostnames"]
            },
        },
    )
    proxy = f"http://raw:{password}@{made['proxy']['host']}:{made['proxy']['port']}"
    return RawTunnel(
        identity["peerId"],
        identity["enrollmentToken"],
        identity["overlayIP"].split("/")[0],
        deadline,
        {"HTTP_PROXY": proxy},
    )

"""Locks the pod's network: once, by the init container, for as long as the pod lives."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from pathlib import Path

from lattice_engine import EngineError, engine_path
from lattice_k8s_job import layout
from lattice_k8s_job.settings import PodSettings
from lattice_sdk.errors import BackendUnavailable, ConfigurationError

log = logging.getLogger("lattice.k8s")

_HINTS = {
    "net_admin_missing": "The pod's namespace has to permit NET_ADMIN to lattice-init and "
    "lattice-sidecar (Pod Security Standard privileged); without it there is --mode proxy",
    "nftables_failed": "The node's kernel needs nftables; without it there is --mode proxy",
}


async def lock(settings: PodSettings) -> None:
    """Let nothing pass but the tunnel, loopback, the kubelet's probes and what is named.

    Raises:
        ConfigurationError: what is named is not an address or a network.
        BackendUnavailable: the rules cannot be made here; nothing of the agent has run.
    """
    command = ["lock", "--group", str(layout.USER_ID), "--interface", layout.INTERFACE]
    # Probes come from the node: by the address it is known by, or by the one next to the pod.
    nodes = [*settings.node_addresses, *default_gateways()]
    command += ["--probes-from", ",".join(nodes), "--probe-ports", settings.probe_ports]
    command += ["--allow", settings.allow_networks]
    try:
        process = await asyncio.create_subprocess_exec(
            engine_path(), *command, stdout=asyncio.subprocess.PIPE
        )
    except EngineError as error:
        raise BackendUnavailable(error.detail, code=error.code) from None
    told, _ = await process.communicate()
    if process.returncode == 0:
        log.info("the pod's network is locked")
        return
    try:
        problem = json.loads(told)
    except ValueError:
        problem = {"code": "lock_failed", "error": f"the engine ended with {process.returncode}"}
    code, why = str(problem.get("code")), str(problem.get("error"))
    message = f"the pod's network was not locked: {why}"
    if code == "invalid_arguments":
        raise ConfigurationError(message, hint="Correct `lattice k8s inject --allow-network`")
    raise BackendUnavailable(message, code=code, hint=_HINTS.get(code))


def default_gateways(routes: Path = Path("/proc/net/route")) -> list[str]:
    """The pod's way out, which on many networks is the node's end of it.

    The file has addresses as hexadecimal numbers in the machine's byte order (proc(5)).
    """
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) > 7 and words[1] == words[7] == "00000000" and words[2] != "00000000":
            found.append(socket.inet_ntoa(struct.pack("=I", int(words[2], 16))))
    return found

"""Names that the manifest and the two containers have in common: nothing else joins them."""

from __future__ import annotations

from enum import StrEnum

INIT = "lattice-init"
SIDECAR = "lattice-sidecar"
# Unlikely to be an agent's: another user's processes are closed to it where processes are shared.
# As a group it is what the pod's lock does not bind.
USER_ID = 64206

IDENTITY_VOLUME, IDENTITY_MOUNT = "lattice-identity", "/run/lattice"
TOKEN_VOLUME, TOKEN_MOUNT, TOKEN_FILE = "lattice-token", "/run/lattice-token", "token"
CA_VOLUME, CA_MOUNT, CA_FILE = "lattice-ca", "/run/lattice-ca", "ca.crt"
STATE_DIR = f"{IDENTITY_MOUNT}/identity"

INTERFACE = "lattice0"
PROXY_PORT = 18420
HEALTH_PORT = 18421
PROXY_USER = "pod"


class Mode(StrEnum):
    """How the agent's containers reach the tunnel."""

    PROXY = "proxy"
    """By the proxy on the pod's loopback, which their environment names."""
    INTERFACE = "interface"
    """By an interface of the pod, which is all the network that it has."""


class Sidecar(StrEnum):
    """How the cluster runs the sidecar."""

    NATIVE = "native"
    """An init container that is restarted always; the kubelet ends it after the others."""
    CONTAINER = "container"
    """A container like the others, which has to see for itself when they have ended."""

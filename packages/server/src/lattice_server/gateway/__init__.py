"""The gateway daemon: keeps the gateway's engine at what the control plane wants, and reports."""

from lattice_server.gateway.daemon import run_gateway
from lattice_server.gateway.settings import GatewayError, GatewaySettings

__all__ = ["GatewayError", "GatewaySettings", "run_gateway"]

"""How the control plane is reached: certificate authorities, and a proxy of the environment."""

from __future__ import annotations

import functools
import ipaddress
import ssl
import urllib.request
from urllib.parse import urlsplit

import httpx

from lattice_sdk.errors import ConfigurationError

_own_proxies: set[tuple[str, int]] = set()


@functools.lru_cache(maxsize=8)
def ssl_context(ca_file: str | None) -> ssl.SSLContext:
    """A TLS context, one for all agents: loading the authorities takes tens of milliseconds.

    Raises:
        ConfigurationError: the file cannot be read or has no certificate.
    """
    if ca_file is None:
        context: ssl.SSLContext = httpx.create_ssl_context()
        return context
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the certificate authorities in {ca_file} cannot be loaded: "
            f"{error.strerror or 'no certificate in it'}",
            hint="Correct LATTICE_CA_FILE; it is a PEM file",
        ) from None


def own_proxy(host: str, port: int, *, known: bool) -> None:
    """Remember, or forget, the proxy of one of this process's own tunnels."""
    (_own_proxies.add if known else _own_proxies.discard)((host, port))


def environment_proxy(server: str) -> str | None:
    """The proxy that the environment names for a control plane, if any.

    Never for a loopback address, and never the proxy of one of our own tunnels: a program that
    exports :meth:`LatticeAgent.proxy_env` must still be able to renew and to leave.
    """
    parts = urlsplit(server)
    host = parts.hostname or ""
    if _is_loopback(host) or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if target.scheme not in ("http", "https"):
        return None
    if (target.hostname, target.port) in _own_proxies:
        return None
    return target.geturl()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

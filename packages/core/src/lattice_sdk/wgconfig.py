"""WireGuard configurations as ``wg-quick`` reads them (wg-quick(8)): one interface, one peer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pydantic import SecretStr

from lattice_sdk.wgtext import DEFAULT_MTU, WireGuardConfigError, many, number, sections

__all__ = ["DEFAULT_MTU", "WireGuardConfig", "WireGuardConfigError", "parse"]


@dataclass(frozen=True)
class WireGuardConfig:
    """A tunnel's configuration. Secrets are not in its ``repr``.

    Attributes:
        addresses: overlay addresses with prefix, ``10.96.2.5/32``.
        public_key: the gateway's.
        endpoint: the gateway's ``host:port``.
        allowed_ips: what goes through the tunnel.
        private_key: ``None`` when the client made the pair.
        mtu: bytes.
        keepalive: seconds, 0 for none.
    """

    addresses: tuple[str, ...]
    public_key: str
    endpoint: str
    allowed_ips: tuple[str, ...]
    private_key: SecretStr | None = field(default=None, repr=False)
    preshared_key: SecretStr | None = field(default=None, repr=False)
    mtu: int = DEFAULT_MTU
    keepalive: int = 0
    dns: tuple[str, ...] = ()
    listen_port: int | None = None

    def with_private_key(self, key: SecretStr) -> WireGuardConfig:
        """The same with the client's own key, unless the server made one."""
        return self if self.private_key else replace(self, private_key=key)

    def render(self) -> SecretStr:
        """The text for ``wg-quick``; a secret once it has a private key."""
        interface = [
            ("PrivateKey", _revealed(self.private_key)),
            ("Address", ", ".join(self.addresses)),
            ("ListenPort", self.listen_port),
            ("DNS", ", ".join(self.dns)),
            ("MTU", self.mtu),
        ]
        peer = [
            ("PublicKey", self.public_key),
            ("PresharedKey", _revealed(self.preshared_key)),
            ("Endpoint", self.endpoint),
            ("AllowedIPs", ", ".join(self.allowed_ips)),
            ("PersistentKeepalive", self.keepalive),
        ]
        sections = (("Interface", interface), ("Peer", peer))
        return SecretStr(
            "\n".join(
                f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in lines if value)
                for name, lines in sections
            )
        )


def parse(text: str) -> WireGuardConfig:
    """Read a configuration.

    Raises:
        WireGuardConfigError: it has no ``[Interface]`` with an address, not exactly one ``[Peer]``
            with key, endpoint and allowed addresses, or a line that means something unknown.
    """
    interface, peer = sections(text)
    return WireGuardConfig(
        addresses=many(interface, "address"),
        public_key=peer["publickey"][-1],
        endpoint=peer["endpoint"][-1],
        allowed_ips=many(peer, "allowedips"),
        private_key=_secret(interface, "privatekey"),
        preshared_key=_secret(peer, "presharedkey"),
        mtu=number(interface, "mtu") or DEFAULT_MTU,
        keepalive=number(peer, "persistentkeepalive") or 0,
        dns=many(interface, "dns"),
        listen_port=number(interface, "listenport"),
    )


def _secret(section: dict[str, list[str]], key: str) -> SecretStr | None:
    values = section.get(key, [])
    return SecretStr(values[-1]) if values and values[-1] else None


def _revealed(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""

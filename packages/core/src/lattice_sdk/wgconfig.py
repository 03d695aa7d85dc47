"""WireGuard configurations as ``wg-quick`` reads them (wg-quick(8)): one interface, one peer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pydantic import SecretStr

DEFAULT_MTU = 1420  # wg-quick's for an underlay of 1500 bytes
_KNOWN = {
    "interface": {"privatekey", "address", "mtu", "dns", "listenport"},
    "peer": {"publickey", "presharedkey", "endpoint", "allowedips", "persistentkeepalive"},
}


class WireGuardConfigError(ValueError):
    """The text is not a configuration that a tunnel can be made of. Never quotes its values."""


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
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] | None = None
    name = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1].strip().lower()
            if name not in _KNOWN or name in sections:
                raise WireGuardConfigError(f"line {number}: a second or an unknown section")
            current = sections[name] = {}
            continue
        key, separator, value = (part.strip() for part in line.partition("="))
        if current is None or not separator or key.lower() not in _KNOWN[name]:
            # A command such as PostUp is not for a server to choose.
            raise WireGuardConfigError(f"line {number} is not a setting that is known here")
        current.setdefault(key.lower(), []).append(value)
    return _build(sections.get("interface", {}), sections.get("peer", {}))


def _build(interface: dict[str, list[str]], peer: dict[str, list[str]]) -> WireGuardConfig:
    for section, values, needed in (
        ("Interface", interface, ("Address",)),
        ("Peer", peer, ("PublicKey", "Endpoint", "AllowedIPs")),
    ):
        missing = [key for key in needed if not any(values.get(key.lower(), []))]
        if missing:
            raise WireGuardConfigError(f"[{section}] lacks {', '.join(missing)}")
    return WireGuardConfig(
        addresses=_many(interface, "address"),
        public_key=peer["publickey"][-1],
        endpoint=peer["endpoint"][-1],
        allowed_ips=_many(peer, "allowedips"),
        private_key=_secret(interface, "privatekey"),
        preshared_key=_secret(peer, "presharedkey"),
        mtu=_number(interface, "mtu") or DEFAULT_MTU,
        keepalive=_number(peer, "persistentkeepalive") or 0,
        dns=_many(interface, "dns"),
        listen_port=_number(interface, "listenport"),
    )


def _many(section: dict[str, list[str]], key: str) -> tuple[str, ...]:
    parts = (part.strip() for value in section.get(key, []) for part in value.split(","))
    return tuple(part for part in parts if part)


def _secret(section: dict[str, list[str]], key: str) -> SecretStr | None:
    values = section.get(key, [])
    return SecretStr(values[-1]) if values and values[-1] else None


def _number(section: dict[str, list[str]], key: str) -> int | None:
    values = section.get(key, [])
    if not values or values[-1].lower() == "off":
        return None
    if not values[-1].isdecimal():
        raise WireGuardConfigError(f"{key} is not a number")
    return int(values[-1])


def _revealed(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""

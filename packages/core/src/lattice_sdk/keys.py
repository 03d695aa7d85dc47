"""WireGuard keys: X25519 pairs in the base64 that ``wg genkey`` and ``wg pubkey`` print."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from pydantic import SecretStr


@dataclass(frozen=True)
class KeyPair:
    """A WireGuard key pair; the private half is not in its ``repr``."""

    public: str
    private: SecretStr = field(repr=False)


def generate() -> KeyPair:
    """A fresh pair."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return _pair(X25519PrivateKey.generate().private_bytes_raw())


def from_private(private: SecretStr) -> KeyPair:
    """The pair of a private key.

    Raises:
        ValueError: it is not 32 bytes of base64.
    """
    try:
        raw = base64.b64decode(private.get_secret_value(), validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise ValueError("not a WireGuard private key")
    return _pair(raw)


def _pair(raw: bytes) -> KeyPair:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    return KeyPair(base64.b64encode(public).decode(), SecretStr(base64.b64encode(raw).decode()))

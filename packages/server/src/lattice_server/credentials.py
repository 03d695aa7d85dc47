"""Tokens and WireGuard keys: how they are made, told apart and rendered. Nothing here is stored."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from typing import Final, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

TokenKind = Literal[
    "admin", "workspace", "service", "gateway", "observer", "enrollment", "delegation", "trust"
]
# A trust has no text, and so no letter.
LETTERS: Final[dict[str, TokenKind]] = {
    "a": "admin",
    "w": "workspace",
    "s": "service",
    "g": "gateway",
    "o": "observer",
    "e": "enrollment",
    "d": "delegation",
}
_LETTER_OF = {kind: letter for letter, kind in LETTERS.items()}
TOKEN_BYTES: Final = 32
# In base32 in lower case, which is valid in a Kubernetes object name.
ID_BYTES: Final = 10


def new_token(kind: TokenKind) -> str:
    """A new token: ``lt-``, the kind's letter, 32 random bytes in URL-safe base64."""
    return f"lt-{_LETTER_OF[kind]}{secrets.token_urlsafe(TOKEN_BYTES)}"


def token_kind(token: str) -> TokenKind | None:
    """The kind a token claims to be; the database decides."""
    return LETTERS.get(token[3:4]) if token.startswith("lt-") else None


def token_hash(token: str) -> str:
    """What the database keeps of a token. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def new_id(prefix: str) -> str:
    """A new identifier such as ``peer-4x2k…``: 80 random bits."""
    text = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()
    return f"{prefix}-{text}"


def new_key_pair() -> tuple[str, str]:
    """A new WireGuard key pair (private, public), in base64 as ``wg`` prints them."""
    private = X25519PrivateKey.generate()
    return (
        base64.b64encode(
            private.private_bytes(
                serialization.Encoding.Raw,
                serialization.PrivateFormat.Raw,
                serialization.NoEncryption(),
            )
        ).decode(),
        base64.b64encode(
            private.public_key().public_bytes(
                serialization.Encoding.Raw, serialization.PublicFormat.Raw
            )
        ).decode(),
    )


def render_wireguard_config(
    *,
    address: str,
    gateway_public_key: str,
    endpoint: str,
    routes: Sequence[str],
    private_key: str | None = None,
) -> str:
    """The configuration that ``wg-quick`` reads.

    Args:
        address: the identity's overlay address, without a prefix length.
        gateway_public_key: base64.
        endpoint: ``host:port`` of the gateway.
        routes: what is routed into the tunnel, in CIDR notation.
        private_key: only for a pair that the server made; left out, there is no such line.
    """
    private = f"PrivateKey = {private_key}\n" if private_key else ""
    return (
        f"[Interface]\n{private}Address = {address}/32\nMTU = 1420\n\n"
        f"[Peer]\nPublicKey = {gateway_public_key}\nEndpoint = {endpoint}\n"
        f"AllowedIPs = {', '.join(routes)}\nPersistentKeepalive = 25\n"
    )

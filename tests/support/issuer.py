"""An OpenID issuer on loopback: real keys, a key set over HTTP, tokens as CI systems sign them."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "lattice"


def new_key(algorithm: str, bits: int = 2048) -> Any:
    """A private key for an algorithm."""
    if algorithm.startswith(("RS", "PS")):
        return rsa.generate_private_key(65537, bits)
    if algorithm.startswith("ES"):
        curve = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1()}[algorithm]
        return ec.generate_private_key(curve)
    return ed25519.Ed25519PrivateKey.generate()


def public_jwk(key: Any, algorithm: str, kid: str, **fields: Any) -> dict[str, Any]:
    """The public half as the key set has it."""
    kind = jwt.get_algorithm_by_name(algorithm)
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", **fields}


class Issuer:
    """Context manager.

    Attributes:
        url: of the issuer.
        keys: what the key set has; may be changed while it serves.
        status: of all answers.
        fetches: how often the key set was fetched.
    """

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.status = 200
        self.fetches = 0
        self.discovery: dict[str, Any] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/.well-known/openid-configuration":
                    body = {"issuer": issuer.url, "jwks_uri": issuer.jwks_uri, **issuer.discovery}
                elif self.path == "/keys":
                    issuer.fetches += 1
                    body = {"keys": issuer.keys}
                else:
                    self.send_error(404)
                    return
                data = json.dumps(body).encode()
                self.send_response(issuer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.jwks_uri = f"{self.url}/keys"
        self.rotate()

    def __enter__(self) -> Issuer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def rotate(self, algorithm: str = "ES256", *, keep: bool = False) -> None:
        """Sign with a new key from now on; the old one leaves the set unless it is kept."""
        self.algorithm, self.key = algorithm, new_key(algorithm)
        self.kid = f"key-{time.monotonic_ns()}"
        own = public_jwk(self.key, algorithm, self.kid)
        self.keys = [*self.keys, own] if keep else [own]

    def claims(self, **changed: Any) -> dict[str, Any]:
        """The claims of a token as Kubernetes makes them; ``None`` leaves one out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": [AUDIENCE],
            "sub": "system:serviceaccount:agents:code-executor",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "kubernetes.io": {
                "namespace": "agents",
                "serviceaccount": {"name": "code-executor", "uid": "1"},
            },
            **changed,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, headers: dict[str, Any] | None = None, **changed: Any) -> str:
        """A signed token."""
        return jwt.encode(
            self.claims(**changed),
            self.key,
            algorithm=self.algorithm,
            headers={"kid": self.kid, **(headers or {})},
        )

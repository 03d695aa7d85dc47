"""A server of the Internet, as far as TLS can tell: its own certificate for its own name."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class TLSServer(http.server.ThreadingHTTPServer):
    """HTTPS on a free port of loopback with a certificate for one name.

    Attributes:
        port: where it listens.
        certificate: its file, PEM.
        trust: a context that trusts this certificate and nothing else.
        seen: what callers asked for, as ``(SNI, Host)``.
    """

    daemon_threads = True

    def __init__(self, name: str, directory: Path) -> None:
        chain, key = _certificate(name, directory)
        self.certificate = chain
        self.seen: list[tuple[str | None, str]] = []
        self.trust = ssl.create_default_context(cafile=chain)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(chain, key)
        tls.sni_callback = self._note
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port: int = self.server_address[1]
        self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.sni: dict[int, str | None] = {}

    def _note(self, connection: ssl.SSLObject, name: str | None, _context: Any) -> None:
        self.sni[id(connection)] = name


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TLSServer

    def do_GET(self) -> None:
        self.server.seen.append((self.server.sni.get(id(self.connection)), self.headers["Host"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        return


@contextlib.contextmanager
def tls_server(name: str, directory: Path) -> Iterator[TLSServer]:
    """Run a :class:`TLSServer` until the end of the block."""
    with TLSServer(name, directory) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)


def _certificate(host: str, directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = directory / f"{host}.pem", directory / f"{host}.key"
    chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private

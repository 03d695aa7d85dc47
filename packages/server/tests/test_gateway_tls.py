"""The gateway daemon and the control plane's certificate."""

import contextlib
import datetime
import ipaddress
import queue
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.sync.server import ServerConnection, serve


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(host, critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private


class ControlPlane:
    """Listens with TLS and remembers what gateways say first."""

    def __init__(self, chain: Path, private: Path) -> None:
        self.hellos: queue.Queue[str] = queue.Queue()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(chain, private)
        self.server = serve(self._hear, "127.0.0.1", 0, ssl=tls, close_timeout=1)
        self.url = f"https://127.0.0.1:{self.server.socket.getsockname()[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _hear(self, socket: ServerConnection) -> None:
        self.hellos.put(str(socket.recv()))


@contextlib.contextmanager
def gateway(directory: Path, url: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway daemon that logs into ``gateway.log``."""
    (directory / "token").write_text("lt-gateway\n")
    arguments = ["--server", url, "--token-file", str(directory / "token"), "--listen-port", "0"]
    arguments += ["--state-dir", str(directory / "state"), "--namespace", "own", *more]
    with (directory / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lattice_server.cli", "gateway", *arguments],
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[tuple[Path, ControlPlane]]:
    chain, private = certificate(tmp_path)
    control = ControlPlane(chain, private)
    yield chain, control
    control.server.shutdown()


def test_an_unknown_authority_is_not_trusted(
    tmp_path: Path, chain: tuple[Path, ControlPlane]
) -> None:
    with gateway(tmp_path, chain[1].url) as process:
        deadline = time.monotonic() + 20
        while (
            "give the authority that signed it with --ca-file"
            not in (tmp_path / "gateway.log").read_text()
        ):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    assert chain[1].hellos.empty()


def test_the_given_authority_is_trusted(tmp_path: Path, chain: tuple[Path, ControlPlane]) -> None:
    with gateway(tmp_path, chain[1].url, "--ca-file", str(chain[0])):
        assert '"hello"' in chain[1].hellos.get(timeout=20)


def test_unusable_ca_file_is_a_sentence(tmp_path: Path) -> None:
    with gateway(tmp_path, "https://127.0.0.1:1", "--ca-file", str(tmp_path / "none")) as process:
        assert process.wait(20) == 1
    log = (tmp_path / "gateway.log").read_text()
    assert "cannot be used as certificate authorities" in log
    assert "Traceback" not in log
    assert not (tmp_path / "state").exists()

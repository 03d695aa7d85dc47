"""A control plane in a process of its own, and a certificate for it."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PROGRAM = textwrap.dedent(
    """
    import sys
    from lattice_server.run import run_server
    from lattice_server.settings import ServerSettings
    run_server(ServerSettings(), ready=lambda url: print(url, flush=True))
    """
)


class Process:
    """``run_server`` in a process of its own; settings come by the environment."""

    def __init__(self, prefix: tuple[str, ...] = (), **settings: Any) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            **{f"LATTICE_SERVER_{k.upper()}": str(v) for k, v in {"port": 0, **settings}.items()},
        }
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PROGRAM],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.communicate(timeout=60)[1]
        return line

    def refusal(self) -> str:
        """The message of a start that fails with status 1."""
        out, err = self.process.communicate(timeout=30)
        assert (self.process.returncode, out) == (1, ""), err
        assert "Traceback" not in err
        return err

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=60)


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, in files."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lattice test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(private, hashes.SHA256())
    )
    files = directory / "tls.crt", directory / "tls.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files

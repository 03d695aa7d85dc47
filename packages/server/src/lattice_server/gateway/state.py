"""The daemon's state directory: one daemon at a time, its key, and where its engine is."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lattice_server.gateway.settings import GatewayError

MAX_SOCKET_PATH = 107  # sun_path less its final zero, unix(7)


class StateDirectory:
    """A 0700 directory, locked while this object is open."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(self.path.iterdir()) and not (self.path / "lock").exists():
                # It is made private below: fatal for /tmp, should somebody name that.
                raise GatewayError(
                    f"{self.path} has other files in it: name a directory with --state-dir that "
                    "is new, empty, or a gateway's already"
                )
            self.path.chmod(0o700)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise GatewayError(
                f"the state directory {self.path} cannot be used ({error.strerror}): "
                "name one that this user owns with --state-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise GatewayError(
                f"another gateway daemon uses {self.path}: stop it, "
                "or give this one a state directory of its own with --state-dir"
            ) from None

    def close(self) -> None:
        """Let another daemon have the directory."""
        os.close(self._lock)

    @property
    def key_file(self) -> Path:
        """The private key, as ``wg genkey`` prints it; made once."""
        return self.path / "private.key"

    @property
    def engine_log(self) -> Path:
        """The engine's log; a file, because the engine outlives this daemon's standard error."""
        return self.path / "engine.log"

    @property
    def engine_dir(self) -> Path | None:
        """The engine's directory here, unless the socket's path would be too long for a socket."""
        path = self.path / "engine"
        return path if len(os.fsencode(path / "control.sock")) <= MAX_SOCKET_PATH else None

    def public_key(self) -> str:
        """The public key in base64; makes the pair at the first call.

        Raises:
            GatewayError: the key file is unreadable or holds no key.
        """
        try:
            with contextlib.suppress(FileExistsError):
                self._make_key()
            private = base64.b64decode(self.key_file.read_text().strip(), validate=True)
            public = X25519PrivateKey.from_private_bytes(private).public_key()
        except (OSError, ValueError) as error:
            raise GatewayError(
                f"{self.key_file} is not a readable WireGuard private key: restore it, or remove "
                "it to get a new one (every agent then has to enroll again)"
            ) from error
        return base64.b64encode(public.public_bytes_raw()).decode()

    def _make_key(self) -> None:
        # Written aside and linked, so that a crash never leaves half a key under the name.
        if self.key_file.exists():
            return
        private = base64.b64encode(X25519PrivateKey.generate().private_bytes_raw())
        aside = self.path / f"private.key.{os.getpid()}"
        _write_private(aside, private + b"\n")
        try:
            os.link(aside, self.key_file)
        finally:
            aside.unlink()

    def read(self) -> dict[str, Any]:
        """What ``gateway.json`` says of the engine; empty when there is nothing of use."""
        try:
            known = json.loads((self.path / "gateway.json").read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def write(self, known: dict[str, Any]) -> None:
        """Replace ``gateway.json``."""
        aside = self.path / f"gateway.json.{os.getpid()}"
        _write_private(aside, json.dumps(known, indent=1).encode() + b"\n")
        aside.replace(self.path / "gateway.json")


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

"""A directory in which an identity survives the process: same key, same address after a restart.

Files are 0600 inside 0700, written atomically. One process at a time holds the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from lattice_sdk.errors import ConfigurationError

FILE, LOCK = "identity.json", "lock"


@dataclass(frozen=True)
class Saved:
    """What takes an identity up again. ``peer_id`` is ``None`` until it was enrolled.

    Attributes:
        terms: what it was enrolled with; other terms are another identity.
    """

    terms: dict[str, str]
    private_key: SecretStr = field(repr=False)
    peer_id: str | None = None
    enrollment_token: SecretStr | None = field(default=None, repr=False)


class StateDir:
    """Holds a state directory until :meth:`release`.

    Raises:
        ConfigurationError: it cannot be made or used, others can read it, or another process
            holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.stat()
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise ConfigurationError(
                    f"the state directory {self.path} is open to other users",
                    hint=f"chmod 700 {self.path}, as its owner",
                )
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise ConfigurationError(
                f"the state directory {self.path} is in use by another agent",
                code="state_dir_in_use",
                hint="Give each agent a directory of its own",
            ) from None

    def load(self) -> Saved | None:
        """What was saved, ``None`` when there is nothing, or nothing that can be read."""
        try:
            data = json.loads((self.path / FILE).read_bytes())
            token = data["enrollmentToken"]
            return Saved(
                terms={str(key): str(value) for key, value in data["terms"].items()},
                private_key=SecretStr(data["privateKey"]),
                peer_id=data["peerId"],
                enrollment_token=SecretStr(token) if token else None,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, saved: Saved) -> None:
        """Replace what was saved; a crash leaves the old or the new, never half of it.

        Raises:
            ConfigurationError: the directory cannot be written.
        """
        token = saved.enrollment_token
        text = json.dumps(
            {
                "terms": saved.terms,
                "privateKey": saved.private_key.get_secret_value(),
                "peerId": saved.peer_id,
                "enrollmentToken": token.get_secret_value() if token else None,
            }
        )
        new = self.path / f"{FILE}.new"
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path / FILE)
        except OSError as error:
            raise _unusable(self.path, error) from None

    def clear(self) -> None:
        """Forget the identity."""
        for name in (FILE, f"{FILE}.new"):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()

    def release(self) -> None:
        """Let another process use the directory. Again without effect."""
        descriptor, self._lock = self._lock, -1
        if descriptor >= 0:
            os.close(descriptor)


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the state directory {path} cannot be used: {error.strerror}",
        hint="Name one that this user can write: state_dir=… or LATTICE_STATE_DIR",
    )

"""Settings for one start of the CLI, with what must not be in arguments, environment or a file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lattice_sdk import ConfigurationError

__all__ = ["PrivateSettings", "read_settings", "with_environment"]


class PrivateSettings:
    """Settings at a path that processes of this user can read for as long as this object lives.

    Where the system can, in the memory of this process, so that not even SIGKILL leaves anything.

    Attributes:
        path: for the CLI's ``--settings``.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        data = json.dumps(content).encode()
        if hasattr(os, "memfd_create") and os.path.isdir(f"/proc/{os.getpid()}/fd"):
            descriptor = _in_memory(data)
            self.path = f"/proc/{os.getpid()}/fd/{descriptor}"
            weakref.finalize(self, os.close, descriptor)
        else:
            directory = Path(tempfile.mkdtemp(prefix="lattice-claude-"))
            weakref.finalize(self, _remove, directory, os.getpid())
            file = directory / "settings.json"
            file.touch(0o600)
            file.write_bytes(data)
            self.path = str(file)


def with_environment(
    given: str | None, directory: Path | str | None, environment: Mapping[str, str], **more: Any
) -> PrivateSettings:
    """The settings that a caller gives the CLI, and an environment in them.

    Args:
        given: as for :func:`read_settings`.
        directory: as for :func:`read_settings`.
        environment: for the CLI and for what it starts.
        more: settings to set.

    Raises:
        ConfigurationError: ``given`` cannot be read.
    """
    settings = read_settings(given, directory) | more
    settings["env"] = {**settings.get("env", {}), **environment}
    return PrivateSettings(settings)


def read_settings(given: str | None, directory: Path | str | None) -> dict[str, Any]:
    """What ``--settings`` means: JSON, or a file with it.

    Args:
        given: its value.
        directory: where the CLI is started; this process's when left out.

    Raises:
        ConfigurationError: it is neither.
    """
    text = (given or "{}").strip()
    try:
        if not (text.startswith("{") and text.endswith("}")):
            text = (Path(directory or "") / text).read_text(encoding="utf-8-sig")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the settings for Claude cannot be read: {error}",
            hint="Name a JSON file, or write JSON; without its permissions and hooks the CLI is "
            "not started",
        ) from None
    if not isinstance(found, dict):
        raise ConfigurationError("the settings for Claude are not a JSON object")
    return found


def _in_memory(data: bytes) -> int:
    import fcntl

    descriptor = os.memfd_create("lattice-claude", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    # What the CLI starts may open it too, and shall not write into it.
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _remove(directory: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child owns nothing
        shutil.rmtree(directory, ignore_errors=True)

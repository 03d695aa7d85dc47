"""Files with secrets: 0600 from their first byte, whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from types import TracebackType

from lattice_sdk.errors import ConfigurationError


class PrivateFile:
    """A file to be written once something has succeeded; checked to be writable before it.

    Args:
        path: where to; ``None`` for nowhere.

    Raises:
        ConfigurationError: on entering, when no file can be made there.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._temporary: str | None = None

    def __enter__(self) -> PrivateFile:
        if self.path is not None:
            if self.path.is_dir():
                raise ConfigurationError(f"{self.path} cannot be written: it is a directory")
            try:
                descriptor, self._temporary = tempfile.mkstemp(
                    prefix=f".{self.path.name}-", dir=self.path.parent
                )
            except OSError as error:
                raise ConfigurationError(
                    f"{self.path} cannot be written: {error.strerror}",
                    hint="Name a file in a directory of your own",
                ) from None
            os.close(descriptor)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def keep(self, text: str) -> None:
        """Put the file in its place.

        Raises:
            ConfigurationError: the disk is full, or the directory has gone.
        """
        if self.path is None or self._temporary is None:
            return
        try:
            with open(self._temporary, "w") as file:
                file.write(text)
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be written: {error.strerror}") from None
        self._temporary = None

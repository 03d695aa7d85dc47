"""The tunnel's names in the pod's hosts file, which all its containers share.

The kubelet writes the file anew whenever a container starts, so the names are looked after.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger("lattice.k8s")

BEGIN, END = "# Lattice: what this pod's identity reaches.", "# Lattice: end."
LOOK = 0.2  # seconds between looks; a container takes longer to start


class HostsFile:
    """Keeps names in a hosts file.

    Attributes:
        names: addresses by name; may be changed while it is kept.
    """

    def __init__(self, path: Path = Path("/etc/hosts")) -> None:
        self.path = path
        self.names: Mapping[str, str] = {}

    async def keep(self) -> None:
        """Have the names there until cancelled; then they are gone."""
        complained = False
        try:
            while True:
                try:
                    self.write(self.names)
                except OSError as error:
                    if not complained:
                        log.warning("%s cannot be written: %s", self.path, error.strerror)
                    complained = True
                await asyncio.sleep(LOOK)
        finally:
            with contextlib.suppress(OSError):
                self.write({})

    def there(self) -> bool:
        """Whether all names are in the file."""
        try:
            return _with(self.path.read_text(), self.names) == self.path.read_text()
        except OSError:
            return False

    def write(self, names: Mapping[str, str]) -> None:
        """Have exactly these names in the file, in place: it is mounted into the containers."""
        text = self.path.read_text()
        wanted = _with(text, names)
        if wanted != text:
            with self.path.open("r+") as file:
                file.write(wanted)
                file.truncate()


def _with(text: str, names: Mapping[str, str]) -> str:
    before, _, rest = text.partition(f"{BEGIN}\n")
    _, _, after = rest.partition(f"{END}\n")
    if not names:
        return before + after
    lines = "".join(f"{address}\t{name}\n" for name, address in sorted(names.items()))
    if before and not before.endswith("\n"):
        before += "\n"
    return f"{before}{BEGIN}\n{lines}{END}\n{after}"

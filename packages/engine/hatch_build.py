"""Builds the engine binary into the wheel, which then is one of this platform, any Python 3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SKIP = "LATTICE_ENGINE_SKIP_BUILD"


class EngineBuildHook(BuildHookInterface[Any]):
    """Runs ``go build``; ``LATTICE_ENGINE_SKIP_BUILD=1`` leaves that to whoever sets it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the binary and make the wheel a platform wheel that has it."""
        if self.target_name != "wheel" or os.environ.get(SKIP) == "1":
            return
        if version == "editable":
            binary = Path(self.root, "src", "lattice_engine", "_bin", self._name())
            self._build(binary)
            return
        binary = Path(self.root, ".build", self._name())
        self._build(binary)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"
        build_data["force_include"][str(binary)] = f"lattice_engine/_bin/{self._name()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the intermediate binary."""
        shutil.rmtree(Path(self.root, ".build"), ignore_errors=True)

    def _name(self) -> str:
        return "lattice-engine.exe" if os.name == "nt" else "lattice-engine"

    def _build(self, binary: Path) -> None:
        go = os.environ.get("LATTICE_GO") or shutil.which("go")
        if go is None:
            raise RuntimeError(
                "building the lattice-engine wheel needs Go, and no go command is on PATH: "
                "install Go (https://go.dev/dl), or name one with LATTICE_GO=/path/to/go, or "
                f"set {SKIP}=1 to install the Python part alone and LATTICE_ENGINE to a binary"
            )
        binary.parent.mkdir(parents=True, exist_ok=True)
        version = self.metadata.version
        command = [go, "build", "-trimpath", "-ldflags", f"-s -w -X main.version={version}"]
        command += ["-o", str(binary), "./cmd/lattice-engine"]
        environment = {**os.environ, "CGO_ENABLED": "0"}
        done = subprocess.run(command, cwd=self.root, env=environment, check=False)
        if done.returncode != 0:
            raise RuntimeError(
                f"`{' '.join(command)}` in {self.root} failed with exit status {done.returncode}: "
                "its messages are above; `go version` must be at least the one in go.mod"
            )
        binary.chmod(0o755)


def _platform_tag() -> str:
    """The wheel tag of this platform.

    A static Go binary (CGO_ENABLED=0) needs no C library: on Linux it satisfies both the oldest
    manylinux and the oldest musllinux, https://peps.python.org/pep-0600/ and pep-0656.
    """
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    if platform.startswith("linux_"):
        machine = platform.removeprefix("linux_")
        return f"manylinux_2_17_{machine}.manylinux2014_{machine}.musllinux_1_1_{machine}"
    return platform

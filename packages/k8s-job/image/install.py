"""Runs while the image is built: unpacks the wheels, with the base's Python and nothing else.

python3 -I install.py CONTEXT TARGET
"""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

LAUNCHERS = {
    "lattice-k8s": ("lattice_k8s_job", "from lattice_k8s_job.main import main"),
    "lattice": ("lattice_sdk", "from lattice_sdk.cli import main"),
}
# A wheel for another Python or processor, and a base without a library that one needs, fail here
# and not in a cluster.
TRIED = (
    "cryptography.hazmat.bindings._rust",
    "pydantic_core",
    "lattice_sdk.agent",
    "lattice_engine",
    "lattice_k8s_job.roles",
    "greenlet",
    "lattice_server.app",
)
# Isolated: neither the environment nor the working directory says what is imported.
LAUNCHER = """\
#!{python} -I
import sys

sys.path.insert(0, {library!r})
{statement}

sys.exit(main())
"""


def unpack(wheel: Path, library: Path) -> None:
    """Put a wheel's files where they are imported from."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(library)
    for data in library.glob("*.data"):
        for kind in ("purelib", "platlib"):
            if (data / kind).is_dir():
                shutil.copytree(data / kind, library, dirs_exist_ok=True)
        shutil.rmtree(data)


def launchers(library: Path, commands: Path) -> None:
    """The commands of the packages that are there."""
    commands.mkdir()
    for name, (package, statement) in LAUNCHERS.items():
        if (library / package).is_dir():
            text = LAUNCHER.format(python=sys.executable, library=str(library), statement=statement)
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)


def modes(target: Path) -> None:
    """Everybody reads, nobody but root writes, whatever the wheels say."""
    for path in (target, *target.rglob("*")):
        executable = path.is_dir() or path.parent.name == "bin" or path.suffix == ".so"
        path.chmod(0o755 if executable else 0o644)
    # Executed but not read, the engine is not dumpable: where a pod shares its processes, no other
    # container looks into it (execve(2), ptrace(2)).
    (target / "lib" / "lattice_engine" / "_bin" / "lattice-engine").chmod(0o711)


def main() -> None:
    """See above."""
    context, target = map(Path, sys.argv[1:])
    library = target / "lib"
    library.mkdir(parents=True)
    for wheel in sorted((context / "wheels").glob("*.whl")):
        unpack(wheel, library)
    launchers(library, target / "bin")
    shutil.copy(context / "sbom.spdx.json", target)
    compileall.compile_dir(library, quiet=2, workers=1)
    modes(target)
    tried = [name for name in TRIED if (library / name.partition(".")[0]).is_dir()]
    code = f"import sys; sys.path.insert(0, {str(library)!r}); import {', '.join(tried)}"
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


if __name__ == "__main__":
    main()

"""Make the build context of an image: locked wheels and their bill of materials.

    python packages/k8s-job/image/context.py CONTEXT [--python 3.13] [--machine x86_64]
        [--package lattice-k8s-job] [--extra PACKAGE]

Run with the workspace's Python (`make image` does), whose installed packages say what needs what.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import sbom
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent.parent
OURS = {
    "lattice-engine": "engine",
    "lattice-sdk": "core",
    "lattice-k8s-job": "k8s-job",
    "lattice-server": "server",
}
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "linux")


def needed(packages: list[str], python: str, machine: str) -> set[str]:
    """Everything that packages need to run there, themselves included."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    found: set[str] = set()
    waiting = [(package, "") for package in packages]
    while waiting:
        name, extra = waiting.pop()
        if (key := canonicalize_name(name)) in found and not extra:
            continue
        found.add(key)
        for text in distribution(name).requires or []:
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate(environment | {"extra": extra}):
                waiting += [(one.name, wish) for wish in ("", *one.extras)]
    return found


def locked(names: set[str]) -> Iterator[str]:
    """The lock file's entries of these packages, with their hashes."""
    text = (ROOT / "requirements.lock").read_text()
    for entry in re.findall(r"(?m)^\S.*(?:\n[ \t]+\S.*)*", text):
        if canonicalize_name(re.split(r"[=\[ ;]", entry, maxsplit=1)[0]) in names:
            # What does not belong on the target was left out before.
            yield re.sub(r" *;[^\\\n]*", " ", entry, count=1)


def download(names: set[str], wheels: Path, python: str, machine: str) -> None:
    """Wheels of others, checked against the lock file's hashes."""
    requirements = wheels.parent / "requirements.txt"
    requirements.write_text("".join(f"{entry}\n" for entry in locked(names)))
    command = [str(ROOT / ".tools" / "bin" / "python"), "-m", "pip", "download", "--quiet"]
    command += [
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(wheels)]
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_{machine}"]
    subprocess.run([*command, "-r", str(requirements)], check=True)


def build(name: str, wheels: Path) -> None:
    """A wheel of ours."""
    command = [str(ROOT / ".tools" / "bin" / "uv"), "build", "--quiet", "--wheel"]
    command += ["--no-build-isolation", "--python", sys.executable, "--out-dir", str(wheels)]
    subprocess.run([*command, str(ROOT / "packages" / OURS[name])], check=True)
    (wheels / ".gitignore").unlink(missing_ok=True)  # uv puts it there


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("context", type=Path)
    parser.add_argument("--python", default="3.13")
    parser.add_argument("--machine", default="x86_64")
    parser.add_argument("--package", default="lattice-k8s-job", choices=sorted(OURS))
    parser.add_argument("--extra", action="append", default=[], help="a locked package to add")
    options = parser.parse_args()
    shutil.rmtree(options.context, ignore_errors=True)
    wheels = options.context / "wheels"
    wheels.mkdir(parents=True)
    names = needed([options.package, *options.extra], options.python, options.machine)
    download(names - set(OURS), wheels, options.python, options.machine)
    for name in sorted(names & set(OURS)):
        build(name, wheels)
    shutil.copy(Path(__file__).parent / "install.py", options.context)
    sbom.write(wheels, options.context / "sbom.spdx.json", options.package)


if __name__ == "__main__":
    main()

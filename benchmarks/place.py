"""A network of the benchmark's own: nothing of the machine's is touched, and no root is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import Section

ROOT = Path(__file__).parent.parent
INSIDE = """
import importlib, json, sys
from dataclasses import asdict
section = importlib.import_module(sys.argv[1]).inside(**json.loads(sys.argv[2]))
print(json.dumps(asdict(section)))
"""
# wireguard-go keeps the sockets that it is configured by in a fixed directory.
SET_UP = 'ip link set lo up && mkdir -p /run/wireguard && mount -t tmpfs none /run && exec "$@"'


def missing() -> str | None:
    """What this machine lacks for one."""
    for tool in ("unshare", "ip", "mount"):
        if shutil.which(tool, path=_path()) is None:
            return f"the tool {tool} is missing"
    try:
        subprocess.run(command(["true"]), capture_output=True, check=True, env=_environment())
    except subprocess.CalledProcessError as error:
        return f"no namespaces for this user ({error.stderr.decode().strip()})"
    return None


def command(inner: list[str]) -> list[str]:
    """A command that runs another in a user, network and mount namespace of its own."""
    flags = ["--user", "--map-root-user", "--net", "--mount", "--fork", "--kill-child"]
    return ["unshare", *flags, "sh", "-c", SET_UP, "place", *inner]


def run(module: str, **options: Any) -> Section:
    """What ``inside(**options)`` of a module finds in such a network."""
    inner = [sys.executable, "-c", INSIDE, module, json.dumps(options)]
    done = subprocess.run(
        command(inner), cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    return Section.from_dict(json.loads(done.stdout.splitlines()[-1]))


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path(), "PYTHONPATH": str(ROOT)}

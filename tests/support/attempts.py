"""Making the attempts of :mod:`support.attack`, and how they came out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ATTACK = Path(__file__).parent / "attack.py"


@dataclass(frozen=True)
class Attempt:
    """How one came out."""

    reached: bool
    why: str
    seconds: float


def told(done: subprocess.CompletedProcess[str]) -> Attempt:
    """What an attempt printed last."""
    assert done.stdout.strip(), f"exit {done.returncode}: {done.stderr}"
    line = json.loads(done.stdout.splitlines()[-1])
    return Attempt(line["reached"], str(line["why"]), line["seconds"])


def command(name: str, arguments: dict[str, Any]) -> list[str]:
    return [sys.executable, "-I", str(ATTACK), name, json.dumps(arguments)]


def outside(name: str, /, **arguments: Any) -> Attempt:
    """An attempt by a program that is in no sandbox."""
    done = subprocess.run(
        command(name, arguments), capture_output=True, text=True, timeout=60, check=False
    )
    return told(done)

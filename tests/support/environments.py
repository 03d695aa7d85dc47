"""Environments of documentation and examples: no two generations of AutoGen are in one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from lattice_autogen._compat import GENERATIONS

ROOT = Path(__file__).parent.parent.parent


def python_for(program: str) -> str:
    """The Python whose environment has the AutoGen that a program imports; else the running one."""
    for generation, module in GENERATIONS.items():
        if re.search(rf"^(from|import) {module}\b", program, re.MULTILINE):
            python = ROOT / ".venvs" / f"autogen-{generation}" / "bin" / "python"
            assert python.exists(), f"{python} is missing: make environments"
            return str(python)
    return sys.executable

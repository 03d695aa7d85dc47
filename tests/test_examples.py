"""The examples run as they are, offline, against `lattice dev`.

One that needs an environment of its own has its test there; each has one somewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lattice_sdk.testing import World

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(world: World, name: str, *arguments: str) -> str:
    """What an example prints, which ends well and leaves no identity."""
    before = world.peers()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env={
            "PATH": os.environ["PATH"],
            "LATTICE_SERVER": world.server,
            "LATTICE_TOKEN": world.token,
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert world.peers() <= before
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_has_a_test(example: Path) -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert f'"{example.name}"' in tests


def test_langgraph_research_asks_what_it_may_and_is_refused_the_rest(lattice_world: World) -> None:
    told = run(lattice_world, "langgraph_research.py", "who", "calls?")
    found = re.match(r"research is peer-\w+, (10\.\S+)\n", told)
    assert found, told
    for name in ("github-tools", "search"):
        answer = f'http://{name}.lattice/ answers: {{"service": "{name}", "client": "{found[1]}"'
        assert answer in told
    assert re.search(r'^http://169\S+ is refused: the preset "sandboxed"', told, re.MULTILINE)
    assert "3 findings are in the checkpoint" in told

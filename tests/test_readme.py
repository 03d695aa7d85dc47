"""What the README claims, run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conftest import World
from support.environments import python_for

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def environment(world: World) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "LATTICE_SERVER": world.fabric.url,
        "LATTICE_TOKEN": world.fabric.workspace_token,
    }


@pytest.mark.parametrize("block", blocks("python"))
def test_python_of_the_readme_runs(
    world: World, block: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue("claude_model") if "lattice_claude" in block else {}
    program = block
    if "async with" in block:
        imports, body = block.split("\n\n", 1)
        inner = textwrap.indent(body, "    ")
        program = f"{imports}\nimport asyncio\n\nasync def main():\n{inner}"
        program += "    assert answer.status_code == 200\n\nasyncio.run(main())\n"
    done = subprocess.run(
        [python_for(program), "-c", program],
        env={**model, **environment(world)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "print(" in block:
        assert re.fullmatch(r"peer-\S+ 10\.96\.\S+ 200\n", done.stdout)


def test_curl_of_the_readme_enrolls(world: World) -> None:
    (command,) = [block for block in blocks("sh") if "curl" in block]
    done = subprocess.run(
        ["sh", "-c", command.replace("curl ", "curl --silent --show-error --fail ", 1)],
        env=environment(world),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    identity = json.loads(done.stdout)
    assert "PrivateKey" in identity["wireguardConfig"]
    world.fabric.request("DELETE", f"/api/v1/peers/{identity['peerId']}")


def test_commands_of_the_readme_are_targets_and_commands() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    used = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert used[:2] == ["demo", "test"]
    assert all(f"make {target}" in listed for target in used)
    for command in set(re.findall(r"\blattice (dev|connect|events)\b", README)):
        subprocess.run(
            [sys.executable, "-m", "lattice_sdk", command, "--help"],
            check=True,
            capture_output=True,
        )

"""The documentation is true: links lead somewhere, examples run, lists are complete."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
from pathlib import Path

import httpx
import pytest
import typer.main

from conftest import World
from lattice_sdk import errors
from lattice_sdk.cli import build
from lattice_sdk.errors import LatticeError
from lattice_server.problems import CODES
from lattice_server.settings import ServerSettings
from support.environments import python_for

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language on a page of docs/."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.name} links to {target}"


RUN = ("sdk.md", "isolation.md", "backends.md", "adapters.md")
PYTHON = [(page, block) for page in RUN for block in blocks(page, "python")]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_of_the_docs_runs(
    world: World, page: str, block: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue("claude_model") if "lattice_claude" in block else {}
    done = subprocess.run(
        [python_for(block), "-c", block],
        env={
            **model,
            "PATH": os.environ["PATH"],
            "LATTICE_SERVER": world.fabric.url,
            "LATTICE_TOKEN": world.fabric.workspace_token,
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_session_of_the_api_page_runs(world: World, tmp_path: Path) -> None:
    script = "set -eu\n" + "\n".join(blocks("api.md", "sh"))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "LATTICE_SERVER": world.fabric.url,
            "LATTICE_TOKEN": world.fabric.workspace_token,
            "LATTICE_WORKSPACE": world.fabric.workspace,
            "ADMIN": world.fabric.admin_token,
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-600:]}\n{done.stderr}"
    assert "LatticePeer" in done.stdout


def test_api_page_has_every_route_and_every_code(world: World) -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    routes = httpx.get(f"{world.fabric.url}/openapi.json", timeout=60).json()["paths"]
    named = set(re.findall(r"`(?:[A-Z]+ )?(/[^`?\s]*)`", text))
    named |= {"/apis/alattice.io/v1alpha1/namespaces/{workspace}/latticepeers/{peer_id}"}
    assert set(routes) - named == set()
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", text, re.MULTILINE))
    assert {code: int(status) for code, status in documented.items()} == CODES


def test_operations_page_has_every_setting_and_metric(world: World) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    settings = text.partition("| setting |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", settings, re.M))))
    assert named == set(ServerSettings.model_fields)
    exposed = httpx.get(f"{world.fabric.url}/metrics", timeout=60).text
    families = {
        name + ("_total" if kind == "counter" and not name.endswith("_total") else "")
        for name, kind in re.findall(r"^# TYPE (lattice_\w+) (\w+)", exposed, re.MULTILINE)
        if not name.endswith("_created")
    }
    metrics = text.partition("## Metrics")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(lattice_\w+)`", metrics)) == families


def test_every_attack_of_the_security_page_has_its_test() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    attacks = text.partition("\n## Attack by attack\n")[2].partition("\n## ")[0]
    rows = [row for row in re.findall(r"^\| (.+) \|$", attacks, re.M) if "---" not in row]
    rows = [row for row in rows if not row.startswith("attack |")]
    assert len(rows) > 40
    for row in rows:
        attack, holds, shown = row.split(" | ")
        links = re.findall(r"\[(\w+)\]\(([^)]+)\)", shown)
        assert links, f"nothing shows {attack!r}"
        assert holds
        for name, target in links:
            source = (ROOT / "docs" / target).read_text()
            word = "func" if target.endswith(".go") else "def"
            assert re.search(rf"^(async )?{word} {name}\(", source, re.M), f"{target} has no {name}"


def test_sdk_page_has_every_error() -> None:
    text = (ROOT / "docs" / "sdk.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) \|", text, re.MULTILINE))
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, LatticeError) and kind is not LatticeError
    ]
    assert rows == {(kind.__name__, kind.code, str(kind.exit_code)) for kind in kinds}


COMMANDS = [
    line
    for page in ("operations.md", "isolation.md", "kubernetes.md")
    for block in blocks(page, "sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("lattice ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_docs_are_accepted(line: str) -> None:
    words = shlex.split(line.partition(" | ")[0], comments=True)[1:]
    command = typer.main.get_command(build())
    while getattr(command, "commands", None):
        command = command.commands[words.pop(0)]
    command.make_context("lattice", words)

"""``examples/claude_wrapper.py``, run against ``lattice dev`` with a model of the test's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from lattice_sdk.testing import World
from support.model import ScriptedModel, call, claude_environment, say

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "claude_wrapper.py"


def test_example_reaches_its_tool_and_nothing_else(lattice_world: World, tmp_path: Path) -> None:
    script = (
        [call("mcp__tools__fetch", url="http://github-tools.lattice/")],
        [call("Bash", command="curl --silent --show-error http://example.com/")],
        [say("That is all.")],
    )
    with (
        ScriptedModel(*script) as model,
        lattice_world.service("example-model", model.target),
    ):
        done = subprocess.run(
            [sys.executable, str(EXAMPLE)],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "LATTICE_SERVER": lattice_world.server,
                "LATTICE_TOKEN": lattice_world.token,
                **claude_environment(tmp_path, "http://example-model.lattice"),
            },
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"^(peer-\S+) at (\S+)$", done.stdout, re.MULTILINE)
    assert told
    assert f'"client": "{told[2]}"' in done.stdout
    # As a namespace refuses it, or a proxy.
    assert re.search(r"Could not resolve host: example\.com|sandboxed", done.stdout)
    assert done.stdout.endswith("claude: That is all.\nsuccess after 3 turns\n")
    assert not lattice_world.knows(told[1])

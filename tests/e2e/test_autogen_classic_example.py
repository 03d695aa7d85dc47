"""The example of two AutoGen agents, against `lattice dev`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from lattice_sdk.testing import World

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "autogen_pair.py"


def test_pair_is_two_identities_and_the_program_has_the_network_of_its_runner(
    lattice_world: World, tmp_path: Path
) -> None:
    before = lattice_world.peers()
    done = subprocess.run(
        [sys.executable, EXAMPLE],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "LATTICE_SERVER": lattice_world.server,
            "LATTICE_TOKEN": lattice_world.token,
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    who = dict(re.findall(r"^(\w+) is peer-\w+, (10\.\S+)$", done.stdout, re.MULTILINE))
    assert who.keys() == {"writer", "runner"}
    assert who["writer"] != who["runner"]
    for name in ("github-tools", "search"):
        answer = (
            f'http://{name}.lattice/ answers: {{"service": "{name}", "client": "{who["runner"]}"'
        )
        assert answer in done.stdout
    # By the kernel: the program is in a network namespace of the runner's.
    assert re.search(r"^http://169\S+ is refused: .*Connection refused", done.stdout, re.MULTILINE)
    assert lattice_world.peers() <= before

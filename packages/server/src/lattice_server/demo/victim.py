"""An agent program that waits to be killed; run as ``python -m lattice_server.demo.victim``.

Its settings come from the environment, as those of any agent. It prints its peer id and the
process id of its engine once its network has answered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lattice_sdk import LatticeAgent
from lattice_server.demo.outcome import UnexpectedError

if TYPE_CHECKING:
    from lattice_server.fabric import Fabric

__all__ = ["running_victim"]


@contextmanager
def running_victim(fabric: Fabric, directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program, working, and its peer id.

    Args:
        fabric: where it enrolls.
        directory: for its token.

    Raises:
        UnexpectedError: it does not get that far.
    """
    token = directory / "victim.token"
    token.touch(0o600)
    token.write_text(fabric.workspace_token)
    process = subprocess.Popen(
        [sys.executable, "-m", "lattice_server.demo.victim"],
        env={
            **{name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ},
            "LATTICE_SERVER": fabric.url,
            "LATTICE_TOKEN_FILE": str(token),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            why = process.communicate()[1][-500:]
            raise UnexpectedError(f"the agent program did not start: {why}")
        yield process, str(json.loads(line)["peerId"])
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Enroll, use the network once, wait."""
    with LatticeAgent(agent_name="victim") as agent, agent.http_client() as http:
        http.get("http://github-tools.lattice/").raise_for_status()
        print(json.dumps({"peerId": agent.peer_id, "engine": agent.engine_pid}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

"""The SDK does nothing in an event loop that waits for a disk or for another process.

In its own loop that would hold up all identities of the process, and servers that watch for it
(``langgraph dev`` does) refuse it anywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from conftest import World

PROGRAM = textwrap.dedent(
    """
    import asyncio, sys
    from blockbuster import BlockBuster
    from lattice_engine import EngineProcess  # what is imported on first use is read from a disk
    import anyio, httpx
    from lattice_sdk import LatticeAgent, lifecycle, terms, transports, tunnelled

    async def main():
        async with (
            LatticeAgent(agent_name="watched", state_dir=sys.argv[1]) as agent,
            agent.async_http_client() as http,
        ):
            answer = await http.get("http://github-tools.lattice/")
            await agent.arenew()
            print(agent.proxy_env() and answer.status_code)

    guard = BlockBuster()
    for name in [name for name in guard.functions if name.startswith(("os.path.", "io."))]:
        del guard.functions[name]  # quick, and not refused by `langgraph dev` either
    guard.functions.pop("os.stat"), guard.functions.pop("threading.Lock.acquire")
    guard.activate()
    asyncio.run(main())
    """
)


def test_life_of_an_identity_blocks_no_event_loop(world: World, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "state")],
        env={
            "PATH": os.environ["PATH"],
            "LATTICE_SERVER": world.fabric.url,
            "LATTICE_TOKEN": world.fabric.workspace_token,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Blocking call" not in done.stderr
    assert done.stdout == "200\n"

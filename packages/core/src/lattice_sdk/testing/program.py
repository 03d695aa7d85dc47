"""An agent program in a process of its own: ``python -m lattice_sdk.testing.program ADAPTER MODE``.

``ADAPTER`` is ``MODULE:CLASS``. Prints a JSON line with peer and engine once the agent works, and
then does as ``MODE`` says.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattice_sdk.agent import LatticeAgent
    from lattice_sdk.testing.adapter import Adapter

GRANTED_URL = "http://github-tools.lattice/"
PATIENCE = 60.0  # seconds for its answer


def load(name: str) -> Adapter:
    """The adapter ``MODULE:CLASS``."""
    module, _, qualified = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    adapter: Adapter = found()
    return adapter


def tell(**line: object) -> None:
    """A line for the test."""
    print(json.dumps(line), flush=True)


def use(agent: LatticeAgent) -> None:
    """Reach the granted service, then tell who one is."""
    with agent.http_client(timeout=PATIENCE) as http:
        client = http.get(GRANTED_URL).raise_for_status().json()["client"]
    tell(peer=agent.peer_id, engine=agent.engine_pid, client=client, address=agent.overlay_ip)


def wait(adapter: Adapter, settings: dict[str, Any]) -> None:
    """Work until somebody ends this process."""

    def work(agent: LatticeAgent) -> None:
        use(agent)
        threading.Event().wait()

    adapter.run(settings, work)


def exit_(adapter: Adapter, settings: dict[str, Any]) -> None:
    """Let the interpreter end while an agent works in another thread, which then leaves."""
    working, ending = threading.Event(), threading.Event()

    def work(agent: LatticeAgent) -> None:
        use(agent)
        working.set()
        ending.wait()

    threading.Thread(target=adapter.run, args=(settings, work)).start()
    working.wait()
    ending.set()  # leaving takes longer than it takes this thread to end


def hold(adapter: Adapter, settings: dict[str, Any]) -> None:
    """Let the interpreter end without leaving."""
    held, agent = adapter.hold(settings)
    use(agent())
    globals()["held"] = held


def fork(adapter: Adapter, settings: dict[str, Any]) -> None:
    """Fork a child that ends in order, then go on."""

    def work(agent: LatticeAgent) -> None:
        use(agent)
        child = os.fork()
        if child == 0:
            try:
                agent.close()
                gc.collect()
                atexit._run_exitfuncs()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        use(agent)

    adapter.run(settings, work)


def fail(adapter: Adapter, settings: dict[str, Any]) -> None:
    """Print whatever may be printed, at the loudest, and fail."""
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    secrets = Path(os.environ["LATTICE_TEST_SECRETS"])

    def work(agent: LatticeAgent) -> None:
        config = agent.wireguard_config
        identity = agent._identity()
        secrets.write_text(
            json.dumps(
                [
                    config.get_secret_value().split("PrivateKey = ")[1].split()[0]
                    if config
                    else "",
                    identity.enrollment_token.get_secret_value(),
                    agent.proxy_env()["HTTP_PROXY"].split("@")[0].rpartition(":")[2],
                ]
            )
        )
        use(agent)
        print(agent, repr(agent), vars(agent), identity, config)
        agent.renew()
        sys.stdin.readline()  # the test looks at this process and its children meanwhile
        raise RuntimeError(f"the work of {agent!r} fails")

    adapter.run(settings, work)


MODES: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "wait": wait,
    "exit": exit_,
    "hold": hold,
    "fork": fork,
    "fail": fail,
}


def main() -> None:
    """Settings come from the environment, as those of any agent."""
    adapter, mode = sys.argv[1:]
    MODES[mode](load(adapter), {"agent_name": "contract", "policy_preset": "sandboxed"})


if __name__ == "__main__":
    main()

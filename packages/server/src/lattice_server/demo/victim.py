"""An agent program that waits to be killed; run as ``python -m lattice_server.demo.victim``.

Its settings come from the environment, as those of any agent. It prints its peer id and the
process id of its engine once its network has answered.
"""

from __future__ import annotations

import json
import threading

from lattice_sdk import LatticeAgent


def main() -> None:
    """Enroll, use the network once, wait."""
    with LatticeAgent(agent_name="victim") as agent, agent.http_client() as http:
        http.get("http://github-tools.lattice/").raise_for_status()
        print(json.dumps({"peerId": agent.peer_id, "engine": agent.engine_pid}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

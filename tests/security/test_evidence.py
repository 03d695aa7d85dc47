"""An agent that probes what it may not reach leaves evidence, and is ended when it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conftest import World
from lattice_sdk import LatticeAgent, LatticeError, Refused
from support.waiting import wait_for


def lattice(world: World, *words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "lattice_sdk", *words, "--output", "json"],
        env={
            "PATH": os.environ["PATH"],
            "LATTICE_SERVER": world.fabric.url,
            "LATTICE_TOKEN": world.fabric.admin_token,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return items


def probe(agent: LatticeAgent, address: str, times: int, timeout: float = 20) -> int:
    """Try to connect; how often it was refused before the agent's network was gone."""
    for number in range(times):
        try:
            agent.connect(address, 80, timeout=timeout)
        except Refused:
            continue
        except (LatticeError, OSError):
            return number
        raise AssertionError("it connected")
    return times


def test_probes_are_added_up_by_agent_and_destination(world: World) -> None:
    with world.agent(agent_name="probing") as agent:
        assert probe(agent, world.addresses["payroll"], 3) == 3

        def found() -> dict[str, Any] | None:
            rows = lattice(world, "denials", "--peer", agent.peer_id)
            return next((row for row in rows if row["packets"] >= 1), None)

        row = wait_for("the denial", found)
        assert (row["name"], row["destination"]) == ("probing", world.addresses["payroll"])
        assert (row["protocol"], row["port"], row["source"]) == ("tcp", 80, agent.overlay_ip)
        assert row["firstAt"] <= row["lastAt"]


def test_scan_is_summed_up_and_hides_nobody(world: World) -> None:
    scanned = range(2000, 2400)
    with world.agent(agent_name="scanning") as agent, world.agent(agent_name="other") as other:
        with ThreadPoolExecutor(16) as pool:

            def knock(port: int) -> bool:
                with pytest.raises(Refused):
                    agent.connect(world.addresses["payroll"], port, timeout=10)
                return True

            assert all(pool.map(knock, scanned))
        assert probe(other, world.addresses["payroll"], 1) == 1
        wait_for(
            "another agent's denial", lambda: lattice(world, "denials", "--peer", other.peer_id)
        )

        def summed_up() -> bool:
            rows = lattice(world, "denials", "--peer", agent.peer_id)
            rest = [row for row in rows if row["destination"] is None]
            return bool(rest) and sum(row["packets"] for row in rows) >= len(scanned)

        # The control plane adds up what it has no room for at the end of a minute.
        wait_for("the sum", summed_up, timeout=90, pause=1)


def test_agent_that_goes_on_probing_is_quarantined_and_its_neighbour_is_not(
    make_world: Callable[..., Any],
) -> None:
    options = {"denial_limit": 8, "denial_window": 30}
    with (
        make_world(server_options=options) as world,
        world.agent(agent_name="scanner") as scanner,
        world.agent(agent_name="neighbour") as neighbour,
    ):
        probe(neighbour, world.addresses["payroll"], 2)
        # The gateway reports every quarter of a second, so it gets in a few more than eight.
        assert probe(scanner, world.addresses["payroll"], 2000, timeout=3) < 2000
        [event] = lattice(world, "events", "--type", "quarantined")
        assert event["peerId"] == scanner.peer_id
        with pytest.raises(LatticeError):
            scanner.renew()
        with neighbour.http_client() as http:
            assert http.get("http://github-tools.lattice/").status_code == 200

"""Each renewal may bring a new WireGuard key; connections go on, and the former key is void."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from conftest import World
from lattice_sdk import LatticeAgent, LatticeError, keys
from support.waiting import wait_for
from support.wire import Tap

GAP = 4.5  # seconds without a byte of a stream that has one each 5 ms


def at_gateway(world: World, agent: LatticeAgent) -> dict[str, Any]:
    """The agent as the gateway's data plane has it."""
    transport = httpx.HTTPTransport(uds=str(world.fabric.gateway_control))
    with httpx.Client(transport=transport, base_url="http://engine") as client:
        peers = client.get("/v1/peers").raise_for_status().json()["peers"]
    return next(peer for peer in peers if peer["id"] == agent.peer_id)


def public_key(agent: LatticeAgent) -> str:
    config = agent.wireguard_config
    assert config is not None
    [private] = re.findall(r"PrivateKey = (\S+)", config.get_secret_value())
    return keys.from_private(SecretStr(private)).public


def shaken(world: World, agent: LatticeAgent) -> None:
    """The new key is in use; without a packet under it, that would take 30 s."""
    wait_for("a handshake under the new key", lambda: not at_gateway(world, agent)["exchanging"])


class Download(threading.Thread):
    """An endless download."""

    def __init__(self, agent: LatticeAgent) -> None:
        super().__init__(daemon=True)
        self.agent = agent
        self.size, self.longest = 0, 0.0
        self.ended = threading.Event()
        self.stopping = False

    def run(self) -> None:
        try:
            with (
                self.agent.http_client(timeout=30) as http,
                http.stream("GET", "http://github-tools.lattice/stream") as answer,
            ):
                last = time.monotonic()
                for block in answer.iter_raw():
                    at = time.monotonic()
                    self.longest, last = max(self.longest, at - last), at
                    self.size += len(block)
                    if self.stopping:
                        return
        finally:
            self.ended.set()

    def goes_on(self) -> None:
        """Bytes come that have not been sent yet."""
        before = self.size
        wait_for("more bytes", lambda: self.ended.is_set() or self.size > before + 20_000)
        assert not self.ended.is_set(), "the download broke"


@contextmanager
def downloading(agent: LatticeAgent) -> Iterator[Download]:
    download = Download(agent)
    download.start()
    download.goes_on()
    yield download
    download.stopping = True
    download.join(10)


@pytest.mark.parametrize("backend", ["userspace", "netns"])
def test_a_download_goes_on_while_keys_are_exchanged(world: World, backend: str) -> None:
    with world.agent(rotate_keys=True, backend=backend) as agent, downloading(agent) as download:
        known = {public_key(agent)}
        for _ in range(5):
            agent.renew()
            known.add(public_key(agent))
            assert at_gateway(world, agent)["publicKey"] == public_key(agent)
            shaken(world, agent)
            download.goes_on()
        assert len(known) == 6
        assert download.longest < GAP


def test_an_upload_goes_on_while_keys_are_exchanged(world: World) -> None:
    with world.agent(rotate_keys=True) as agent, agent.http_client(timeout=60) as http:

        def body() -> Iterator[bytes]:
            for number in range(40):
                if number % 10 == 5:
                    agent.renew()
                yield bytes([number]) * 100_000

        answer = http.post(
            "http://github-tools.lattice/",
            content=body(),
            headers={"Content-Length": str(40 * 100_000)},
        )
        assert answer.content == b"".join(bytes([n]) * 100_000 for n in range(40))


def test_an_agent_that_sends_nothing_is_reached_under_its_new_key(world: World) -> None:
    with world.agent(policy_preset="coordinator", rotate_keys=True) as idle:
        idle.renew()
        # The gateway has heard the new key, without a packet of the agent's programs.
        shaken(world, idle)
        with idle.listen(7100), world.agent(policy_preset="coordinator") as other:
            other.connect(idle.overlay_ip, 7100, timeout=10).close()


def test_without_being_asked_a_renewal_keeps_the_key(world: World) -> None:
    with world.agent() as agent:
        before = public_key(agent)
        agent.renew()
        assert public_key(agent) == before == at_gateway(world, agent)["publicKey"]


def test_an_answer_that_is_lost_costs_neither_the_connection_nor_the_identity(
    world: World,
) -> None:
    with (
        Tap(world.fabric.url) as tap,
        world.agent(server=tap.url, rotate_keys=True) as agent,
        downloading(agent) as download,
    ):
        before = public_key(agent)
        tap.deaf = True
        with pytest.raises(LatticeError):
            agent.renew()
        # Control plane and gateway have a key that the agent does not know to be in force.
        wait_for("the exchange", lambda: at_gateway(world, agent)["publicKey"] != before)
        taken = at_gateway(world, agent)["publicKey"]
        download.goes_on()
        assert public_key(agent) == before
        tap.deaf = False
        agent.renew()
        assert public_key(agent) == taken == at_gateway(world, agent)["publicKey"]
        download.goes_on()
        assert download.longest < GAP


def test_an_identity_is_taken_up_again_that_ended_in_the_middle_of_an_exchange(
    world: World, tmp_path: Path
) -> None:
    with Tap(world.fabric.url) as tap:
        settings = {"server": tap.url, "rotate_keys": True, "state_dir": tmp_path / "state"}
        agent = world.agent(**settings)
        agent.open()
        peer, before = agent.peer_id, public_key(agent)
        tap.deaf = True
        with pytest.raises(LatticeError):
            agent.renew()
        wait_for("the exchange", lambda: at_gateway(world, agent)["publicKey"] != before)
        tap.deaf = False
        agent.detach()
        with world.agent(**settings) as again, again.http_client() as http:
            assert again.peer_id == peer
            assert http.get("http://github-tools.lattice/").status_code == 200
            assert at_gateway(world, again)["publicKey"] == public_key(again)

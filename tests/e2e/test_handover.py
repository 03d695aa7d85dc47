"""An identity that goes from one process to the next through its state directory."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from conftest import World
from lattice_sdk import (
    ConfigurationError,
    IdentityClosed,
    IdentityExpired,
    LatticeAgent,
    TunnelFailed,
    hookimpl,
)
from lattice_sdk.backends import Tunnel, TunnelBackend, TunnelSpec
from lattice_sdk.keys import from_private
from lattice_sdk.plugins import manager
from lattice_sdk.statedir import StateDir


def peers(world: World) -> dict[str, dict[str, object]]:
    path = f"/api/v1/peers?workspaceId={world.fabric.workspace}"
    return {peer["peerId"]: peer for peer in world.fabric.request("GET", path)["items"]}


@pytest.fixture(autouse=True)
def no_token_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LATTICE_TOKEN", "LATTICE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LATTICE_CONFIG", str(tmp_path / "none.toml"))


def handed_over(world: World, state: Path, **settings: object) -> str:
    """The id of an identity that is left alive in its state directory."""
    agent = world.agent(state_dir=state, backend="none", **settings).open()
    agent.detach()
    return agent.peer_id


def test_detached_identity_is_taken_up_without_a_token(world: World, tmp_path: Path) -> None:
    first = world.agent(state_dir=tmp_path / "state").open()
    peer, address = first.peer_id, first.overlay_ip
    proxy = first.proxy_env()["HTTP_PROXY"]
    first.detach()
    assert first.state == "closed"
    with pytest.raises(httpx.ConnectError), httpx.Client(proxy=proxy) as http:
        http.get("http://github-tools.lattice/")
    assert peer in peers(world)
    with world.agent(state_dir=tmp_path / "state", token=None) as second:
        assert (second.peer_id, second.overlay_ip) == (peer, address)
        with second.http_client() as http:
            assert http.get("http://github-tools.lattice/").json()["client"] == address
    assert peer not in peers(world)


def test_taking_up_asks_for_the_life_that_the_successor_wants(world: World, tmp_path: Path) -> None:
    peer = handed_over(world, tmp_path / "state", ttl="2m")
    with world.agent(
        state_dir=tmp_path / "state", token=None, backend="none", ttl="10m"
    ) as successor:
        assert successor.peer_id == peer
        assert 540 < successor.remaining <= 600
        successor.renew()
        assert 540 < successor.remaining <= 600


def test_identity_that_was_revoked_is_not_replaced_without_a_token(
    world: World, tmp_path: Path
) -> None:
    peer = handed_over(world, tmp_path / "state")
    world.fabric.request("DELETE", f"/api/v1/peers/{peer}")
    before = set(peers(world))
    with pytest.raises(IdentityExpired, match=peer):
        world.agent(state_dir=tmp_path / "state", token=None, backend="none").open()
    assert set(peers(world)) <= before
    saved = StateDir(tmp_path / "state").load()
    assert saved is not None
    assert saved.peer_id == peer


def test_without_a_saved_identity_a_token_is_needed(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        world.agent(state_dir=tmp_path / "state", token=None).open()
    assert raised.value.code == "missing_token"


def test_identity_of_other_terms_is_not_taken_up(world: World, tmp_path: Path) -> None:
    peer = handed_over(world, tmp_path / "state")
    with pytest.raises(ConfigurationError) as raised:
        world.agent(state_dir=tmp_path / "state", token=None, agent_name="another").open()
    assert raised.value.code == "missing_token"
    world.fabric.request("DELETE", f"/api/v1/peers/{peer}")


def test_identity_without_a_state_directory_cannot_be_left_alive(world: World) -> None:
    with world.agent(backend="none") as agent:
        with pytest.raises(ConfigurationError, match="state_dir"):
            agent.detach()
        assert agent.state == "active"
    with pytest.raises(IdentityClosed):
        agent.detach()


def test_private_key_stays_the_same_over_the_handover(world: World, tmp_path: Path) -> None:
    peer = handed_over(world, tmp_path / "state")
    state = StateDir(tmp_path / "state")
    saved = state.load()
    state.release()
    assert saved is not None
    assert from_private(saved.private_key).public == peers(world)[peer]["publicKey"]
    with LatticeAgent(
        server=world.fabric.url,
        agent_name="code-executor",
        state_dir=tmp_path / "state",
        backend="none",
    ):
        assert from_private(saved.private_key).public == peers(world)[peer]["publicKey"]


class NoTunnelNow:
    """A plugin whose tunnels do not come up."""

    @hookimpl
    def lattice_tunnel_backends(self) -> list[TunnelBackend]:
        class Failing(TunnelBackend):
            name = "failing"

            def unavailable(self) -> str | None:
                return None

            async def open(self, spec: TunnelSpec) -> Tunnel:
                raise OSError("the gateway is away")

        return [Failing()]


def test_tunnel_that_fails_does_not_end_an_identity_that_was_taken_up(
    world: World, tmp_path: Path
) -> None:
    peer = handed_over(world, tmp_path / "state")
    plugin = NoTunnelNow()
    manager().register(plugin)
    try:
        with pytest.raises(TunnelFailed):
            world.agent(state_dir=tmp_path / "state", token=None, backend="failing").open()
    finally:
        manager().unregister(plugin)
    assert peer in peers(world)
    with world.agent(state_dir=tmp_path / "state", token=None, backend="none") as agent:
        assert agent.peer_id == peer

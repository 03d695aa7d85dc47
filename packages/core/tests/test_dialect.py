"""The SDK against a server that speaks the second dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lattice_sdk import LatticeAgent
from lattice_sdk.errors import ConfigurationError, NotPermitted, TunnelFailed
from support.dialect import OTHER_NAMES, TOKEN, DialectServer
from support.waiting import wait_for


@pytest.fixture
def server() -> Iterator[DialectServer]:
    with DialectServer() as server:
        yield server


def agent(server: DialectServer, **settings: Any) -> LatticeAgent:
    return LatticeAgent(
        **{
            "server": server.url,
            "token": TOKEN,
            "agent_name": "worker",
            "workspace_id": "ws",
            "backend": "none",
            **settings,
        }
    )


@pytest.mark.parametrize("tells_expiry", [True, False])
def test_identity_is_enrolled_and_deleted(server: DialectServer, tells_expiry: bool) -> None:
    server.tells_expiry = tells_expiry
    with agent(server, ttl="10m") as living:
        assert living.peer_id in server.live
        assert 590 < living.remaining <= 601
        assert server.enrolled[0]["ttlSeconds"] == 600
        assert server.enrolled[0]["agentType"] == "worker"
    assert server.live == {}


def test_without_renewal_it_enrolls_anew_under_a_new_name(server: DialectServer) -> None:
    server.tells_expiry = False
    with agent(server, ttl="12s") as living:
        first = living.peer_id
        wait_for("its successor", lambda: first in server.deleted)
        wait_for("it alone to live", lambda: list(server.live) == [living.peer_id])
        assert living.peer_id != first
        assert living.state in ("active", "renewing")
    assert server.live == {}
    assert len({body["agentName"] for body in server.enrolled}) == len(server.enrolled)


@pytest.mark.parametrize("names", [{}, OTHER_NAMES], ids=["usual names", "other names"])
def test_what_is_told_is_taken_under_either_name(
    server: DialectServer, names: dict[str, str]
) -> None:
    server.names = names
    server.told = {"overlayIP": "10.96.2.5/32", "enrollmentToken": "lt-of-the-agent"}
    with agent(server) as living:
        assert (living.peer_id, living.overlay_ip) == ("worker", "10.96.2.5")
        assert living._identity().enrollment_token.get_secret_value() == "lt-of-the-agent"
    assert server.live == {}


@pytest.mark.parametrize("names", [{}, OTHER_NAMES], ids=["usual names", "other names"])
def test_server_that_takes_the_first_words_is_not_asked_again(
    server: DialectServer, names: dict[str, str]
) -> None:
    """Or what it made of them lives on and nobody knows of it."""
    server.names = names
    with agent(server, agent_type="worker") as living:
        assert list(server.live) == [living.peer_id]
    assert (server.live, len(server.enrolled)) == ({}, 1)


@pytest.mark.parametrize("isolation", [None, "proxy", "required"])
def test_without_a_config_nothing_stands_in_for_the_tunnel(
    server: DialectServer, isolation: str | None
) -> None:
    """Who wants an identity without a network says so; everybody else is told how, and has none."""
    with pytest.raises(TunnelFailed, match="no WireGuard config") as failure:
        agent(server, backend=None, isolation=isolation).open()
    assert "backend='none'" in failure.value.hint
    assert len(server.enrolled) == len(server.deleted) == 1


def test_refusal_has_its_reason_from_msg(server: DialectServer) -> None:
    with pytest.raises(NotPermitted, match="not allowed to enroll agents"):
        agent(server, token="lt-other").open()
    assert server.live == {}


def test_workspace_that_is_missing_is_said_to_be(server: DialectServer) -> None:
    with pytest.raises(ConfigurationError, match="workspace"):
        agent(server, workspace_id=None).open()

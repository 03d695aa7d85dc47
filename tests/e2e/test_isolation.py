"""Where programs get no namespace: because none was asked for, or the machine forbids it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from conftest import World
from lattice_sdk import (
    BackendUnavailable,
    ConfigurationError,
)
from lattice_sdk.backends import Choice, choose
from lattice_sdk.backends.interface import Interface
from lattice_sdk.backends.netns import Netns
from lattice_sdk.backends.none import NoTunnel
from lattice_sdk.backends.userspace import Userspace
from lattice_sdk.sandbox import machine
from support.wrapped import GRANTED, curl


def test_proxy_is_what_programs_get_without_a_namespace(world: World) -> None:
    with world.agent(isolation="proxy") as agent:
        assert (agent.backend, agent.isolation) == ("userspace", "proxy")
        done = agent.run(curl(GRANTED), capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["client"] == agent.overlay_ip
        line = agent.wrap(curl(GRANTED))
        secret = agent.proxy_env()["HTTP_PROXY"].split("@")[0].rpartition(":")[2]
        assert secret not in " ".join(line)
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["client"] == agent.overlay_ip
        with pytest.raises(FileNotFoundError):
            agent.run(["no-such-program"])


def test_config_alone_is_no_network_for_programs(world: World) -> None:
    with world.agent(backend="none") as agent:
        assert agent.isolation == "none"
        with pytest.raises(BackendUnavailable):
            agent.run(["true"])


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine that forbids namespaces."""
    why = "user.max_user_namespaces is 0: sysctl -w user.max_user_namespaces=10000"
    monkeypatch.setattr(machine, "forbids", lambda: why)
    return why


def test_required_isolation_fails_where_it_cannot_be(world: World, forbidden: str) -> None:
    with pytest.raises(BackendUnavailable) as failure:
        world.agent(isolation="required").open()
    assert forbidden in str(failure.value)
    assert "doctor" in str(failure.value)


@pytest.mark.parametrize("settings", [{}, {"isolation": "preferred"}])
def test_preferred_isolation_falls_back_with_a_warning(
    world: World, forbidden: str, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    """Also where nobody said that it is preferred."""
    with world.agent(**settings) as agent:
        assert agent.isolation == "proxy"
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert any("are not isolated" in one and forbidden in one for one in warnings)


def test_proxy_that_was_asked_for_gives_no_warning(
    world: World, forbidden: str, caplog: pytest.LogCaptureFixture
) -> None:
    with world.agent(isolation="proxy"):
        pass
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


@pytest.mark.parametrize("when", ["while preparing", "while opening"])
def test_backend_that_turns_out_not_to_work_is_passed_over(
    world: World,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once in a life: the same refusal later is a failure."""

    async def refuse(*_: object) -> Any:
        raise BackendUnavailable("the keeper says no", code="userns_forbidden")

    monkeypatch.setattr(Netns, "prepare" if when == "while preparing" else "open", refuse)
    with world.agent() as agent:
        assert agent.isolation == "proxy"
        assert "the keeper says no" in agent._life.backend_reason
    assert "the keeper says no" in caplog.text
    with pytest.raises(BackendUnavailable, match="the keeper says no"):
        world.agent(isolation="required").open()
    with pytest.raises(BackendUnavailable, match="the keeper says no"):
        world.agent(backend="netns").open()


def test_doubts_about_the_machine_are_resolved_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container each agent would else wait for an attempt."""
    asked = []

    def doubts() -> str:
        asked.append(1)
        return "this container forbids it"

    monkeypatch.setattr(machine, "doubts", doubts)
    with world.agent(agent_name="one") as one, world.agent(agent_name="two") as two:
        assert (one.isolation, two.isolation) == ("proxy", "proxy")
        assert "this container forbids it" in two._life.backend_reason
    assert len(asked) == 1


def test_isolation_comes_from_the_environment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_ISOLATION", "required")
    with world.agent() as agent:
        assert agent.isolation == "namespace"
    monkeypatch.setenv("LATTICE_ISOLATION", "total")
    with pytest.raises(ConfigurationError, match="isolation"):
        world.agent()


def picked(choice: Choice) -> list[str]:
    return [backend.name for backend in choice.backends]


def test_choice_of_backends() -> None:
    offered = [Netns(), Userspace(), Interface(), NoTunnel()]
    assert picked(choose(offered, None)) == ["netns", "userspace"]
    assert picked(choose(offered, None, "required")) == ["netns"]
    assert picked(choose(offered, None, "proxy")) == ["userspace"]
    assert picked(choose(offered, "none")) == ["none"]
    for name in ("userspace", "none"):
        with pytest.raises(ConfigurationError, match="isolation='required'"):
            choose(offered, name, "required")
    with pytest.raises(ConfigurationError, match="isolation='proxy'"):
        choose(offered, "netns", "proxy")
    with pytest.raises(BackendUnavailable, match="Known here: interface, netns"):
        choose(offered, "wormhole")


def test_machine_of_the_tests_can_isolate() -> None:
    assert machine.forbids() is None
    assert machine.attempt() is None


def test_attempt_says_what_is_in_the_way() -> None:
    if os.getuid() != 0:
        pytest.skip("changes the machine's mounts")
    code = "from lattice_sdk.sandbox import machine; print(machine.doubts())"
    script = f'mount -t tmpfs tmpfs /proc/bus && exec "{sys.executable}" -c "{code}"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, check=True
    )
    assert "/proc/bus hides a part of /proc" in done.stdout

"""The contract suite: the eight invariants that every adapter holds.

::

    from lattice_sdk.testing.contract import AdapterContract

    class TestMyFramework(AdapterContract):
        adapter = MyAdapter

with ``pytest_plugins = ["lattice_sdk.testing.plugin"]`` in ``conftest.py``. Tests of a capability
that the adapter does not declare are not collected.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import pytest

from lattice_sdk.agent import LatticeAgent
from lattice_sdk.errors import (
    AuthenticationFailed,
    IdentityExpired,
    InvalidRequest,
    LatticeError,
    NotPermitted,
    Refused,
    ServerUnreachable,
)
from lattice_sdk.testing import base
from lattice_sdk.testing.adapter import Capability
from lattice_sdk.testing.base import Seen, WorkError, invariant, look, needs, wait_for
from lattice_sdk.testing.exits import ExitContract
from lattice_sdk.testing.gate import Gate
from lattice_sdk.testing.leftovers import descendants
from lattice_sdk.testing.program import GRANTED_URL
from lattice_sdk.testing.running import arguments, environment
from lattice_sdk.testing.world import World

__all__ = ["AdapterContract"]

T = TypeVar("T")
SHORT_TTL = "8s"  # half of it is for a renewal on a busy machine
CUT_SLACK = 3.0  # seconds; the stated bound is 0.25 around expiry, here with ample slack
REFUSED_WITHIN = 15.0  # seconds; without a refusal TCP tries for minutes


class AdapterContract(ExitContract):
    """Subclass it with ``adapter``; see the module."""

    # Of lives that are waited for; longer where entering takes longer than in a process.
    short_ttl: ClassVar[str] = SHORT_TTL
    expiring_ttl: ClassVar[str] = SHORT_TTL
    # What a refusal says: the preset, where anything but the kernel can tell.
    refusal: ClassVar[str] = "sandboxed"

    # 1. Entering gives a live identity, whose address a granted service sees.

    @invariant(1)
    def test_granted_service_sees_the_enrolled_address(self, lattice_world: World) -> None:
        """Traffic leaves by the tunnel, from the address that was enrolled."""
        seen = self._run(lattice_world, lambda agent: look(lattice_world, agent))
        assert seen.client == seen.address
        assert seen.known, "control plane and gateway do not have the peer while it works"

    @invariant(1)
    @needs(Capability.ASYNC)
    def test_async_run_is_an_identity_as_well(self, lattice_world: World) -> None:
        """The async face does the same."""

        async def work(agent: LatticeAgent) -> Seen:
            async with agent.async_http_client(timeout=base.PATIENCE) as http:
                answer = await http.get(GRANTED_URL)
            self._leftovers.note()
            known = await asyncio.to_thread(lattice_world.knows, agent.peer_id)
            client = str(answer.raise_for_status().json()["client"])
            return Seen(agent.peer_id, agent.overlay_ip, client, agent.engine_pid or 0, known)

        seen = asyncio.run(self.adapter().arun(lattice_world.settings(), work))
        assert seen.client == seen.address
        assert seen.known
        self._nothing_left(lattice_world, seen)

    # 2. Anything not granted does not connect.

    @invariant(2)
    @pytest.mark.parametrize(
        "target", ["undesignated", "other agent", "other port", "gateway", "metadata", "name"]
    )
    def test_what_is_not_granted_is_refused_at_once(
        self, lattice_world: World, target: str
    ) -> None:
        """The refusal names the preset (or, see ``refusal``, says that it is one)."""

        def work(agent: LatticeAgent) -> tuple[str, float]:
            with contextlib.ExitStack() as stack:
                host, port = "attacker.example", 443
                if target == "undesignated":
                    host, port = lattice_world.addresses["payroll"], 80
                elif target == "other agent":
                    other = stack.enter_context(LatticeAgent(**lattice_world.settings()))
                    host, port = other.overlay_ip, 80
                elif target == "other port":
                    host, port = lattice_world.addresses["github-tools"], 81
                elif target == "gateway":
                    host, port = ".".join([*agent.overlay_ip.split(".")[:2], "0", "1"]), 80
                elif target == "metadata":
                    host, port = "169.254.169.254", 80
                started = time.monotonic()
                try:
                    agent.connect(host, port).close()
                except Refused as refusal:
                    return str(refusal), time.monotonic() - started
                return "", 0.0

        refusal, took = self._run(lattice_world, work)
        assert refusal, f"{target} can be reached"
        assert self.refusal in refusal
        assert took < REFUSED_WITHIN

    @invariant(2)
    def test_refusals_are_on_record(self, lattice_world: World) -> None:
        """The gateway's evidence names the agent and where it wanted to."""
        payroll = lattice_world.addresses["payroll"]

        def work(agent: LatticeAgent) -> str:
            with contextlib.suppress(Refused):
                agent.connect(payroll, 80).close()
            return agent.peer_id

        peer = self._run(lattice_world, work)
        path = f"/api/v1/events?type=denied&peerId={peer}"

        def recorded() -> bool:
            events = lattice_world.request("GET", path)["items"]
            return any(event["data"].get("destination") == payroll for event in events)

        wait_for("the denied flow to be in the event log", recorded)

    # 3. After leaving, by whatever road, nothing is left: in exits.py.

    # 4. Longer than the TTL is no problem; without renewals the network ends at expiry.

    @invariant(4)
    def test_work_longer_than_its_ttl_keeps_its_identity(self, lattice_world: World) -> None:
        """Renewals need no help of the work's."""

        def work(agent: LatticeAgent) -> tuple[Seen, Seen]:
            expiries, began = {agent.expires_at}, look(lattice_world, agent)

            def renewed() -> bool:
                expiries.add(agent.expires_at)
                return len(expiries) > 2

            wait_for("two renewals", renewed)
            return began, look(lattice_world, agent)

        began, ended = self._run(lattice_world, work, ttl=self.short_ttl)
        assert ended == began

    @invariant(4)
    def test_failed_renewals_end_the_network_at_expiry(self, lattice_world: World) -> None:
        """Not later, and the agent learns why."""

        def work(agent: LatticeAgent) -> tuple[float, str]:
            gate.close()
            # The answer to a renewal may have come through just before.
            wait_for("no renewal to be under way", lambda: agent.state == "active")
            expiry = time.monotonic() + agent.remaining
            stream = agent.connect("github-tools.lattice", 80)
            with stream:
                stream.settimeout(base.PATIENCE)
                stream.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
                last = time.monotonic()
                with contextlib.suppress(OSError):
                    while stream.recv(65536):
                        last = time.monotonic()
            wait_for("the identity to expire", lambda: agent.state == "expired")
            try:
                agent.connect("github-tools.lattice", 80).close()
            except IdentityExpired as error:
                return last - expiry, str(error)
            return last - expiry, ""

        with Gate(lattice_world.server) as gate:
            after, why = self._run(lattice_world, work, server=gate.url, ttl=self.expiring_ttl)
        assert after < CUT_SLACK, f"the network was there for {after:.2f} s beyond expiry"
        assert after > -CUT_SLACK, f"the network ended {-after:.2f} s before expiry"
        assert "peer-" in why, "the use of an expired identity was not refused"

    # 5. Enrollment that fails leaves nothing and says what to do.

    @invariant(5)
    @pytest.mark.parametrize(
        ("changes", "kind"),
        [
            ({"token": "lt-wrong"}, AuthenticationFailed),
            ({"server": "http://127.0.0.1:9", "timeout": 3}, ServerUnreachable),
            ({"policy_preset": "omnipotent"}, (InvalidRequest, NotPermitted)),
        ],
        ids=["token", "server", "preset"],
    )
    def test_failed_enrollment_says_what_to_do(
        self, lattice_world: World, changes: dict[str, Any], kind: type[LatticeError]
    ) -> None:
        """The framework does not run, and the caller gets the error as it is."""
        peers, called = lattice_world.peers(), []
        with pytest.raises(kind) as failure:
            self._run(lattice_world, lambda _: called.append(True), **changes)
        assert failure.value.hint
        assert lattice_world.token not in str(failure.value)
        assert not called
        assert lattice_world.peers() <= peers
        self._nothing_left_here()

    # 6. Two agents in one process are two identities.

    @invariant(6)
    def test_two_agents_are_two_identities(self, lattice_world: World) -> None:
        """At the same time, each with its own address; credentials are not exchangeable."""
        import httpx

        meeting = threading.Barrier(2)
        seen: dict[int, tuple[Seen, str]] = {}
        failures: list[BaseException] = []

        def work_of(number: int) -> Callable[[LatticeAgent], None]:
            def work(agent: LatticeAgent) -> None:
                meeting.wait(base.PATIENCE)
                seen[number] = look(lattice_world, agent), agent.proxy_env()["HTTP_PROXY"]
                meeting.wait(base.PATIENCE)
                mine, other = (httpx.URL(seen[who][1]) for who in (number, 1 - number))
                stolen = str(mine.copy_with(userinfo=other.userinfo))
                with httpx.Client(proxy=stolen, timeout=base.PATIENCE) as http:
                    assert http.get(GRANTED_URL).status_code == 407
                meeting.wait(base.PATIENCE)

            return work

        def run(number: int) -> None:
            try:
                self._run(lattice_world, work_of(number))
            except BaseException as error:
                failures.append(error)
                meeting.abort()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        one, two = seen[0][0], seen[1][0]
        assert one.client == one.address != two.address == two.client
        assert one.peer != two.peer
        assert one.engine == two.engine, "one engine serves all agents of a process"

    # 7. Nothing secret is printed.

    @invariant(7)
    def test_nothing_secret_is_printed(self, lattice_world: World) -> None:
        """Not in output, logs, arguments or the environment of what is started."""
        with self._program(lattice_world, "fail") as program:
            program.line()
            secrets = [lattice_world.token, *json.loads(program.secrets.read_text())]
            assert len(secrets) == 4
            children = descendants(program.process.pid)
            assert children, "there is no engine to look at"
            public = arguments(program.process.pid)
            public += "".join(arguments(pid) + environment(pid) for pid in children)
            output, errors = program.process.communicate("\n", timeout=base.PATIENCE)
        told = public + program.told + output + errors
        assert "fails" in told, "the work's failure was swallowed"
        assert not [secret for secret in secrets if secret and secret in told]

    # 8. The framework is as it was.

    @invariant(8)
    def test_result_is_the_frameworks_own(self, lattice_world: World) -> None:
        """The same result, of the same type, as without Lattice."""
        result = {"answer": 42, "parts": ["a", "b"]}
        bare = self.adapter().plain(lambda: result)
        under = self._run(lattice_world, lambda _: result)
        assert under == bare
        assert type(under) is type(bare)

    @invariant(8)
    @needs(Capability.EXCEPTIONS)
    def test_exception_is_the_frameworks_own(self, lattice_world: World) -> None:
        """The same exception as without Lattice."""

        def work() -> None:
            raise WorkError("on purpose")

        with pytest.raises(WorkError) as bare:
            self.adapter().plain(work)
        with pytest.raises(WorkError) as under:
            self._run(lattice_world, lambda _: work())
        assert under.value.args == bare.value.args
        assert type(under.value) is type(bare.value)

"""One caller wants everything: connections, requests, enrollments, attempts. Others get through."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from lattice_server.connections import allow_files
from support.tenants import Api, Tenant, two_tenants
from support.waiting import wait_for

GATEWAY_WAIT = 20.0  # seconds that an enrollment may wait for its gateway, as these fabrics are set
# An honest tenant is served while another floods: no bound of the product's, but far from starving.
PATIENCE = 45.0


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Tenant, Tenant]]:
    """A fabric with the limits that it has by default."""
    with two_tenants(tmp_path_factory.mktemp("floods"), gateway_wait=GATEWAY_WAIT) as made:
        yield made


def works(api: Api, tenant: Tenant, times: int = 5) -> None:
    """The tenant enrolls, renews and deletes."""
    for _ in range(times):
        began = time.monotonic()
        one = api.enrolled(tenant.token["token"], "honest")
        path = f"/api/v1/peers/{one['peerId']}"
        assert api.call("POST", f"{path}/renew", one["enrollmentToken"]).status_code == 200
        assert api.call("DELETE", path, one["enrollmentToken"]).status_code == 204
        assert time.monotonic() - began < PATIENCE


def test_flood_of_enrollments_of_one_token_does_not_starve_another(
    flooded: tuple[Api, Tenant, Tenant],
) -> None:
    api, ours, theirs = flooded
    stop = threading.Event()
    statuses: list[int] = []

    def flood() -> None:
        with httpx.Client(base_url=api.fabric.url, timeout=60, trust_env=False) as http:
            headers = {"Authorization": f"Bearer {theirs.token['token']}"}
            body = {"agentName": "flood", "ttl": "5s"}
            while not stop.is_set():
                answer = http.post("/api/v1/agent-enroll", json=body, headers=headers)
                statuses.append(answer.status_code)

    with ThreadPoolExecutor(40) as pool:
        floods = [pool.submit(flood) for _ in range(40)]
        try:
            wait_for("the flood", lambda: len(statuses) > 80, timeout=120)
            works(api, ours)
        finally:
            stop.set()
        for one in floods:
            one.result()
    assert set(statuses) <= {201, 429, 503}


def test_slowloris_keeps_nobody_out(flooded: tuple[Api, Tenant, Tenant]) -> None:
    api, ours, _ = flooded
    where = urlsplit(api.fabric.url)
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        slow = []
        for number in range(400):
            client = stack.enter_context(
                socket.create_connection((where.hostname or "", where.port or 0), timeout=20)
            )
            client.sendall(
                b"POST /api/v1/agent-enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                + (b"\r\n{" if number % 2 else b"")
            )
            slow.append(client)

        def dribble() -> None:
            while not stop.wait(0.2):
                for client in slow:
                    with contextlib.suppress(OSError):
                        client.send(b" " if slow.index(client) % 2 else b"X-A: b\r\n")

        thread = threading.Thread(target=dribble, daemon=True)
        thread.start()
        try:
            works(api, ours)
            # Those without whole headers are cut off after ten seconds, however they dribble.
            headers = [client for number, client in enumerate(slow) if number % 2 == 0]
            wait_for("the end of the slow", lambda: all(map(ended, headers)), timeout=40)
        finally:
            stop.set()
            thread.join(10)


def ended(client: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_guesses_do_not_lock_out_who_has_a_token(flooded: tuple[Api, Tenant, Tenant]) -> None:
    api, ours, _ = flooded
    works(api, ours, 1)

    def guess(number: int) -> int:
        return api.call("GET", "/api/v1/peers", f"lt-w{number:043d}").status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(guess, range(400)))
    assert set(statuses) <= {401, 429}
    assert statuses.count(429) > 200
    works(api, ours, 2)


def test_identity_that_renews_without_pause_keeps_nobody_out(
    flooded: tuple[Api, Tenant, Tenant],
) -> None:
    api, ours, theirs = flooded
    one = api.enrolled(theirs.token["token"], "busy")
    stop = threading.Event()

    def busy() -> None:
        path = f"/api/v1/peers/{one['peerId']}/renew"
        while not stop.is_set():
            api.call("POST", path, one["enrollmentToken"])

    with ThreadPoolExecutor(16) as pool:
        for _ in range(16):
            pool.submit(busy)
        try:
            works(api, ours)
        finally:
            stop.set()


def test_agent_that_delegates_without_end_is_stopped(
    flooded: tuple[Api, Tenant, Tenant],
) -> None:
    api, ours, theirs = flooded
    one = api.enrolled(theirs.token["token"], "breeder")
    path = f"/api/v1/agents/{one['peerId']}/delegate"

    def delegate(number: int) -> Any:
        body = {"subAgentName": f"x{number}", "ttl": "1m"}
        return api.call("POST", path, one["enrollmentToken"], json=body)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(delegate, range(100)))
    assert sum(answer.status_code == 201 for answer in answers) == 64
    codes = {answer.json()["code"] for answer in answers if answer.is_error}
    assert codes == {"delegation_not_permitted"}
    works(api, ours, 1)


def test_large_bodies_of_strangers_do_not_fill_the_memory(
    flooded: tuple[Api, Tenant, Tenant],
) -> None:
    """Without any token: a gigabyte in a hundred requests, none of which is kept."""
    api, ours, _ = flooded
    pid = api.fabric.server_pid
    assert pid is not None

    def resident() -> int:
        with open(f"/proc/{pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) // 1024

    before = resident()

    def send(_: int) -> int:
        with httpx.Client(base_url=api.fabric.url, timeout=60, trust_env=False) as http:
            try:
                return http.post("/api/v1/workspaces", content=b"x" * 10_000_000).status_code
            except httpx.HTTPError:
                return 0  # it was cut off while it still sent

    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(send, range(100)))
    assert statuses <= {0, 413, 503}
    assert resident() - before < 200, "MiB"
    works(api, ours, 1)


def test_bodies_that_one_address_holds_back_keep_nobody_out(
    flooded: tuple[Api, Tenant, Tenant],
) -> None:
    """Without any token: as many bodies as there may be connections, each a byte short."""
    api, ours, _ = flooded
    with holding_back(api, ["127.0.0.2"] * 200):
        works(api, ours)
        # Not its neighbours behind the same address either.
        neighbour = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=neighbour, base_url=api.fabric.url, timeout=60) as http:
            headers = {"Authorization": f"Bearer {ours.token['token']}"}
            enrolled = http.post("/api/v1/agent-enroll", json={"agentName": "x"}, headers=headers)
            assert enrolled.status_code == 201, enrolled.text


def test_bodies_that_many_addresses_hold_back_keep_nobody_out(
    flooded: tuple[Api, Tenant, Tenant],
) -> None:
    """As much from each as one may hold, and more of them than the server holds in all."""
    api, ours, _ = flooded
    with holding_back(api, [f"127.0.1.{number}" for number in range(1, 31) for _ in range(7)]):
        works(api, ours)


@contextlib.contextmanager
def holding_back(api: Api, sources: list[str]) -> Iterator[None]:
    """Send bodies less their last byte from these addresses, and hold them.

    First a large one from each, then smaller and smaller ones, into every gap that is left.
    """
    where = urlsplit(api.fabric.url)
    allow_files(4096)  # an ordinary user's processes begin with 1,024
    head = b"POST /api/v1/workspaces HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"

    def send(source: str, size: int) -> socket.socket:
        to = (where.hostname or "", where.port or 0)
        client = socket.create_connection(to, 20, (source, 0))
        with contextlib.suppress(OSError):  # it may be told to go before it has sent it all
            client.sendall(head % (size + 1) + b"[" + b" " * (size - 1))
        return client

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        for size in (1024 * 1024 - 1, 60_000, 4000, 500, 64):
            for client in pool.map(send, sources, [size] * len(sources)):
                stack.enter_context(client)
            time.sleep(1)  # until what was refused of these has left its gap
        yield

"""Whole pods of injected Jobs in mode interface: the tunnel is all the network that they have."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from lattice_k8s_job.layout import Mode, Sidecar
from lattice_sdk.testing.gate import Gate
from lattice_sdk.testing.world import World
from support.escaping import ESCAPES, arguments, neighbour, try_to_escape
from support.jobs import (
    GONE_WITHIN,
    GRANTED,
    clients,
    fail_and_leave_nothing,
    job,
    peer_of,
    peers_of,
    watched,
)
from support.node import NODE_IP, Node, wait_for
from support.pods import Pod

pytestmark = [pytest.mark.pods, pytest.mark.slow, pytest.mark.timeout(240, func_only=True)]


def locked(node: Node, world: World, **settings: Any) -> Pod:
    options = {"mode": Mode.INTERFACE, **settings.pop("options", {})}
    return job(node, world, options=options, **settings)


def working(node: Node, world: World, **settings: Any) -> Pod:
    """A pod whose agent works until somebody ends it."""
    return locked(node, world, VISIT=GRANTED, SECONDS="600", PAUSE="0.2", **settings)


def test_root_agent_without_capabilities_does_not_get_past_the_tunnel(
    node: Node, fabric: World
) -> None:
    proxied = job(node, fabric, VISIT=GRANTED, SECONDS="600", PAUSE="0.2")
    with working(node, fabric) as pod, proxied, neighbour() as ports:
        proxied.start()
        pod.start()
        wait_for("a first visit", lambda: clients(pod), 60)
        # Without the lock, and with the capabilities that containers usually have, they succeed.
        open_pod = try_to_escape(proxied, ports, pod)
        possible = {name for name, told in open_pod.items() if told == "True"}
        assert possible >= {
            "TCP to the node", "UDP to the node", "TCP bound to eth0", "the group",
        }, open_pod  # fmt: skip
        found = try_to_escape(pod, ports, proxied)
        assert not [name for name, told in found.items() if told == "True"], found
        assert found["TCP to the node"] == found["TCP bound to eth0"] == "Connection refused"
        for name in ("the rules", "the interface", "the group", "TCP with a mark", "raw socket"):
            assert found[name] == "Operation not permitted", found
        status = Path(f"/proc/{pod.pid('agent')}/status").read_text()
        assert "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        # And it still has what it was granted.
        count = len(clients(pod))
        wait_for("visits after all", lambda: len(clients(pod)) > count, 30)
        # What was tried on rules and interface does what it is meant to, for who may do it.
        network = ["nsenter", "-t", str(pod.infra_pid), "-n"]
        node_admin = subprocess.run(
            [*network, sys.executable, "-c", ESCAPES, *arguments(ports, proxied)],
            capture_output=True,
            text=True,
            check=True,
        )
        able = json.loads(node_admin.stdout)
        assert able["the rules"] == able["the interface"] == "True", able
        for one in (pod, proxied):
            one.delete(grace=1)


def test_agent_reaches_its_service_and_nothing_else_and_its_job_completes(
    node: Node, fabric: World
) -> None:
    refused = [
        f"http://{fabric.addresses['payroll']}/",
        f"http://{fabric.addresses['github-tools']}:81/",
        f"{fabric.server}/healthz",
        "http://169.254.169.254/latest/meta-data/",
    ]
    unknown = "http://attacker.example/"
    with locked(node, fabric, VISIT=" ".join([GRANTED, *refused, unknown])) as pod:
        pod.start()
        peer = peer_of(fabric, pod)
        assert pod.environment("agent").keys().isdisjoint({"HTTP_PROXY", "http_proxy"})
        with watched(fabric, peer["peerId"]) as watch:
            assert pod.wait() == "Succeeded"
            watch.expect_gone(pod.ended_at("agent"), "the agent's end")
        assert pod.status("lattice-sidecar") == 0
        assert [f"{address}/32" for address in clients(pod)] == [peer["overlayIP"]]
        told = {one["url"]: one for one in pod.told()}
        for url in refused:
            assert "refused" in told[url]["error"] or "unreachable" in told[url]["error"], told
        assert "error" in told[unknown], told


def test_job_longer_than_its_ttl_keeps_its_identity_also_while_the_control_plane_is_away(
    node: Node, fabric: World
) -> None:
    with Gate(fabric.server) as gate:
        settings = {"VISIT": GRANTED, "SECONDS": "27", "PAUSE": "0.5"}
        with locked(node, fabric, server=gate.url, options={"ttl": "12s"}, **settings) as pod:
            pod.start()
            peer = peer_of(fabric, pod)
            wait_for("a first visit", lambda: clients(pod), 60)
            gate.close()
            before = peer_of(fabric, pod)["renewals"]
            wait_for(
                "a renewal to fail", lambda: "was not renewed" in pod.logs("lattice-sidecar"), 20
            )
            gate.open()
            wait_for("renewals", lambda: peer_of(fabric, pod)["renewals"] > before + 1, 30)
            assert pod.wait() == "Succeeded"
            assert not [told for told in pod.told() if told.get("status") != 200]
            assert {f"{address}/32" for address in clients(pod)} == {peer["overlayIP"]}


def test_killed_sidecar_comes_back_and_meanwhile_there_is_no_network(
    node: Node, fabric: World
) -> None:
    options = {"ttl": "20s"}
    with working(node, fabric, options=options) as pod, neighbour() as (port, _):
        pod.start()
        peer = peer_of(fabric, pod)
        wait_for("a first visit", lambda: clients(pod), 60)
        pod.kill("lattice-sidecar")
        assert reach(pod, port) == "Connection refused"
        wait_for("the sidecar to be restarted", lambda: pod.restarts == 1, 30)
        count = len(clients(pod))
        wait_for("visits by the same identity", lambda: len(clients(pod)) > count + 2, 30)
        renewals = peer_of(fabric, pod)["renewals"]
        wait_for("renewals", lambda: peer_of(fabric, pod)["renewals"] > renewals, 30)
        assert peer_of(fabric, pod)["peerId"] == peer["peerId"]
        assert {f"{address}/32" for address in clients(pod)} == {peer["overlayIP"]}
        with watched(fabric, peer["peerId"]) as watch:
            pod.delete(grace=1)
            watch.expect_gone(pod.asked["lattice-sidecar"], "the sidecar's SIGTERM")
        assert pod.status("lattice-sidecar") == 0


def test_failed_job_leaves_nothing(node: Node, fabric: World) -> None:
    with locked(node, fabric, VISIT=GRANTED, STATUS="3") as pod:
        fail_and_leave_nothing(fabric, pod)


def test_deleted_pod_leaves_nothing(node: Node, fabric: World) -> None:
    with working(node, fabric) as pod:
        pod.start()
        peer = peer_of(fabric, pod)["peerId"]
        wait_for("a first visit", lambda: clients(pod), 60)
        with watched(fabric, peer) as watch:
            pod.delete(grace=1)  # which this agent uses up: it does not heed SIGTERM
            watch.expect_gone(pod.asked["lattice-sidecar"], "the sidecar's SIGTERM")
        assert pod.status("lattice-sidecar") == 0


def test_evicted_pod_ends_with_its_lease(node: Node, fabric: World) -> None:
    with working(node, fabric, options={"ttl": "10s"}) as pod:
        pod.start()
        peer = peer_of(fabric, pod)["peerId"]
        wait_for("a first visit", lambda: clients(pod), 60)
        pod.evict()
        expires = datetime.fromisoformat(peer_of(fabric, pod)["expiresAt"]).timestamp()
        wait_for("the identity to end", lambda: not fabric.knows(peer), 20)
        late = time.time() - expires
        assert -1 < late < GONE_WITHIN, f"it ended {late:.2f} s after its lease"


def test_revoked_pods_network_ends_and_no_other_identity_takes_its_place(
    node: Node, fabric: World
) -> None:
    with working(node, fabric, options={"ttl": "20s"}) as pod:
        pod.start()
        peer = peer_of(fabric, pod)["peerId"]
        wait_for("a first visit", lambda: clients(pod), 60)
        fabric.request("DELETE", f"/api/v1/peers/{peer}")
        seen = len(clients(pod))
        answer = ended_for(pod, peer)
        assert answer["detail"]
        told = len(pod.told())
        wait_for("the agent to try again", lambda: len(pod.told()) > told + 2, 60)
        assert all("error" in one for one in pod.told()[told:]), pod.told()[told:]
        assert len(clients(pod)) <= seen + 1, "one may have been under way"
        assert pod.running("lattice-sidecar")
        assert peers_of(fabric, pod) == []
        pod.delete(grace=1)
        assert pod.status("lattice-sidecar") == 0


def test_sidecar_says_why_the_agents_network_has_ended(node: Node, fabric: World) -> None:
    with (
        Gate(fabric.server) as gate,
        neighbour() as (port, _),
        working(node, fabric, server=gate.url, options={"ttl": "10s"}) as pod,
    ):
        pod.start()
        peer = peer_of(fabric, pod)["peerId"]
        wait_for("a first visit", lambda: clients(pod), 60)
        gate.close()
        assert "its time is over" in ended_for(pod, peer)["detail"]
        told = len(pod.told())
        wait_for("the agent to try again", lambda: len(pod.told()) > told + 2, 60)
        assert all("error" in one for one in pod.told()[told:]), pod.told()[told:]
        # Also what the tunnel did not carry before stays shut.
        assert reach(pod, port) == "Connection refused"
        pod.delete(grace=1)
        assert pod.status("lattice-sidecar") == 0


def ended_for(pod: Pod, peer: str) -> dict[str, str]:
    """What the sidecar tells, by its probe and in its log, once the identity is over."""

    def over() -> dict[str, str] | None:
        answer = pod.probe("/readyz")
        told = answer.json() if answer is not None and answer.status_code == 503 else {}
        if told.get("state") != "expired":
            return None
        said = f"the identity is over ({told['detail']})"
        return told if said in pod.logs("lattice-sidecar") else None

    told = wait_for("the sidecar to tell the same by probe and log", over, 40)
    assert peer in pod.logs("lattice-sidecar")
    return told


def reach(pod: Pod, port: int) -> str:
    """What the agent's container is told when it goes to the node."""
    attempt = f"import socket; socket.create_connection(('{NODE_IP}', {port}), 2)"
    return pod.execute(
        "agent", "/usr/bin/python3", "-c",
        f"try:\n {attempt}\nexcept OSError as error: print(error.strerror)",
    ).strip()  # fmt: skip


SERVES = """
import sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
HTTPServer(("", int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()
""".strip()
SERVES_IN_BACKGROUND = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], "8081"])
"""


def test_probes_of_the_kubelet_and_named_networks_pass(node: Node, fabric: World) -> None:
    container = {
        "command": ["/usr/bin/python3", "-c", SERVES, "8080"],
        "ports": [{"name": "web", "containerPort": 8080}],
        "livenessProbe": {"httpGet": {"path": "/", "port": "web"}},
    }
    # Nodes of a real cluster are no part of the pods' network: here only the probed ports are open.
    with locked(node, fabric, container=container) as pod:
        pod.start()
        pod.execute("agent", "/usr/bin/python3", "-c", SERVES_IN_BACKGROUND, SERVES)
        answer = pod.probe("/healthz")
        assert answer is not None
        assert answer.status_code == 200
        wait_for("the agent to serve", lambda: reachable(pod, 8080))
        assert not reachable(pod, 8081)
        os.kill(pod.pid("agent"), 9)
        pod.delete(grace=1)
    settings = {"options": {"allow_networks": ("10.244.77.0/24",)}, "container": container}
    with locked(node, fabric, **settings) as pod, neighbour() as ports:
        pod.start()
        told = try_to_escape(pod, ports, pod)
        assert told["TCP to the node"] == told["UDP to the node"] == "True"
        os.kill(pod.pid("agent"), 9)
        pod.delete(grace=1)


def reachable(pod: Pod, port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://{pod.ip}:{port}/", timeout=3).status_code == 200
    return False


def test_ordinary_sidecar_locks_the_pod_as_well(node: Node, fabric: World) -> None:
    options = {"sidecar": Sidecar.CONTAINER}
    url = f"{fabric.server}/healthz"
    with locked(node, fabric, options=options, VISIT=f"{GRANTED} {url}") as pod:
        pod.start()
        assert pod.wait() == "Succeeded"
        assert pod.status("lattice-sidecar") == 0
        assert len(clients(pod)) == 1
        assert "refused" in {one["url"]: one for one in pod.told()}[url]["error"]
        assert peers_of(fabric, pod) == []


def test_ordinary_sidecar_of_a_failed_agent_leaves_nothing(node: Node, fabric: World) -> None:
    options = {"sidecar": Sidecar.CONTAINER}
    with locked(node, fabric, options=options, VISIT=GRANTED, STATUS="3") as pod:
        fail_and_leave_nothing(fabric, pod)


def test_killed_ordinary_sidecar_leaves_the_pod_without_a_network(
    node: Node, fabric: World
) -> None:
    # With restartPolicy Never nobody starts it again: the lease ends, and the lock stays.
    options = {"sidecar": Sidecar.CONTAINER, "ttl": "10s"}
    with working(node, fabric, options=options) as pod, neighbour() as (port, _):
        pod.start()
        peer = peer_of(fabric, pod)["peerId"]
        wait_for("a first visit", lambda: clients(pod), 60)
        pod.kill("lattice-sidecar")
        wait_for("the sidecar to end", lambda: not pod.running("lattice-sidecar"))
        seen = len(clients(pod))
        assert reach(pod, port) == "Connection refused"
        wait_for("the identity to end", lambda: not fabric.knows(peer), 20)
        assert reach(pod, port) == "Connection refused"
        assert len(clients(pod)) <= seen + 1, "one may have been under way"
        assert pod.running("agent")
        pod.delete(grace=1)

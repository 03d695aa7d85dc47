"""Whole pods of injected Jobs in mode proxy, whose agent is a LangGraph program as anybody's."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import pytest

from lattice_k8s_job.layout import Mode
from lattice_sdk import LatticeAgent
from lattice_sdk.testing.gate import Gate
from lattice_sdk.testing.world import World
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
from support.pods import InitError, Pod

pytestmark = [pytest.mark.pods, pytest.mark.slow, pytest.mark.timeout(240, func_only=True)]


def test_agent_reaches_its_service_and_nothing_else_and_its_job_completes(
    node: Node, fabric: World
) -> None:
    with LatticeAgent(**fabric.settings()) as other:
        refused = [
            f"http://{fabric.addresses['payroll']}/",
            f"http://{fabric.addresses['github-tools']}:81/",
            f"http://{other.overlay_ip}/",
            "http://169.254.169.254/latest/meta-data/",
            "http://attacker.example/",
            f"{fabric.server}/healthz",
        ]
        with job(node, fabric, VISIT=" ".join([GRANTED, *refused])) as pod:
            pod.start()
            peer = peer_of(fabric, pod)
            assert peer["agentType"] == "report"
            with watched(fabric, peer["peerId"]) as watch:
                assert pod.wait() == "Succeeded"
                watch.expect_gone(pod.ended_at("agent"), "the agent's end")
            # A sidecar that ends with anything else makes a finished Job a failed one.
            assert pod.status("lattice-sidecar") == 0
            assert [f"{address}/32" for address in clients(pod)] == [peer["overlayIP"]]
            told = {one["url"]: one for one in pod.told()}
            for url in refused:
                assert told[url].get("status") == 403, told[url]
                assert "sandboxed" in told[url]["answer"]


def test_job_longer_than_its_ttl_keeps_its_identity_also_while_the_control_plane_is_away(
    node: Node, fabric: World
) -> None:
    with Gate(fabric.server) as gate:
        settings = {"VISIT": GRANTED, "SECONDS": "27", "PAUSE": "0.5"}
        with job(node, fabric, server=gate.url, options={"ttl": "12s"}, **settings) as pod:
            pod.start()
            peer = peer_of(fabric, pod)
            wait_for("a first visit", lambda: clients(pod), 60)
            gate.close()
            before = peer_of(fabric, pod)["renewals"]
            wait_for(
                "a renewal to fail", lambda: "was not renewed" in pod.logs("lattice-sidecar"), 20
            )
            answer = pod.probe("/readyz")
            assert answer is not None
            assert answer.status_code == 200, "what was granted works until its end"
            gate.open()
            wait_for("renewals", lambda: peer_of(fabric, pod)["renewals"] > before + 1, 30)
            assert pod.wait() == "Succeeded"
            assert not [told for told in pod.told() if told.get("status") != 200]
            assert {f"{address}/32" for address in clients(pod)} == {peer["overlayIP"]}
            assert len(clients(pod)) > 10
            assert peers_of(fabric, pod) == []


def test_killed_sidecar_is_restarted_as_the_same_identity(node: Node, fabric: World) -> None:
    with working(node, fabric, ttl="20s") as pod:
        pod.start()
        peer = peer_of(fabric, pod)
        wait_for("a first visit", lambda: clients(pod), 60)
        pod.kill("lattice-sidecar")
        wait_for("the sidecar to be restarted", lambda: pod.restarts == 1, 30)
        count = len(clients(pod))
        wait_for("visits by the same identity", lambda: len(clients(pod)) > count + 2, 30)
        renewals = peer_of(fabric, pod)["renewals"]
        wait_for("renewals", lambda: peer_of(fabric, pod)["renewals"] > renewals, 30)
        assert peer_of(fabric, pod)["peerId"] == peer["peerId"]
        assert {f"{address}/32" for address in clients(pod)} == {peer["overlayIP"]}
        # And it is the one that is given back at the end.
        with watched(fabric, peer["peerId"]) as watch:
            pod.delete(grace=1)
            watch.expect_gone(pod.asked["lattice-sidecar"], "the sidecar's SIGTERM")


def working(node: Node, world: World, **options: str) -> Pod:
    """A pod whose agent works until somebody ends it."""
    return job(node, world, VISIT=GRANTED, SECONDS="600", PAUSE="0.2", options=options)


def test_failed_job_leaves_nothing(node: Node, fabric: World) -> None:
    with job(node, fabric, VISIT=GRANTED, STATUS="3") as pod:
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
    with working(node, fabric, ttl="10s") as pod:
        pod.start()
        peer = peer_of(fabric, pod)["peerId"]
        wait_for("a first visit", lambda: clients(pod), 60)
        pod.evict()
        expires = datetime.fromisoformat(peer_of(fabric, pod)["expiresAt"]).timestamp()
        wait_for("the identity to end", lambda: not fabric.knows(peer), 20)
        late = time.time() - expires
        assert -1 < late < GONE_WITHIN, f"it ended {late:.2f} s after its lease"


def test_agent_learns_why_its_network_has_ended(node: Node, fabric: World) -> None:
    with Gate(fabric.server) as gate:
        environment = {"VISIT": GRANTED, "SECONDS": "600", "PAUSE": "0.2"}
        with job(node, fabric, server=gate.url, options={"ttl": "10s"}, **environment) as pod:
            pod.start()
            peer = peer_of(fabric, pod)["peerId"]
            wait_for("a first visit", lambda: clients(pod), 60)
            gate.close()
            told = wait_for(
                "the agent to be told",
                lambda: [t for t in pod.told() if "its time is over" in t.get("answer", "")],
                60,
            )
            assert told[0]["status"] == 502
            assert peer in told[0]["answer"]
            answer = pod.probe("/readyz")
            assert answer is not None
            assert answer.status_code == 503
            pod.delete(grace=1)
            assert pod.status("lattice-sidecar") == 0


def test_revoked_pods_network_ends_and_no_other_identity_takes_its_place(
    node: Node, fabric: World
) -> None:
    with working(node, fabric, ttl="20s") as pod:
        pod.start()
        peer = peer_of(fabric, pod)["peerId"]
        wait_for("a first visit", lambda: clients(pod), 60)
        fabric.request("DELETE", f"/api/v1/peers/{peer}")
        seen = len(clients(pod))
        told = wait_for(
            "the agent to be told", lambda: [t for t in pod.told() if t.get("status") == 502], 40
        )
        assert peer in told[-1]["answer"]
        assert len(clients(pod)) <= seen + 1, "one may have been under way"
        assert pod.running("lattice-sidecar")
        assert peers_of(fabric, pod) == []
        pod.delete(grace=1)
        assert pod.status("lattice-sidecar") == 0


def test_pod_that_may_not_enroll_says_what_to_do_and_runs_nothing(
    node: Node, fabric: World
) -> None:
    with job(node, fabric, token="lt-wrong", VISIT=GRANTED) as pod:
        with pytest.raises(InitError) as failure:
            pod.start()
        assert failure.value.container == "lattice-init"
        assert failure.value.status == 4
        assert "what to do" in failure.value.told
        assert "lt-wrong" not in failure.value.told
        assert not pod.running("agent")
        assert peers_of(fabric, pod) == []


LOOK = """
import json, os
found = {"mounts": open("/proc/self/mountinfo").read(), "uid": os.getuid()}
found["environment"] = open("/proc/1/environ").read()
found["processes"] = [pid for pid in os.listdir("/proc") if pid.isdigit()]
print(json.dumps(found))
"""


def test_agents_container_has_nothing_secret(node: Node, fabric: World) -> None:
    with working(node, fabric) as pod:
        pod.start()
        wait_for("a first visit", lambda: clients(pod), 60)
        saved = json.loads((pod.volume("lattice-identity") / "identity/identity.json").read_text())
        directory = pod.volume("lattice-identity") / "identity"
        assert directory.stat().st_mode & 0o777 == 0o700
        files = {one.name: oct(one.stat().st_mode & 0o777) for one in directory.rglob("*")}
        assert "identity.json" in files
        assert set(files.values()) == {"0o600"}, files
        found = json.loads(pod.execute("agent", "/usr/bin/python3", "-c", LOOK))
        assert found["uid"] == 0, "a root agent is the hard case"
        assert "/run/lattice" not in found["mounts"]
        assert len(found["processes"]) <= 3
        secrets = [fabric.token, saved["privateKey"], saved["enrollmentToken"]]
        assert all(secrets)
        public = json.dumps(found) + "".join(
            pod.logs(name) + pod.inspect(name) for name in (*pod.starters, *pod.regular)
        )
        assert pod.name in public
        assert not [secret for secret in secrets if secret in public]
        # Nothing of ours has a capability, nor can get one.
        text = Path(f"/proc/{pod.pid('lattice-sidecar')}/status").read_text()
        status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        assert {status[key] for key in ("CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert "0" not in status["Uid"].split()
        pod.delete(grace=1)


WRITE = """
import errno, json, os, sys
told = {}
for directory in sys.argv[1:]:
    try:
        open(directory + "/probe", "w").close()
        told[directory] = "written"
    except OSError as error:
        told[directory] = errno.errorcode[error.errno]
mounts = [line.split() for line in open("/proc/self/mounts")]
told["identity"] = [(kind, options) for _, at, kind, options, *_ in mounts if at == "/run/lattice"]
print(json.dumps(told))
""".strip()
# Of the image; /run/lattice is what the two containers have in common.
DIRECTORIES = ("/", "/opt/lattice", "/usr", "/etc", "/var")


@pytest.mark.parametrize("mode", Mode)
def test_our_containers_write_nothing_but_the_identity_and_that_is_in_memory(
    node: Node, fabric: World, mode: Mode
) -> None:
    settings = {"options": {"mode": mode}, "VISIT": GRANTED, "SECONDS": "600", "PAUSE": "0.2"}
    with job(node, fabric, **settings) as pod:
        pod.start()
        look = ("/usr/bin/python3", "-c", WRITE, *DIRECTORIES, "/run/lattice")
        of_sidecar = json.loads(pod.execute("lattice-sidecar", *look))
        pod.delete(grace=1)
    with job(node, fabric, **settings) as pod:
        init = pod.spec["initContainers"][0]
        init |= {"command": [*look[:2], f"{WRITE}\nsys.exit(9)", *look[3:]], "args": []}
        with pytest.raises(InitError) as failure:
            pod.start()
        assert (failure.value.container, failure.value.status) == ("lattice-init", 9)
        of_init = json.loads(failure.value.told)
    for told in (of_sidecar, of_init):
        assert {told[directory] for directory in DIRECTORIES} == {"EROFS"}, told
        assert told["/run/lattice"] == "written", told
        ((kind, options),) = told["identity"]
        assert kind == "tmpfs"
        assert "size=8192k" in options.split(",")


def test_proxy_is_the_pods_own(node: Node, fabric: World) -> None:
    import httpx

    from support.node import inside

    with working(node, fabric) as one, working(node, fabric) as two:
        one.start()
        two.start()
        assert one.environment("agent")["HTTP_PROXY"] == f"http://pod:{one.uid}@127.0.0.1:18420"

        def visit(proxy: str) -> int:
            with httpx.Client(proxy=proxy) as http:
                return http.get(GRANTED).status_code

        ours, theirs = (pod.environment("agent")["HTTP_PROXY"] for pod in (one, two))
        assert inside(one.infra_pid, lambda: visit(ours)) == 200
        assert inside(one.infra_pid, lambda: visit(theirs)) == 407
        # From outside of the pod it is not there at all.
        for address in (one.ip, NODE_IP):
            with pytest.raises(httpx.ConnectError):
                visit(ours.replace("127.0.0.1", address))
        for pod in (one, two):
            pod.delete(grace=1)

"""Pods as before Kubernetes 1.29: the sidecar is a container like the others."""

from __future__ import annotations

import json
import signal
import time

import pytest

from lattice_k8s_job.layout import USER_ID, Sidecar
from lattice_k8s_job.others import SETTLE
from lattice_sdk.testing.world import World
from support.jobs import GRANTED, clients, fail_and_leave_nothing, job, peer_of, watched
from support.node import Node, wait_for
from support.pods import Pod

pytestmark = [pytest.mark.pods, pytest.mark.slow, pytest.mark.timeout(240, func_only=True)]

GOES_ON = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
signal.pause()
"""
# A container that goes on until it is told to end.
SECOND = {"name": "second", "command": ["/usr/bin/python3", "-c", GOES_ON.strip()]}


def ordinary(node: Node, world: World, **settings: object) -> Pod:
    options = {"sidecar": Sidecar.CONTAINER}
    return job(node, world, options=options, **settings)  # type: ignore[arg-type]


def test_sidecar_ends_by_itself_when_all_others_have(node: Node, fabric: World) -> None:
    with ordinary(node, fabric, VISIT=GRANTED) as pod:
        pod.spec["containers"].append({**SECOND, "image": node.images.agent})
        pod.regular.append("second")
        sidecar = next(one for one in pod.spec["containers"] if one["name"] == "lattice-sidecar")
        for variable in sidecar["env"]:
            if variable["name"] == "LATTICE_CONTAINERS":
                variable["value"] = "2"
        pod.start()
        peer = peer_of(fabric, pod)["peerId"]
        wait_for("the second to be ready", lambda: "ready" in pod.logs("second"), 60)
        wait_for("the agent to end", lambda: not pod.running("agent"), 60)
        looked = pod.ended_at("agent") + 4 * SETTLE
        wait_for("the sidecar to have looked", lambda: time.time() > looked)
        assert pod.running("second")
        assert pod.running("lattice-sidecar")
        assert fabric.knows(peer)
        with watched(fabric, peer) as watch:
            pod.kill("second", signal.SIGTERM)
            assert pod.wait() == "Succeeded"
            ended = max(pod.ended_at("agent"), pod.ended_at("second"))
            watch.expect_gone(ended, "the last container's end")
        assert pod.status("lattice-sidecar") == 0
        assert len(clients(pod)) == 1


def test_sidecar_of_a_failed_agent_does_not_fail_or_linger(node: Node, fabric: World) -> None:
    with ordinary(node, fabric, VISIT=GRANTED, STATUS="3") as pod:
        fail_and_leave_nothing(fabric, pod)


# An agent that heeds SIGTERM and still needs the network to end well.
LAST_VISIT = """
import signal, sys, time, httpx
def last(*_):
    time.sleep(1)
    print(httpx.get("http://github-tools.lattice/").status_code, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, last)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


def test_deleted_pods_agent_has_its_network_to_the_end(node: Node, fabric: World) -> None:
    command = ["/usr/bin/python3", "-u", "-c", LAST_VISIT.strip()]
    with ordinary(node, fabric, container={"command": command}) as pod:
        pod.start()
        peer = peer_of(fabric, pod)["peerId"]
        wait_for("the agent to be ready", lambda: "ready" in pod.logs("agent"))
        with watched(fabric, peer) as watch:
            pod.delete()
            watch.expect_gone(pod.ended_at("agent"), "the agent's end")
        assert pod.logs("agent").split() == ["ready", "200"]
        assert pod.status("lattice-sidecar") == 0


# What a root agent tries on every process that it sees and that is not of its own container.
PRY = """
import json, os, sys
own = open("/proc/self/cgroup").read()
tried, opened = {}, []
def attempt(pid, name):
    path = f"/proc/{pid}/{name}"
    try:
        if name in ("root", "cwd"):
            os.listdir(path + "/run/lattice" if name == "root" else path)
        elif name == "exe":
            os.readlink(path)
        else:
            open(path, "rb").read(1)
    except OSError:
        return
    opened.append(path)
os.setgid(%(user)d)
os.setuid(%(user)d)
for pid in filter(str.isdigit, os.listdir("/proc")):
    if pid == "1" or open(f"/proc/{pid}/cgroup").read() == own:
        continue
    tried[pid] = open(f"/proc/{pid}/status").read().splitlines()[0]
    for name in ("environ", "mem", "maps", "root", "cwd", "exe", "fd"):
        attempt(pid, name)
print(json.dumps([os.getuid(), tried, opened]))
"""


def test_root_agent_that_takes_the_sidecars_user_id_sees_nothing_of_it(
    node: Node, fabric: World
) -> None:
    with ordinary(node, fabric, VISIT=GRANTED, SECONDS="600", PAUSE="0.2") as pod:
        pod.start()
        wait_for("a first visit", lambda: clients(pod), 60)
        told = pod.execute("agent", "/usr/bin/python3", "-c", PRY % {"user": USER_ID})
        user, tried, opened = json.loads(told)
        assert user == USER_ID
        assert sorted(name.split("\t")[1] for name in tried.values()) == [
            "entrypoint",
            "lattice-engine",
        ]
        assert opened == []
        pod.delete(grace=11)

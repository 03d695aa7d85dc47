"""Jobs for the pod tests: written as anybody writes them, injected, and their pods."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import yaml

from lattice_k8s_job.inject import Options, inject
from lattice_sdk.testing.world import World
from support.node import Node, wait_for
from support.pods import Pod

GRANTED = "http://github-tools.lattice/"
GONE_WITHIN = 6.0  # seconds; two are promised, the rest is for a busy machine


def job(
    node: Node,
    world: World,
    *,
    name: str = "report",
    token: str | None = None,
    server: str | None = None,
    container: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    injected: bool = True,
    **environment: str,
) -> Pod:
    """A pod of a Job whose agent is the tests' agent; to be used as a context manager.

    Args:
        node: where it runs.
        world: whose control plane it enrolls with.
        name: of the Job.
        token: instead of the world's.
        server: instead of the world's.
        container: more fields of the agent's container.
        spec: more fields of the pod.
        options: of the injection.
        injected: ``False`` for the Job as it was written, without Lattice.
        environment: of the agent.
    """
    agent = {
        "name": "agent",
        "image": node.images.agent,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        **(container or {}),
    }
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "template": {"spec": {"containers": [agent], "restartPolicy": "Never", **(spec or {})}}
        },
    }
    if not injected:
        return Pod(node, manifest)
    chosen = Options(
        **{"server": server or world.server, "image": node.images.lattice, **(options or {})}
    )
    text = inject(yaml.safe_dump(manifest), chosen).text
    secrets = {"lattice-token": {"token": token or world.token}}
    return Pod(node, yaml.safe_load(text), secrets=secrets)


def peer_of(world: World, pod: Pod) -> dict[str, Any]:
    """The pod's identity at the control plane."""
    (peer,) = peers_of(world, pod)
    return peer


def peers_of(world: World, pod: Pod) -> list[dict[str, Any]]:
    """All identities that the pod has."""
    page = world.request("GET", f"/api/v1/peers?workspaceId={world.workspace}&limit=500")
    return [peer for peer in page["items"] if peer["name"] == pod.name]


class Watch:
    """Notes when control plane and gateway know a peer no more."""

    def __init__(self, world: World, peer: str) -> None:
        self._world, self._peer = world, peer
        self._gone: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"watch over {peer}")
        self._thread.start()

    def expect_gone(self, since: float, what: str) -> None:
        """The issue's bound.

        Args:
            since: when what ended the identity was over, as :func:`time.time` has it.
            what: what that was, for the message.
        """
        wait_for(f"{self._peer} to be gone", lambda: self._gone is not None)
        assert self._gone is not None
        took = self._gone - since
        assert took <= GONE_WITHIN, (
            f"the identity was there for {took:.2f} s after {what}; {GONE_WITHIN:g} s are allowed"
        )
        print(f"the identity was gone {took:.2f} s after {what}")

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.is_set():
            if not self._world.knows(self._peer):
                self._gone = time.time()
                return
            self._stopped.wait(0.05)


@contextlib.contextmanager
def watched(world: World, peer: str) -> Iterator[Watch]:
    """Watch a peer from before its end, which may be over before who causes it goes on."""
    watch = Watch(world, peer)
    try:
        yield watch
    finally:
        watch.stop()


def fail_and_leave_nothing(world: World, pod: Pod) -> None:
    """Run a pod whose agent ends with 3: the pod has failed, the sidecar not, the peer is gone."""
    pod.start()
    with watched(world, peer_of(world, pod)["peerId"]) as watch:
        assert pod.wait() == "Failed"
        watch.expect_gone(pod.ended_at("agent"), "the agent's end")
    assert (pod.status("agent"), pod.status("lattice-sidecar")) == (3, 0)


def clients(pod: Pod) -> list[str]:
    """The addresses that the granted service saw, one for each visit that succeeded."""
    found = [told for told in pod.told() if told["url"] == GRANTED and told.get("status") == 200]
    return [yaml.safe_load(told["answer"])["client"] for told in found]

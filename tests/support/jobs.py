"""Jobs for the pod tests: written as anybody writes them, injected, and their pods."""

from __future__ import annotations

import time
from typing import Any

import yaml

from lattice_k8s_job.inject import Options, inject
from lattice_sdk.testing.world import World
from support.node import Node, wait_for
from support.pods import Pod

GRANTED = "http://github-tools.lattice/"
GONE_WITHIN = 2.0  # seconds, as the issue states it


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
    chosen = Options(
        **{"server": server or world.server, "image": node.images.lattice, **(options or {})}
    )
    injected = inject(yaml.safe_dump(manifest), chosen).text
    secrets = {"lattice-token": {"token": token or world.token}}
    return Pod(node, yaml.safe_load(injected), secrets=secrets)


def peer_of(world: World, pod: Pod) -> dict[str, Any]:
    """The pod's identity at the control plane."""
    (peer,) = peers_of(world, pod)
    return peer


def peers_of(world: World, pod: Pod) -> list[dict[str, Any]]:
    """All identities that the pod has."""
    page = world.request("GET", f"/api/v1/peers?workspaceId={world.workspace}&limit=500")
    return [peer for peer in page["items"] if peer["name"] == pod.name]


def expect_gone(world: World, peer: str, since: float) -> None:
    """The stated bound, with ample slack: kubelet and podman take their time too."""
    wait_for(f"{peer} to be gone", lambda: not world.knows(peer))
    assert time.monotonic() - since < GONE_WITHIN + 3, "the identity lingers"


def clients(pod: Pod) -> list[str]:
    """The addresses that the granted service saw, one for each visit that succeeded."""
    found = [told for told in pod.told() if told["url"] == GRANTED and told.get("status") == 200]
    return [yaml.safe_load(told["answer"])["client"] for told in found]

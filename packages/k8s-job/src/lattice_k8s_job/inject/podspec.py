"""Puts the parts into a manifest's data, where they are already or where they disturb least."""

from __future__ import annotations

from typing import Any

from lattice_k8s_job.inject import containers, nodes
from lattice_k8s_job.inject.options import Options
from lattice_k8s_job.inject.workloads import (
    Workload,
    agents,
    check,
    ends_with_agents,
    everybody,
    grace,
    probed_ports,
)
from lattice_k8s_job.layout import CA_VOLUME, SIDECAR, Mode, Sidecar

LABEL = "lattice.io/agent-managed"
KIND_LENGTH = 63


def put(workload: Workload, options: Options) -> None:
    """Give the workload's pods what the options say. Again it changes nothing.

    Raises:
        ConfigurationError: it would be unsafe, or not work.
    """
    check(workload, options)
    spec = workload.spec
    native = options.sidecar is Sidecar.NATIVE
    regular = [one for one in spec["containers"] if one.get("name") != SIDECAR]
    others = len(regular) if ends_with_agents(workload) else 0
    kind = workload.name[:KIND_LENGTH].rstrip("-.")
    init = containers.init_container(options, kind, probed_ports(workload))
    sidecar = containers.sidecar_container(options, kind, others, grace(workload))
    reached = agents(workload, options)
    if native:
        # These come after the sidecar, and have the network too.
        reached += agents(workload, options, "initContainers")
    for container in everybody(workload):
        if not any(container is one for one in reached):
            _put_environment(container, [])
    for container in reached:
        _put_environment(container, containers.agent_environment(options))
    starters = nodes.sequence(spec, "initContainers", before="containers")
    if native:
        nodes.remove(spec["containers"], SIDECAR)
        nodes.put(starters, [init, sidecar], only_at=0)
    else:
        nodes.remove(starters, SIDECAR)
        # The identity should not wait for other init containers, but the lock must come before.
        nodes.put(starters, [init], only_at=0 if options.mode is Mode.INTERFACE else -1)
        nodes.put(spec["containers"], [sidecar], only_at=0)
        if "shareProcessNamespace" not in spec:
            nodes.insert(spec, "shareProcessNamespace", True, before="initContainers")
        spec["shareProcessNamespace"] = True
    if options.mode is Mode.INTERFACE:
        for container in everybody(workload):
            _bind(container)
    held = nodes.sequence(spec, "volumes", before="containers")
    nodes.put(held, containers.volumes(options))
    if options.ca is None:
        nodes.remove(held, CA_VOLUME)
    _put_label(workload)


def _put_environment(container: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
    """Have these variables of ours in a container, and no others of ours."""
    if not wanted and not container.get("env"):
        return
    held = nodes.sequence(container, "env", after=("image", "name"))
    if any(one.get("name") == containers.PASSWORD for one in held):
        for name in containers.agent_variables() - {one["name"] for one in wanted}:
            nodes.remove(held, name)
    nodes.put(held, wanted)


def _bind(container: dict[str, Any]) -> None:
    """Take from a container what could undo the lock."""
    if container.get("securityContext") is None:
        container.pop("securityContext", None)
        nodes.insert(container, "securityContext", {}, after=("image", "name"))
    # Made anew: by an anchor it may be the pod's as well, which has other fields.
    security = container["securityContext"]
    container["securityContext"] = {
        **security,
        "allowPrivilegeEscalation": False,
        "capabilities": {**(security.get("capabilities") or {}), "drop": ["ALL"]},
    }


def _put_label(workload: Workload) -> None:
    template = workload.template
    for parent, key in ((template, "metadata"), (template.get("metadata"), "labels")):
        if parent is None:
            parent = template["metadata"]
        if key not in parent:
            nodes.insert(parent, key, {}, before="spec")
        elif parent[key] is None:
            parent[key] = {}
    template["metadata"]["labels"][LABEL] = "true"

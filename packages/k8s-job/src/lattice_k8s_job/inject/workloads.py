"""Which pods a manifest makes, and what keeps them from being injected. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lattice_k8s_job.inject.containers import PASSWORD, agent_variables
from lattice_k8s_job.inject.options import Options
from lattice_k8s_job.layout import INIT, SIDECAR, USER_ID, Mode, Sidecar
from lattice_sdk.errors import ConfigurationError

Node = dict[str, Any]

# Where in each kind the pods are described.
_TEMPLATES: dict[tuple[str, str], tuple[str, ...]] = {
    ("v1", "Pod"): (),
    ("batch/v1", "Job"): ("spec", "template"),
    ("batch/v1", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
    ("apps/v1", "Deployment"): ("spec", "template"),
    ("apps/v1", "StatefulSet"): ("spec", "template"),
}
KINDS = tuple(kind for _, kind in _TEMPLATES)
DEFAULT_GRACE = 30.0  # seconds, terminationGracePeriodSeconds


@dataclass(frozen=True)
class Workload:
    """One manifest that makes pods.

    Attributes:
        kind: ``Job``, …
        name: as it is called.
        annotations: of the manifest and, which win, of its pods.
        template: the mapping with the pods' ``metadata`` and ``spec``.
    """

    kind: str
    name: str
    annotations: dict[str, Any]
    template: Node

    @property
    def spec(self) -> Node:
        """The pods' specification."""
        spec: Node = self.template["spec"]
        return spec

    def error(self, what: str, hint: str) -> ConfigurationError:
        """An error that names this manifest."""
        return ConfigurationError(f"{self.kind} {self.name}: {what}", hint=hint)


def workloads(document: object) -> Iterator[Workload]:
    """The manifests of a YAML document that make pods; those of a List too.

    Raises:
        ConfigurationError: one has no pods where its kind has them.
    """
    if not isinstance(document, dict):
        return
    if document.get("kind") == "List" and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from workloads(item)
        return
    path = _TEMPLATES.get((str(document.get("apiVersion")), str(document.get("kind"))))
    if path is None:
        return
    metadata = document.get("metadata") or {}
    name = str(metadata.get("name") or str(metadata.get("generateName") or "").rstrip("-.") or "?")
    template: Any = document
    for key in path:
        template = template.get(key) if isinstance(template, dict) else None
    spec = template.get("spec") if isinstance(template, dict) else None
    if not isinstance(spec, dict) or not spec.get("containers"):
        where = ".".join((*path, "spec", "containers"))
        raise ConfigurationError(
            f"{document['kind']} {name}: it has no {where}",
            hint="Give whole manifests, as `kubectl apply` takes them",
        )
    annotations = dict(metadata.get("annotations") or {})
    annotations |= (template.get("metadata") or {}).get("annotations") or {}
    yield Workload(str(document["kind"]), name, annotations, template)


def agents(workload: Workload, options: Options, key: str = "containers") -> list[Node]:
    """The containers that are given the network.

    Raises:
        ConfigurationError: one that was named is not there.
    """
    own = {INIT, SIDECAR}
    found = [one for one in workload.spec.get(key) or [] if one.get("name") not in own]
    if not options.containers:
        return found
    missing = set(options.containers) - {
        one.get("name")
        for lists in ("containers", "initContainers")
        for one in workload.spec.get(lists) or []
    }
    if missing:
        raise workload.error(
            f"it has no container {', '.join(sorted(missing))}", "Correct --container"
        )
    return [one for one in found if one.get("name") in options.containers]


def check(workload: Workload, options: Options) -> None:
    """Find what would make the pods unsafe, or not work.

    Raises:
        ConfigurationError: that it is so.
    """
    spec = workload.spec
    for container in (*spec["containers"], *(spec.get("initContainers") or [])):
        if not isinstance(container["name"], str) or not isinstance(container.get("image"), str):
            raise workload.error(
                f"its container {container['name']} has no image that is a name",
                "A template is rendered first: helm template … | lattice k8s inject -",
            )
    if spec.get("hostNetwork"):
        raise workload.error(
            "its pods use the node's network, in which every process could use their tunnel",
            'Take hostNetwork out, or leave it be: annotation lattice.io/inject: "false"',
        )
    windows = (spec.get("os") or {}).get("name") == "windows"
    if windows or (spec.get("nodeSelector") or {}).get("kubernetes.io/os") == "windows":
        raise workload.error("its pods run on Windows", "Lattice needs Linux nodes")
    if options.sidecar is Sidecar.CONTAINER and spec.get("restartPolicy") == "OnFailure":
        raise workload.error(
            "with restartPolicy OnFailure an ordinary sidecar cannot tell the agent's end from "
            "its next attempt",
            "Use restartPolicy: Never (the Job makes a new pod for each attempt), or "
            "--sidecar native on Kubernetes 1.29 and newer",
        )
    _check_ports(workload, options)
    if options.mode is Mode.INTERFACE:
        for container in everybody(workload):
            _check_power(workload, container)
    if options.mode is Mode.PROXY:
        for container in (*agents(workload, options), *agents(workload, options, "initContainers")):
            _check_variables(workload, container)


def everybody(workload: Workload) -> list[Node]:
    """All containers that are not ours."""
    spec = workload.spec
    return [
        one
        for lists in ("initContainers", "containers")
        for one in spec.get(lists) or []
        if one.get("name") not in (INIT, SIDECAR)
    ]


def probed_ports(workload: Workload) -> list[int]:
    """The TCP ports of the pods that the kubelet probes, or calls when a container starts or ends.

    See https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/.
    """
    found = []
    for container in everybody(workload):
        named = {port.get("name"): port["containerPort"] for port in container.get("ports") or []}
        hooks = container.get("lifecycle") or {}
        probes = [container.get(f"{kind}Probe") for kind in ("liveness", "readiness", "startup")]
        for probe in (*probes, hooks.get("postStart"), hooks.get("preStop")):
            for way in ("httpGet", "tcpSocket", "grpc"):
                if port := ((probe or {}).get(way) or {}).get("port"):
                    found.append(int(named.get(port, port)))
    return found


def ends_with_agents(workload: Workload) -> bool:
    """Whether the pods end when their containers have."""
    return str(workload.spec.get("restartPolicy", "Always")) == "Never"


def grace(workload: Workload) -> float:
    """Seconds that the pods' containers have to end."""
    value = workload.spec.get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE if value is None else float(value)


def _check_ports(workload: Workload, options: Options) -> None:
    ours = {options.health_port: "--health-port"}
    if options.mode is Mode.PROXY:
        ours[options.proxy_port] = "--proxy-port"
        if options.proxy_port == options.health_port:
            raise workload.error("proxy and probes cannot share a port", "Change --proxy-port")
    for container in agents(workload, Options(server=options.server)):
        for port in container.get("ports") or []:
            if port.get("containerPort") in ours:
                number = port["containerPort"]
                raise workload.error(
                    f"its container {container.get('name')} uses port {number}",
                    f"Choose another one with {ours[number]}",
                )


def _check_power(workload: Workload, container: Node) -> None:
    """Nobody but the two containers may be able to undo the lock, or to pass as one of them."""
    security = container.get("securityContext") or {}
    name = container.get("name")
    if security.get("privileged"):
        raise workload.error(
            f"its container {name} is privileged, and could undo what locks the pod's network",
            "Take privileged out, or use --mode proxy",
        )
    if added := (security.get("capabilities") or {}).get("add"):
        raise workload.error(
            f"its container {name} adds the capabilities {', '.join(map(str, added))}, and in mode "
            "interface it may have none",
            "Take them out, or use --mode proxy",
        )
    groups = (security, workload.spec.get("securityContext") or {})
    if any(one.get("runAsGroup") == USER_ID for one in groups):
        raise workload.error(
            f"its container {name} runs as the group {USER_ID}, which the lock does not bind",
            "Choose another runAsGroup",
        )


def _check_variables(workload: Workload, container: Node) -> None:
    names = [one.get("name") for one in container.get("env") or []]
    if PASSWORD in names:
        return  # injected before: they are ours
    theirs = sorted(set(names) & agent_variables())
    if theirs:
        raise workload.error(
            f"its container {container.get('name')} sets {', '.join(theirs)} itself",
            "Take it out; what must be reached past the tunnel is named with --no-proxy",
        )

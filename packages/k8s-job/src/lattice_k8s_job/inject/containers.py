"""The containers, volumes and variables that a pod is given. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lattice_k8s_job import layout
from lattice_k8s_job.inject.options import Options, name_and_key
from lattice_k8s_job.layout import Mode, Sidecar

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PASSWORD = "LATTICE_POD_UID"  # noqa: S105 - a variable's name
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
Document = dict[str, Any]


def init_container(options: Options, kind: str, probed: Sequence[int] = ()) -> Document:
    """The one that enrolls, and locks the pod's network. Only it has the token.

    Args:
        options: of the injection.
        kind: of agent.
        probed: the pod's ports that the kubelet probes, besides the sidecar's.
    """
    mounts = [_mount(layout.IDENTITY_VOLUME, layout.IDENTITY_MOUNT)]
    mounts.append(_mount(layout.TOKEN_VOLUME, layout.TOKEN_MOUNT, read_only=True))
    token = f"{layout.TOKEN_MOUNT}/{layout.TOKEN_FILE}"
    environment = [*_environment(options, kind), _value("LATTICE_TOKEN_FILE", token)]
    if options.mode is Mode.INTERFACE:
        ports = ",".join(map(str, sorted({options.health_port, *probed})))
        environment += [
            _field("LATTICE_NODE_ADDRESSES", "status.hostIP"),
            _value("LATTICE_PROBE_PORTS", ports),
        ]
        if options.allow_networks:
            environment.append(_value("LATTICE_ALLOW_NETWORKS", ",".join(options.allow_networks)))
        if options.sidecar is Sidecar.CONTAINER:
            environment.append(_value("LATTICE_SIDECAR", Sidecar.CONTAINER))
    return {
        "name": layout.INIT,
        "image": options.image,
        "args": ["init"],
        "env": environment,
        **_common(options, mounts, ["NET_ADMIN"]),
    }


def sidecar_container(options: Options, kind: str, others: int, grace: float) -> Document:
    """The one that keeps the identity.

    Args:
        options: of the injection.
        kind: of agent.
        others: with whose number of containers it ends, 0 for never by itself.
        grace: the pod's ``terminationGracePeriodSeconds``.
    """
    native = options.sidecar is Sidecar.NATIVE
    environment = _environment(options, kind)
    if options.mode is Mode.PROXY:
        environment.append(_field("LATTICE_PROXY_PASSWORD", "metadata.uid"))
    if not native:
        environment += [
            _value("LATTICE_SIDECAR", Sidecar.CONTAINER),
            _value("LATTICE_CONTAINERS", str(others)),
            _value("LATTICE_GRACE", f"{grace:g}"),
        ]
    container: Document = {"name": layout.SIDECAR, "image": options.image, "args": ["sidecar"]}
    if native:
        container["restartPolicy"] = "Always"
    container["env"] = environment
    mounts = [_mount(layout.IDENTITY_VOLUME, layout.IDENTITY_MOUNT)]
    # NET_RAW: pods have no /dev/net/tun, so the interface is a veth pair with a packet socket.
    container |= _common(options, mounts, ["NET_ADMIN", "NET_RAW"])
    if native:
        # The containers after it are started once this has succeeded.
        container["startupProbe"] = _probe(options, "/readyz", 1, 300)
    else:
        # Likewise: the kubelet starts containers one by one, and waits for this.
        command = {"command": ["lattice-k8s", "wait"]}
        container["lifecycle"] = {"postStart": {"exec": command}}
    container["readinessProbe"] = _probe(options, "/readyz", 5, 2)
    container["livenessProbe"] = _probe(options, "/healthz", 10, 6)
    return container


def volumes(options: Options) -> list[Document]:
    """What the containers share, the token, and the control plane's authorities."""
    memory = {"medium": "Memory", "sizeLimit": "8Mi"}
    made: list[Document] = [{"name": layout.IDENTITY_VOLUME, "emptyDir": memory}]
    if options.token_audience is not None:
        token = {
            "audience": options.token_audience,
            "expirationSeconds": 600,  # the least; a control plane takes no old ones
            "path": layout.TOKEN_FILE,
        }
        source: Document = {"projected": {"sources": [{"serviceAccountToken": token}]}}
    else:
        secret, key = name_and_key(options.token_secret, "token")
        items = [{"key": key, "path": layout.TOKEN_FILE}]
        source = {"secret": {"secretName": secret, "items": items}}
    made.append({"name": layout.TOKEN_VOLUME, **source})
    if options.ca is not None:
        name, key = name_and_key(options.ca, "ca.crt")
        items = [{"key": key, "path": layout.CA_FILE}]
        made.append({"name": layout.CA_VOLUME, "configMap": {"name": name, "items": items}})
    return made


def agent_environment(options: Options) -> list[Document]:
    """The variables of an agent's container, by which its programs find the proxy.

    The proxy's password is the pod's uid: the manifest, which is one for many pods, cannot hold a
    secret, and this is one value for each pod that both sides can be told by reference.
    """
    if options.mode is not Mode.PROXY:
        return []
    proxy = f"http://{layout.PROXY_USER}:$({PASSWORD})@127.0.0.1:{options.proxy_port}"
    values = {
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
        # HTTP here too: clients without an extra package cannot do SOCKS, and refuse to start.
        "ALL_PROXY": proxy,
        "NO_PROXY": ",".join((*LOOPBACK, *options.no_proxy)),
    }
    made = [_field(PASSWORD, "metadata.uid")]
    for name, value in values.items():
        made += [_value(name, value), _value(name.lower(), value)]
    return made


def agent_variables() -> set[str]:
    """Names of all variables that :func:`agent_environment` may set."""
    return {PASSWORD, *PROXY_VARIABLES, *(name.lower() for name in PROXY_VARIABLES)}


def _environment(options: Options, kind: str) -> list[Document]:
    given = {
        "LATTICE_AGENT_TYPE": kind,
        "LATTICE_SERVER": options.server,
        "LATTICE_WORKSPACE": options.workspace,
        "LATTICE_PRESET": options.preset,
        "LATTICE_ALLOW": " ".join(options.allow) or None,
        "LATTICE_TTL": options.ttl,
        "LATTICE_MODE": options.mode,
        "LATTICE_CA_FILE": f"{layout.CA_MOUNT}/{layout.CA_FILE}" if options.ca else None,
        "LATTICE_PROXY_PORT": str(options.proxy_port) if options.mode is Mode.PROXY else None,
        "LATTICE_HEALTH_PORT": str(options.health_port),
    }
    values = [_value(name, value) for name, value in given.items() if value is not None]
    return [_field("LATTICE_AGENT_NAME", "metadata.name"), *values]


def _common(options: Options, mounts: list[Document], capabilities: list[str]) -> Document:
    if options.ca is not None:
        mounts = [*mounts, _mount(layout.CA_VOLUME, layout.CA_MOUNT, read_only=True)]
    return {
        "resources": {
            "requests": {"cpu": "10m", "memory": "96Mi"},
            "limits": {"memory": "192Mi"},
        },
        "securityContext": _security(options, capabilities),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _security(options: Options, capabilities: list[str]) -> Document:
    """In mode proxy what the Pod Security Standard "restricted" wants, and a user id of its own.

    In mode interface root, since Kubernetes gives capabilities to root only; and a group of its
    own, by which the lock knows who keeps the tunnel.
    """
    interface = options.mode is Mode.INTERFACE
    user: Document = {"runAsUser": 0} if interface else {"runAsNonRoot": True}
    return {
        "runAsUser": layout.USER_ID,
        **user,
        "runAsGroup": layout.USER_ID,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], **({"add": capabilities} if interface else {})},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _probe(options: Options, path: str, period: int, failures: int) -> Document:
    return {
        "httpGet": {"path": path, "port": options.health_port},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _mount(name: str, path: str, *, read_only: bool = False) -> Document:
    return {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})


def _value(name: str, value: str) -> Document:
    return {"name": name, "value": str(value)}


def _field(name: str, path: str) -> Document:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

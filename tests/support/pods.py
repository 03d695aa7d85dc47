"""Real pods from manifests: containers by podman, and of the kubelet what a pod's life needs.

The kubelet's part here is what its documentation promises: init containers one by one, native
sidecars before the others and until their startup probe succeeds, postStart hooks, restarts, and
SIGTERM in the order of https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from support.node import Node, wait_for
from support.waiting import process_alive

PATIENCE = 60.0  # seconds for a container to start or to be probed
LEAST_GRACE = 2.0  # seconds, kubelet's minimumGracePeriodInSeconds: also after the pod's own
HOSTS = "etc-hosts"
Manifest = dict[str, Any]


class Pod:
    """One pod of a manifest.

    Args:
        node: where it runs.
        manifest: a Pod, or what makes pods of a template; as injected.
        secrets: of its namespace, by name and key.
        config_maps: likewise.
        hosts: addresses of Services by name; there is no cluster DNS.
        service_account: gives a token of its service account for an audience.

    Attributes:
        name: of the pod.
        uid: of the pod.
        labels: of the pod.
        ip: its address, and
        device: the node's end of its network, once it was started.
        restarts: of the sidecar.
        asked: by container, when it was sent SIGTERM first; as :func:`time.time` has it.
    """

    def __init__(
        self,
        node: Node,
        manifest: Manifest,
        *,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        config_maps: Mapping[str, Mapping[str, str]] | None = None,
        hosts: Mapping[str, str] | None = None,
        service_account: Callable[[str], str] | None = None,
    ) -> None:
        template = manifest
        while template["kind"] != "Pod" if "kind" in template else "spec" not in template:
            template = template["spec"].get("template") or template["spec"]["jobTemplate"]
        self._node, self._secrets, self._config_maps = node, secrets or {}, config_maps or {}
        self._services, self._service_account = hosts or {}, service_account
        self.name = f"{manifest['metadata']['name']}-{uuid.uuid4().hex[:5]}"
        self.uid = str(uuid.uuid4())
        self.ip, self.device, self.restarts = "", "", 0
        self.asked: dict[str, float] = {}
        self.labels: dict[str, str] = (template.get("metadata") or {}).get("labels") or {}
        self.spec: Manifest = copy.deepcopy(template["spec"])
        self._volumes = node.directory / self.uid
        starters = self.spec.get("initContainers", [])
        self.native = [one["name"] for one in starters if one.get("restartPolicy") == "Always"]
        self.starters = [one["name"] for one in starters]
        self.regular = [one["name"] for one in self.spec["containers"]]
        self._pids: dict[str, int] = {}
        self._logs: dict[str, str] = {}
        self._ending = threading.Event()
        self._kubelet: threading.Thread | None = None

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        with contextlib.suppress(AssertionError):
            self._node.podman("pod", "rm", "--force", "--time", "0", self.name)
        if self._kubelet is not None:
            self._kubelet.join(30)
        for mount in self._volumes.glob("*"):
            if os.path.ismount(mount):
                subprocess.run(["umount", "--lazy", str(mount)], check=True)

    # What a test does with it.

    def start(self) -> Pod:
        """Start everything, in order; returns when the agent's containers run.

        Raises:
            InitError: an init container did.
        """
        if not self.ip:
            self.create()
        specs = {one["name"]: one for one in self._containers()}
        for name in self.starters:
            self._start(name)
            if name in self.native:
                self._wait_until_started(specs[name])
                continue
            status = int(self._podman("wait", "--interval=20ms", self._container(name)))
            if status:
                raise InitError(name, status, self.logs(name))
        for name in self.regular:
            self._start(name)
            hook = (specs[name].get("lifecycle") or {}).get("postStart")
            if hook:
                self.execute(name, *hook["exec"]["command"])
        self._kubelet = threading.Thread(target=self._run, name=f"kubelet of {self.name}")
        self._kubelet.start()
        return self

    def wait(self, timeout: float = PATIENCE) -> str:
        """Until all containers have ended; ``Succeeded`` or ``Failed``."""
        wait_for(f"{self.name} to end", self.ended, timeout)
        statuses = [self.status(name) for name in self.regular]
        return "Failed" if any(statuses) else "Succeeded"

    def ended(self) -> bool:
        """Whether no container runs any more."""
        return all(not self.running(name) for name in (*self.native, *self.regular))

    def delete(self, grace: float | None = None) -> None:
        """What deleting the pod does: SIGTERM, in order, and SIGKILL when the grace is over."""
        seconds = self.spec.get("terminationGracePeriodSeconds", 30) if grace is None else grace
        deadline = time.monotonic() + seconds
        self._ending.set()
        for names in (self.regular, self.native[::-1]):
            pids = [pid for name in names if (pid := self.pid(name))]
            for name in names:
                self._ask(name)
            with contextlib.suppress(AssertionError):
                left = max(LEAST_GRACE, deadline - time.monotonic())
                wait_for("containers to end", lambda pids=pids: not _alive(pids), left)
            for pid in pids:
                _signal(pid, signal.SIGKILL)

    def evict(self) -> None:
        """SIGKILL of everything at once, the pod's infrastructure included."""
        self._ending.set()
        names = [*self.native, *self.regular]
        pids = [pid for name in names if (pid := self.pid(name))]
        for pid in (*pids, self.infra_pid):
            _signal(pid, signal.SIGKILL)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a container's first process."""
        _signal(self.pid(name), number)

    def execute(self, name: str, *command: str, check: bool = True) -> str:
        """``kubectl exec``."""
        return self._podman("exec", self._container(name), *command, check=check)

    def logs(self, name: str) -> str:
        """``kubectl logs``."""
        # P is for a part of a line, whose rest comes by itself.
        return "".join(text + ("" if part == "P" else "\n") for _, _, part, text in self._log(name))

    def printed_at(self, name: str) -> float:
        """When a container printed its first line; as :func:`time.time` has it."""
        return datetime.fromisoformat(self._log(name)[0][0]).timestamp()

    def _log(self, name: str) -> list[list[str]]:
        """A container's log: time, stream, F or P, and text."""
        if name not in self._logs:
            self._logs[name] = self._inspect(name, "{{.HostConfig.LogConfig.Path}}")
        lines = Path(self._logs[name]).read_text(errors="replace").splitlines()
        return [line.split(" ", 3) for line in lines if line.count(" ") > 2]

    def told(self, name: str = "agent") -> list[dict[str, Any]]:
        """The JSON lines of a container's log."""
        found = []
        for line in self.logs(name).splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def pid(self, name: str) -> int:
        """A container's first process, seen from the node; 0 when it does not run."""
        pid = self._pids.get(name, 0)
        return pid if pid and process_alive(pid) else 0

    def status(self, name: str) -> int:
        """A container's exit status."""
        return int(self._inspect(name, "{{.State.ExitCode}}"))

    def ended_at(self, name: str) -> float:
        """When a container ended, by the runtime's word; as :func:`time.time` has it."""
        told = datetime.fromisoformat(json.loads(self._inspect(name, "{{json .State.FinishedAt}}")))
        assert told.year > 1, f"{name} has not ended"
        return told.timestamp()

    def running(self, name: str) -> bool:
        """Whether a container runs."""
        return self.pid(name) != 0

    def environment(self, name: str) -> dict[str, str]:
        """A container's environment."""
        pairs = json.loads(self._inspect(name, "{{json .Config.Env}}"))
        return dict(pair.split("=", 1) for pair in pairs)

    def inspect(self, name: str) -> str:
        """All that the runtime tells of a container."""
        return self._podman("inspect", self._container(name))

    def volume(self, name: str) -> Path:
        """Where a volume is on the node."""
        return self._volumes / name

    def probe(self, path: str) -> httpx.Response | None:
        """The sidecar's answer to a probe of the kubelet's, which comes from the node."""
        try:
            return httpx.get(f"http://{self.ip}:{self.health_port}{path}", timeout=5)
        except httpx.TransportError:
            return None

    @property
    def health_port(self) -> int:
        """Of the sidecar's probes."""
        sidecar = next(one for one in self._containers() if "livenessProbe" in one)
        return int(sidecar["livenessProbe"]["httpGet"]["port"])

    # The kubelet's part.

    def _run(self) -> None:
        """Restart the sidecar, and end it after the others."""
        while not self._ending.is_set() and any(self.running(name) for name in self.regular):
            for name in self.native:
                if not self.running(name) and not self._ending.is_set():
                    self._start(name)
                    self.restarts += 1
            self._ending.wait(0.1)
        if self._ending.is_set():
            return
        for name in reversed(self.native):
            self._ask(name)

    def _ask(self, name: str) -> None:
        """Ask a container to end."""
        if pid := self.pid(name):
            self.asked.setdefault(name, time.time())
            _signal(pid, signal.SIGTERM)

    def _hosts(self) -> Path:
        """The hosts file of all containers, written anew whenever one starts."""
        self._volumes.mkdir(exist_ok=True)
        path = self._volumes / HOSTS
        lines = [f"{address}\t{name}\n" for name, address in self._services.items()]
        head = f"# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n{self.ip}\tpod\n"
        path.write_text(head + "".join(lines))
        return path

    def _start(self, name: str) -> None:
        self._hosts()
        self._podman("start", self._container(name))
        self._pids[name] = int(self._inspect(name, "{{.State.Pid}}"))

    def _wait_until_started(self, container: Manifest) -> None:
        probe = container["startupProbe"]["httpGet"]

        def ready() -> bool:
            if not self.running(container["name"]):
                raise InitError(
                    container["name"], self.status(container["name"]), self.logs(container["name"])
                )
            answer = self.probe(probe["path"])
            return answer is not None and answer.status_code < 400

        wait_for(f"{container['name']} of {self.name} to start", ready, PATIENCE)

    def create(self) -> None:
        """The pod with its network, and nothing that runs in it; :meth:`start` does it as well."""
        translated = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "labels": {"app": "test"}},
            "spec": {
                "restartPolicy": "Never",
                "shareProcessNamespace": bool(self.spec.get("shareProcessNamespace")),
                "securityContext": {
                    key: value
                    for key, value in (self.spec.get("securityContext") or {}).items()
                    if key in ("runAsUser", "runAsGroup", "runAsNonRoot")
                },
                "containers": [self._translate(one) for one in self._containers()],
                "volumes": [
                    {"name": HOSTS, "hostPath": {"path": str(self._hosts()), "type": "File"}},
                    *(self._volume(one) for one in self.spec.get("volumes", [])),
                ],
            },
        }
        file = self._node.directory / f"{self.name}.json"
        file.write_text(json.dumps(translated))
        self._podman("kube", "play", "--network=none", "--start=false", str(file))
        infra = self._podman("pod", "inspect", self.name, "--format", "{{.InfraContainerID}}")
        self._podman("start", infra.strip())
        self.infra_pid = int(self._podman("inspect", infra.strip(), "--format", "{{.State.Pid}}"))
        self.ip, self.device = self._node.connect(self.infra_pid)

    def _containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def _translate(self, container: Manifest) -> Manifest:
        """Without what podman does not read, and with what the kubelet fills in filled in."""
        fields = {"name", "image", "command", "args", "workingDir", "securityContext"}
        kept = {key: value for key, value in container.items() if key in fields}
        kept["imagePullPolicy"] = "Never"
        hosts = {"name": HOSTS, "mountPath": "/etc/hosts"}
        kept["volumeMounts"] = [hosts, *container.get("volumeMounts", [])]
        known: dict[str, str] = {}
        for variable in container.get("env", []):
            value = variable.get("value", "")
            if "valueFrom" in variable:
                path = variable["valueFrom"]["fieldRef"]["fieldPath"]
                value = self._fields()[path]
            value = re.sub(r"\$\((\w+)\)", lambda found: known.get(found[1], found[0]), value)
            known[variable["name"]] = value
        kept["env"] = [{"name": name, "value": value} for name, value in known.items()]
        return kept

    def _fields(self) -> dict[str, str]:
        from support.node import NODE_IP

        return {"metadata.name": self.name, "metadata.uid": self.uid, "status.hostIP": NODE_IP}

    def _volume(self, volume: Manifest) -> Manifest:
        path = self.volume(volume["name"])
        path.mkdir(parents=True)
        self._volumes.chmod(0o711)
        if "emptyDir" in volume:
            if volume["emptyDir"].get("medium") == "Memory":
                size = volume["emptyDir"].get("sizeLimit", "16Mi").rstrip("i")
                options = ("-t", "tmpfs", "-o", f"size={size}")
                subprocess.run(["mount", *options, "none", str(path)], check=True)
            path.chmod(0o777)
            self._give_to_group(path, 0o660)
        elif "persistentVolumeClaim" in volume:
            path.chmod(0o755)  # as a new file system is
            self._give_to_group(path, 0o660)
        elif "secret" in volume:
            wanted = volume["secret"]
            secret = self._secrets[wanted["secretName"]]
            _fill(path, secret, wanted.get("items"), wanted.get("defaultMode", 0o644))
            self._give_to_group(path, 0o440)
        elif "configMap" in volume:
            wanted = volume["configMap"]
            absent: Mapping[str, str] | None = {} if wanted.get("optional") else None
            data = self._config_maps.get(wanted["name"], absent)
            assert data is not None, f"there is no ConfigMap {wanted['name']}"
            _fill(path, data, wanted.get("items"), wanted.get("defaultMode", 0o644))
            self._give_to_group(path, 0o440)
        elif "projected" in volume and self._service_account:
            (source,) = volume["projected"]["sources"]
            wanted = source["serviceAccountToken"]
            _fill(path, {wanted["path"]: self._service_account(wanted["audience"])}, None, 0o644)
        else:
            raise AssertionError(f"no volume of this kind here: {volume}")
        return {"name": volume["name"], "hostPath": {"path": str(path), "type": "Directory"}}

    def _give_to_group(self, path: Path, mode: int) -> None:
        """What the kubelet does with a volume when there is an ``fsGroup``.

        SetVolumeOwnership in its pkg/volume/volume_linux.go.
        """
        group = (self.spec.get("securityContext") or {}).get("fsGroup")
        if group is None:
            return
        for one in (path, *path.iterdir()):
            os.chown(one, -1, group)
            more = mode | (0o2110 if one.is_dir() else 0)
            one.chmod(one.stat().st_mode & 0o7777 | more)

    def _container(self, name: str) -> str:
        return f"{self.name}-{name}"

    def _podman(self, *arguments: str, check: bool = True) -> str:
        return self._node.podman(*arguments, check=check)

    def _inspect(self, name: str, form: str) -> str:
        return self._podman("inspect", self._container(name), "--format", form).strip()


class InitError(Exception):
    """An init container, or a sidecar before it was ready, ended with a status.

    Attributes:
        container: which.
        status: its exit status.
        told: its log.
    """

    def __init__(self, container: str, status: int, told: str) -> None:
        super().__init__(f"{container} ended with {status}: {told[-600:]}")
        self.container, self.status, self.told = container, status, told


def _fill(
    path: Path, data: Mapping[str, str], items: list[dict[str, str]] | None, mode: int
) -> None:
    for item in items or [{"key": key, "path": key} for key in data]:
        (path / item["path"]).write_text(data[item["key"]])
        (path / item["path"]).chmod(mode)


def _signal(pid: int, number: signal.Signals) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _alive(pids: list[int]) -> bool:
    return any(process_alive(pid) for pid in pids)

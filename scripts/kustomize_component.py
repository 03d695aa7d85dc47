"""Write packages/k8s-job/deploy/agents: the injection as a Kustomize component.

A patch cannot go through containers of any name, so the component is for workloads whose agent's
container is called ``agent``, and its settings come from a ConfigMap called ``lattice``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from lattice_k8s_job.inject import Options, containers
from lattice_k8s_job.inject.podspec import LABEL

AGENTS = Path(__file__).parent.parent / "packages" / "k8s-job" / "deploy" / "agents"
CONFIG = "lattice"
WANTED = "lattice.io/inject=true"
# What the ConfigMap says instead.
SETTINGS = {"LATTICE_SERVER", "LATTICE_PRESET", "LATTICE_TTL", "LATTICE_AGENT_TYPE"}
KINDS = {
    "Pod": ("v1", ()),
    "Job": ("batch/v1", ("spec", "template")),
    "CronJob": ("batch/v1", ("spec", "jobTemplate", "spec", "template")),
    "Deployment": ("apps/v1", ("spec", "template")),
    "StatefulSet": ("apps/v1", ("spec", "template")),
}
HEAD = "# Made by scripts/kustomize_component.py; `make component` makes it anew.\n"


def ours(container: dict[str, Any]) -> dict[str, Any]:
    """One of the two containers, configured by the ConfigMap."""
    kept = [one for one in container["env"] if one["name"] not in SETTINGS]
    made: dict[str, Any] = {}
    for key, value in container.items():
        if key == "env":
            made["envFrom"] = [{"configMapRef": {"name": CONFIG}}]
            value = kept
        made[key] = value
    return made


def patch(kind: str) -> dict[str, Any]:
    """What the component adds to a workload."""
    options = Options(server="https://of.the.config.map")
    version, path = KINDS[kind]
    spec = {
        "initContainers": [
            ours(containers.init_container(options, "")),
            ours(containers.sidecar_container(options, "", 0, 30)),
        ],
        "containers": [{"name": "agent", "env": containers.agent_environment(options)}],
        "volumes": containers.volumes(options),
    }
    body: dict[str, Any] = {"metadata": {"labels": {LABEL: "true"}}, "spec": spec}
    for key in reversed(path):
        body = {key: body}
    metadata = {"name": "any", **body.get("metadata", {})}
    return {"apiVersion": version, "kind": kind, **body, "metadata": metadata}


def files() -> dict[str, str]:
    """All files of the component but the network policy."""
    component = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": ["networkpolicy.yaml"],
        "patches": [
            {"path": f"{kind.lower()}.yaml", "target": {"kind": kind, "labelSelector": WANTED}}
            for kind in KINDS
        ],
    }
    made = {
        "kustomization.yaml": component,
        **{f"{kind.lower()}.yaml": patch(kind) for kind in KINDS},
    }
    return {
        name: HEAD + yaml.dump(content, Dumper=_Plain, sort_keys=False)
        for name, content in made.items()
    }


class _Plain(yaml.SafeDumper):
    """Without anchors, which a reader of manifests does not expect."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def main() -> None:
    """Write them, or with --check say whether they are as they should be."""
    for name, text in files().items():
        path = AGENTS / name
        if sys.argv[1:] == ["--check"]:
            if not path.exists() or path.read_text() != text:
                sys.exit(f"{path} is not up to date: run `make component`")
        else:
            path.write_text(text)


if __name__ == "__main__":
    main()

"""The manifests for a cluster: accepted by Kubernetes' schemas, and true to what runs."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from conftest import World
from lattice_k8s_job.inject import Options, inject

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "packages" / "k8s-job" / "deploy"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.4.3"
OLDEST, NATIVE, NEWEST = "1.25", "1.29", "1.37"
CRD = yaml.safe_load((DEPLOY / "crd" / "latticepeers.yaml").read_text())
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def kustomize(directory: Path) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would apply."""
    go = subprocess.run(
        [str(ROOT / "scripts" / "bootstrap.sh"), "go"], capture_output=True, text=True, check=True
    ).stdout.strip()
    done = subprocess.run(
        [go, "run", KUSTOMIZE, "build", str(directory)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def applied() -> list[dict[str, Any]]:
    return kustomize(DEPLOY)


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_deployment_is_what_kubernetes_takes(applied: list[dict[str, Any]], version: str) -> None:
    kinds = [document["kind"] for document in applied]
    assert {"CustomResourceDefinition", "StatefulSet", "ClusterRole", "Service"} <= set(kinds)
    for document in applied:
        kubernetes_validate.validate(document, version, strict=True)
    for document in applied:
        if document["kind"] in ("StatefulSet", "Service", "ServiceAccount"):
            assert document["metadata"]["namespace"] == "lattice-system"


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_deployment_is_wired_together(applied: list[dict[str, Any]]) -> None:
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in applied}
    for name in ("lattice-server", "lattice-gateway"):
        service = by_name["Service", name]
        template = by_name["StatefulSet", name]["spec"]["template"]
        selector = service["spec"]["selector"].items()
        assert selector <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        ports = {port["name"]: port for port in container["ports"]}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports
            assert ports[port["targetPort"]].get("protocol", "TCP") == port.get("protocol", "TCP")
        volumes = {one["name"] for one in template["spec"]["volumes"]}
        claims = by_name["StatefulSet", name]["spec"]["volumeClaimTemplates"]
        volumes |= {one["metadata"]["name"] for one in claims}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    gateway = by_name["StatefulSet", "lattice-gateway"]["spec"]["template"]["spec"]
    assert gateway["containers"][0]["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["NET_ADMIN", "NET_RAW"],
    }
    server = by_name["StatefulSet", "lattice-server"]["spec"]["template"]["spec"]
    assert server["securityContext"]["runAsNonRoot"] is True


def test_roles_are_the_least() -> None:
    """Who looks may not write, who writes peers may nothing else, and nobody is given either."""
    texts = [path.read_text() for path in DEPLOY.rglob("*.yaml")]
    documents = [one for text in texts for one in yaml.safe_load_all(text) if one]
    by_kind: dict[str, dict[str, Any]] = {}
    for one in documents:
        by_kind.setdefault(one["kind"], {})[one.get("metadata", {}).get("name", "")] = one
    assert not {"Role", "RoleBinding", "ClusterRoleBinding"} & by_kind.keys()
    group = {"apiGroups": ["alattice.io"]}
    look = ["get", "list", "watch"]
    roles = by_kind["ClusterRole"]
    assert {name: role["rules"] for name, role in roles.items()} == {
        "lattice-peers-view": [
            {**group, "resources": ["latticepeers", "latticepeers/status"], "verbs": look}
        ],
        "lattice-peers-write": [
            {
                **group,
                "resources": ["latticepeers"],
                "verbs": [*look, "create", "update", "patch", "delete"],
            },
            {**group, "resources": ["latticepeers/status"], "verbs": ["get", "update", "patch"]},
        ],
    }
    # Roles of the cluster that an aggregated one becomes a part of.
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {
        name: {
            label.removeprefix(prefix)
            for label in role["metadata"]["labels"]
            if label.startswith(prefix)
        }
        for name, role in roles.items()
    } == {"lattice-peers-view": {"view", "edit", "admin"}, "lattice-peers-write": set()}
    assert not any("aggregationRule" in role for role in roles.values())
    # Server and gateway have no token of the API server's either.
    for account in by_kind["ServiceAccount"].values():
        assert account["automountServiceAccountToken"] is False
    for stateful in ("lattice-server", "lattice-gateway"):
        pod = by_kind["StatefulSet"][stateful]["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] in by_kind["ServiceAccount"]
        assert pod["automountServiceAccountToken"] is False


def test_commands_of_the_deployment_are_accepted() -> None:
    import typer.main

    from lattice_sdk.cli import build

    for name in ("server", "gateway"):
        for document in yaml.safe_load_all((DEPLOY / name / f"{name}.yaml").read_text()):
            if document["kind"] != "StatefulSet":
                continue
            (container,) = document["spec"]["template"]["spec"]["containers"]
            command, *arguments = container["args"]
            typer.main.get_command(build()).commands[command].make_context(command, arguments)


# The custom resource.


def parts(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema within a schema, with where it is."""
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from parts(member, f"{path}.{name}")
    if "items" in schema:
        yield from parts(schema["items"], f"{path}[]")


def test_schema_is_structural() -> None:
    # https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
    kubernetes_validate.validate(CRD, NEWEST, strict=True)
    forbidden = {"$ref", "definitions", "patternProperties", "additionalItems", "deprecated"}
    for path, schema in parts(SCHEMA):
        assert "type" in schema, path
        assert not set(schema) & forbidden, path
        if schema["type"] == "array":
            assert isinstance(schema["items"], dict), path
        assert set(schema.get("required", [])) <= set(schema.get("properties", {})), path
    metadata = SCHEMA["properties"]["metadata"]
    assert set(metadata) == {"type"}, "a schema may restrict names only in metadata"


def test_columns_show_what_is_there() -> None:
    known = {path for path, _ in parts(SCHEMA)} | {".metadata.creationTimestamp"}
    for column in CRD["spec"]["versions"][0]["additionalPrinterColumns"]:
        assert column["jsonPath"] in known


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as JSON Schema that knows no other fields: what Kubernetes would prune."""
    made = copy.deepcopy(schema)
    for path, one in parts(made):
        if "properties" in one and path != ".metadata":
            one["additionalProperties"] = False
        if one.pop("nullable", False):
            one["type"] = [one["type"], "null"]
    return made


def test_peers_of_the_control_plane_fit_the_resource(world: World) -> None:
    fabric = world.fabric
    checker = jsonschema.Draft202012Validator(
        strict(SCHEMA), format_checker=jsonschema.FormatChecker()
    )
    with world.agent(policy_preset="coordinator", agent_type="kind") as agent:
        path = f"/apis/alattice.io/v1alpha1/namespaces/{fabric.workspace}/latticepeers"
        listing = fabric.request("GET", path)
        assert listing["kind"] == CRD["spec"]["names"]["listKind"]
        found = {item["metadata"]["name"]: item for item in listing["items"]}
        assert {item["spec"]["kind"] for item in found.values()} == {"agent", "service"}
        for item in listing["items"]:
            checker.validate(item)
            assert item["apiVersion"] == "alattice.io/v1alpha1"
        mine = found[agent.peer_id]
        metadata = mine["metadata"]
        assert metadata["annotations"] == {
            "lattice.io/agent-expires-at": mine["status"]["expiresAt"]
        }
        assert metadata["labels"] == {
            "lattice.io/agent-type": "kind",
            "lattice.io/agent-managed": "true",
        }
    broken = copy.deepcopy(mine)
    broken["spec"]["secret"] = "x"
    assert not checker.is_valid(broken), "the check cannot fail"


# The Kustomize component.


def test_component_is_made_from_the_injection() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "kustomize_component.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


SPEC = {
    "initContainers": [{"name": "fetch", "image": "fetch:1"}],
    "containers": [
        {"name": "agent", "image": "agent:1", "env": [{"name": "MODE", "value": "yes"}]},
    ],
}
LABELS = {"app": "work"}


def workload(kind: str, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A workload of a kind, as anybody writes it."""
    ends = kind in ("Pod", "Job", "CronJob")
    pod = {
        "metadata": {"labels": LABELS},
        "spec": {**copy.deepcopy(SPEC), "restartPolicy": "Never" if ends else "Always"},
    }
    version, body = {
        "Pod": ("v1", pod),
        "Job": ("batch/v1", {"spec": {"template": pod}}),
        "CronJob": (
            "batch/v1",
            {"spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": {"template": pod}}}},
        ),
        "Deployment": ("apps/v1", {"spec": {"selector": {"matchLabels": LABELS}, "template": pod}}),
        "StatefulSet": (
            "apps/v1",
            {
                "spec": {
                    "serviceName": name,
                    "selector": {"matchLabels": LABELS},
                    "template": pod,
                }
            },
        ),
    }[kind]
    metadata = {"name": name, "labels": {**body.get("metadata", {}).get("labels", {}), **labels}}
    return {"apiVersion": version, "kind": kind, **body, "metadata": metadata}


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    """The pod, or the template of pods, of a workload."""
    while document["kind"] != "Pod" if "kind" in document else "containers" not in document["spec"]:
        document = document["spec"].get("template") or document["spec"]["jobTemplate"]
    return document


KINDS = ("Pod", "Job", "CronJob", "Deployment", "StatefulSet")


@pytest.fixture(scope="module")
def with_component(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """Workloads of each kind that want the component and that do not, by kind and name."""
    directory = tmp_path_factory.mktemp("overlay")
    wants = {"wanted": {"lattice.io/inject": "true"}, "unwanted": {}}
    workloads = [workload(kind, *of) for kind in KINDS for of in wants.items()]
    (directory / "workloads.yaml").write_text(yaml.safe_dump_all(workloads))
    (directory / "agents").symlink_to(DEPLOY / "agents")
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["workloads.yaml"],
        "components": ["agents"],
        "configMapGenerator": [
            {"name": "lattice", "literals": ["LATTICE_SERVER=https://lattice.example.com"]}
        ],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return {(one["kind"], one["metadata"]["name"]): one for one in kustomize(directory)}


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_component_makes_what_kubernetes_takes(
    with_component: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for document in with_component.values():
        kubernetes_validate.validate(document, NATIVE, strict=True)
        kubernetes_validate.validate(document, NEWEST, strict=True)


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("kind", KINDS)
def test_component_does_what_injection_does(
    with_component: dict[tuple[str, str], dict[str, Any]], kind: str
) -> None:
    unwanted = with_component[kind, "unwanted"]
    assert unwanted == workload(kind, "unwanted", {})
    made = pod_of(with_component[kind, "wanted"])
    options = Options(server="https://lattice.example.com", containers=("agent",))
    text = yaml.safe_dump(workload(kind, "wanted", {"lattice.io/inject": "true"}))
    told = pod_of(yaml.safe_load(inject(text, options).text))
    assert made["metadata"]["labels"] == told["metadata"]["labels"]
    assert "lattice.io/agent-managed" in made["metadata"]["labels"]
    spec, injected = made["spec"], told["spec"]
    assert spec.keys() == injected.keys()
    for lists in ("initContainers", "containers", "volumes"):
        names = [[one["name"] for one in which[lists]] for which in (spec, injected)]
        assert names[0] == names[1]
    assert spec["containers"] == injected["containers"]
    assert spec["volumes"] == injected["volumes"]
    for ours, theirs in zip(spec["initContainers"], injected["initContainers"], strict=True):
        if ours["name"] == "fetch":
            assert ours == theirs
            continue
        config = ours.pop("envFrom")[0]["configMapRef"]["name"]
        data = with_component["ConfigMap", config]["data"]
        assert data == {"LATTICE_SERVER": "https://lattice.example.com"}
        for key in set(ours) - {"env"}:
            assert ours[key] == theirs[key], key
        assert all(one in theirs["env"] for one in ours["env"])

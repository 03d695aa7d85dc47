"""What injection makes of manifests, and what it leaves as it was."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml as pyyaml

from lattice_k8s_job import layout
from lattice_k8s_job.inject import Options, inject
from lattice_k8s_job.layout import Mode, Sidecar
from lattice_sdk import ConfigurationError

OPTIONS = Options(server="https://lattice.example.com")
# The oldest and the newest release that the schemas know; native sidecars are of 1.29.
OLDEST, NATIVE, NEWEST = "1.25", "1.29", "1.37"

POD_SPEC = """\
containers:
- name: agent
  image: agent:1
restartPolicy: Never
"""

KINDS = {
    "Pod": "apiVersion: v1\nkind: Pod\nmetadata:\n  name: work\nspec:\n{2}",
    "Job": (
        "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: work\nspec:\n"
        "  template:\n    spec:\n{6}"
    ),
    "CronJob": (
        "apiVersion: batch/v1\nkind: CronJob\nmetadata:\n  name: work\nspec:\n"
        '  schedule: "0 3 * * *"\n  jobTemplate:\n    spec:\n      template:\n        spec:\n{10}'
    ),
    "Deployment": (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: work\nspec:\n"
        "  selector:\n    matchLabels:\n      app: work\n"
        "  template:\n    metadata:\n      labels:\n        app: work\n    spec:\n{6}"
    ),
    "StatefulSet": (
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n  name: work\nspec:\n"
        "  serviceName: work\n  selector:\n    matchLabels:\n      app: work\n"
        "  template:\n    metadata:\n      labels:\n        app: work\n    spec:\n{6}"
    ),
}


def manifest(kind: str = "Job", spec: str = POD_SPEC) -> str:
    def indented(found: re.Match[str]) -> str:
        return "".join(" " * int(found[1]) + line for line in spec.splitlines(keepends=True))

    if kind in ("Deployment", "StatefulSet"):
        spec = spec.replace("restartPolicy: Never", "restartPolicy: Always")
    return re.sub(r"\{(\d+)\}", indented, KINDS[kind])


def pod_spec(text: str) -> dict[str, Any]:
    document = pyyaml.safe_load(text)
    if document["kind"] == "Pod":
        return document["spec"]
    if document["kind"] == "CronJob":
        document = document["spec"]["jobTemplate"]
    return document["spec"]["template"]["spec"]


def names(containers: list[dict[str, Any]]) -> list[str]:
    return [container["name"] for container in containers]


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def validate(text: str, version: str) -> None:
    for document in pyyaml.safe_load_all(text):
        kubernetes_validate.validate(document, version, strict=True)


# All that injection reads or changes of a pod.
FULL_SPEC = """\
securityContext:
  runAsGroup: 1000
shareProcessNamespace: false
initContainers:
- name: fetch
  image: fetch:1
  securityContext: {readOnlyRootFilesystem: true}
containers:
- name: agent
  image: agent:1
  env:
  - name: MODE
    value: "yes"
  ports:
  - name: web
    containerPort: 8080
  livenessProbe:
    httpGet: {path: /, port: web}
  securityContext:
    runAsUser: 1000
    allowPrivilegeEscalation: true
    capabilities:
      drop:
      - NET_RAW
restartPolicy: Never
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sidecar", "versions"),
    [(Sidecar.NATIVE, (NATIVE, NEWEST)), (Sidecar.CONTAINER, (OLDEST, NATIVE, NEWEST))],
)
@pytest.mark.parametrize(
    "changes",
    [
        {"mode": Mode.PROXY},
        {"mode": Mode.PROXY, "token_audience": "lattice"},
        {"mode": Mode.INTERFACE, "allow_networks": ("10.20.0.0/16", "fd00:1::/64")},
    ],
    ids=["proxy", "audience", "interface"],
)
def test_result_is_what_kubernetes_takes(
    kind: str, sidecar: Sidecar, versions: tuple[str, ...], changes: dict[str, Any]
) -> None:
    options = Options(server=OPTIONS.server, sidecar=sidecar, ca="trust:root.pem", **changes)
    text = inject(manifest(kind, FULL_SPEC), options).text
    for version in versions:
        validate(text, version)
    if sidecar is Sidecar.NATIVE:
        # The schemas are able to refuse: before 1.28 there were no native sidecars.
        with pytest.raises(kubernetes_validate.ValidationError):
            validate(text, OLDEST)


@pytest.mark.parametrize("kind", KINDS)
def test_pod_gets_init_sidecar_volumes_and_proxy(kind: str) -> None:
    result = inject(manifest(kind), OPTIONS)
    assert result.injected == [f"{kind} work"]
    spec = pod_spec(result.text)
    assert names(spec["initContainers"]) == [layout.INIT, layout.SIDECAR]
    assert spec["initContainers"][1]["restartPolicy"] == "Always"
    assert names(spec["containers"]) == ["agent"]
    agent = variables(spec["containers"][0])
    assert agent["HTTP_PROXY"] == "http://pod:$(LATTICE_POD_UID)@127.0.0.1:18420"
    assert agent["LATTICE_POD_UID"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    # A variable is expanded only when it stands before.
    order = [one["name"] for one in spec["containers"][0]["env"]]
    assert order[0] == "LATTICE_POD_UID"


def test_only_init_has_the_token_and_only_the_two_have_the_identity() -> None:
    spec = pod_spec(inject(manifest(), OPTIONS).text)
    mounts = {
        container["name"]: {mount["name"] for mount in container.get("volumeMounts", [])}
        for container in (*spec["initContainers"], *spec["containers"])
    }
    assert mounts == {
        layout.INIT: {layout.IDENTITY_VOLUME, layout.TOKEN_VOLUME},
        layout.SIDECAR: {layout.IDENTITY_VOLUME},
        "agent": set(),
    }


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("sidecar", Sidecar)
def test_identity_is_in_memory_alone(mode: Mode, sidecar: Sidecar) -> None:
    options = Options(server="https://lattice.example.com", mode=mode, sidecar=sidecar)
    spec = pod_spec(inject(manifest(), options).text)
    (volume,) = [one for one in spec["volumes"] if one["name"] == layout.IDENTITY_VOLUME]
    # Without a medium it would be on the node's disk, and with no limit all of its memory.
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Mi"}
    assert layout.STATE_DIR.startswith(f"{layout.IDENTITY_MOUNT}/")
    ours = [
        one
        for one in (*spec["initContainers"], *spec["containers"])
        if one["name"] in (layout.INIT, layout.SIDECAR)
    ]
    for container in ours:
        # And nothing else of theirs can be written.
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        writable = [one["name"] for one in container["volumeMounts"] if not one.get("readOnly")]
        assert writable == [layout.IDENTITY_VOLUME]
    assert len(ours) == 2


def test_proxy_mode_passes_the_restricted_pod_security_standard() -> None:
    spec = pod_spec(inject(manifest(), OPTIONS).text)
    for container in spec["initContainers"]:
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "privileged" not in security
    assert not any(set(volume) & {"hostPath"} for volume in spec["volumes"])


# What mode interface makes of every container's rights.
BOUND = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def interface(**changes: Any) -> Options:
    return Options(server=OPTIONS.server, mode=Mode.INTERFACE, **changes)


@pytest.mark.parametrize("sidecar", Sidecar)
def test_interface_mode_gives_capabilities_to_the_two_and_takes_them_from_the_others(
    sidecar: Sidecar,
) -> None:
    options = interface(sidecar=sidecar, allow_networks=("10.20.0.0/16", "10.30.0.0/16"))
    spec = pod_spec(inject(manifest("Job", FULL_SPEC), options).text)
    every = {one["name"]: one for one in (*spec["initContainers"], *spec["containers"])}
    security = {name: one["securityContext"] for name, one in every.items()}
    for name, added in [
        (layout.INIT, ["NET_ADMIN"]),
        (layout.SIDECAR, ["NET_ADMIN", "NET_RAW"]),
    ]:
        assert security[name]["capabilities"] == {"drop": ["ALL"], "add": added}
        assert (security[name]["runAsUser"], security[name]["runAsGroup"]) == (0, layout.USER_ID)
        assert security[name]["allowPrivilegeEscalation"] is False
    assert security["agent"] == {"runAsUser": 1000, **BOUND}
    assert security["fetch"] == {"readOnlyRootFilesystem": True, **BOUND}
    # Nothing else may run before the network is locked.
    assert names(spec["initContainers"])[0] == layout.INIT
    init = variables(every[layout.INIT])
    assert init["LATTICE_ALLOW_NETWORKS"] == "10.20.0.0/16,10.30.0.0/16"
    assert init["LATTICE_NODE_ADDRESSES"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    assert init["LATTICE_PROBE_PORTS"] == "8080,18421"
    assert names(every["agent"]["env"]) == ["MODE"]
    assert "env" not in every["fetch"]


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        ("", {}),
        ("  securityContext:\n", {}),
        ("  securityContext: {}\n", {}),
        ("  securityContext: {runAsUser: 1000}\n", {"runAsUser": 1000}),
        (
            "  securityContext:   # mine\n    runAsUser: 1000   # too\n",
            {"runAsUser": 1000},
        ),
        ("  securityContext:\n    allowPrivilegeEscalation: true   # why\n", {}),
        ("  securityContext:\n    allowPrivilegeEscalation:\n", {}),
        ("  securityContext:\n    capabilities:\n", {}),
        ("  securityContext:\n    capabilities: {}\n", {}),
        ("  securityContext:\n    capabilities:\n      drop: []\n", {}),
        ("  securityContext:\n    capabilities:\n      drop:\n      - NET_RAW\n      - KILL\n", {}),
        ("  securityContext: {capabilities: {drop: [NET_RAW]}, privileged: false}\n",
         {"privileged": False}),
    ],
)  # fmt: skip
def test_interface_mode_binds_whatever_a_container_said(written: str, rest: dict[str, Any]) -> None:
    text = manifest("Job", POD_SPEC.replace("  image: agent:1\n", f"  image: agent:1\n{written}"))
    result = inject(text, interface())
    (agent,) = pod_spec(result.text)["containers"]
    assert agent["securityContext"] == {**rest, **BOUND}
    for comment in re.findall("# .*", written):
        assert comment in result.text
    assert inject(result.text, interface()).text == result.text


def test_interface_mode_binds_what_containers_share() -> None:
    text = manifest(
        "Job",
        "containers:\n- &base\n  name: one\n  image: a\n  securityContext: &own\n"
        "    runAsUser: 1000\n- name: two\n  image: a\n  securityContext: *own\n"
        "- <<: *base\n  name: three\nrestartPolicy: Never\n",
    )
    result = inject(text, interface())
    for container in pod_spec(result.text)["containers"]:
        assert container["securityContext"] == {"runAsUser": 1000, **BOUND}
    assert inject(result.text, interface()).text == result.text
    # What the pod has by the same anchor is of another kind, and may not change with it.
    shared = POD_SPEC.replace("image: agent:1", "image: a\n  securityContext: *own")
    with pytest.raises(ConfigurationError, match="shared by anchors"):
        inject(manifest("Job", f"securityContext: &own\n  runAsUser: 5\n{shared}"), interface())


def test_calls_of_the_kubelet_pass_the_lock() -> None:
    hooks = (
        "image: a\n  ports: [{name: web, containerPort: 8080}]\n"
        "  readinessProbe: {tcpSocket: {port: 8081}}\n  startupProbe: {grpc: {port: 8082}}\n"
        "  livenessProbe: {exec: {command: [/live]}}\n"
        "  lifecycle: {postStart: {exec: {command: [/up]}}, preStop: {httpGet: {port: web}}}"
    )
    text = manifest("Job", POD_SPEC.replace("image: agent:1", hooks))
    init = pod_spec(inject(text, interface()).text)["initContainers"][0]
    assert variables(init)["LATTICE_PROBE_PORTS"] == "8080,8081,8082,18421"


def test_no_secret_is_in_the_manifest() -> None:
    text = inject(manifest(), OPTIONS).text
    assert "secretName: lattice-token" in text
    agent = variables(pod_spec(text)["containers"][0])
    # All that opens the proxy is a reference that each pod resolves for itself.
    assert {value for value in agent.values() if isinstance(value, str)} == {
        "http://pod:$(LATTICE_POD_UID)@127.0.0.1:18420",
        "localhost,127.0.0.1,::1",
    }


def test_ordinary_sidecar_comes_first_and_sees_the_others_end() -> None:
    spec_text = POD_SPEC.replace(
        "containers:", "initContainers:\n- {name: fetch, image: f}\ncontainers:"
    )
    options = Options(server=OPTIONS.server, sidecar=Sidecar.CONTAINER)
    spec = pod_spec(inject(manifest("Job", spec_text), options).text)
    assert names(spec["initContainers"]) == ["fetch", layout.INIT]
    assert names(spec["containers"]) == [layout.SIDECAR, "agent"]
    assert spec["shareProcessNamespace"] is True
    sidecar = spec["containers"][0]
    assert "restartPolicy" not in sidecar
    assert sidecar["lifecycle"]["postStart"]["exec"]["command"] == ["lattice-k8s", "wait"]
    assert variables(sidecar)["LATTICE_CONTAINERS"] == "1"
    # What runs before the sidecar has no proxy to use.
    assert "env" not in spec["initContainers"][0]


def test_ordinary_sidecar_of_what_never_ends_does_not_end_by_itself() -> None:
    options = Options(server=OPTIONS.server, sidecar=Sidecar.CONTAINER)
    spec = pod_spec(inject(manifest("Deployment"), options).text)
    assert variables(spec["containers"][0])["LATTICE_CONTAINERS"] == "0"


def test_init_containers_after_a_native_sidecar_have_the_network() -> None:
    spec_text = POD_SPEC.replace(
        "containers:", "initContainers:\n- {name: fetch, image: f}\ncontainers:"
    )
    spec = pod_spec(inject(manifest("Job", spec_text), OPTIONS).text)
    assert names(spec["initContainers"]) == [layout.INIT, layout.SIDECAR, "fetch"]
    assert "HTTP_PROXY" in variables(spec["initContainers"][2])


def test_named_containers_only() -> None:
    spec_text = POD_SPEC.replace("containers:", "containers:\n- {name: logs, image: l}")
    options = Options(server=OPTIONS.server, containers=("agent",))
    spec = pod_spec(inject(manifest("Job", spec_text), options).text)
    assert "env" not in spec["containers"][0]
    assert "HTTP_PROXY" in variables(spec["containers"][1])
    with pytest.raises(ConfigurationError, match="no container typo"):
        inject(manifest(), Options(server=OPTIONS.server, containers=("typo",)))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("sidecar", Sidecar)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [POD_SPEC, FULL_SPEC], ids=["small", "full"])
def test_injecting_again_changes_nothing(
    kind: str, sidecar: Sidecar, mode: Mode, spec: str
) -> None:
    options = Options(server=OPTIONS.server, sidecar=sidecar, mode=mode, ca="trust")
    once = inject(manifest(kind, spec), options)
    assert once.changed
    twice = inject(once.text, options)
    assert twice.text == once.text
    assert not twice.changed
    assert twice.injected == once.injected


def test_other_options_bring_it_up_to_date_as_if_for_the_first_time() -> None:
    first = Options(server="https://old.example", sidecar=Sidecar.CONTAINER, ca="trust", ttl="5m")
    again = inject(inject(manifest(), first).text, OPTIONS)
    fresh = pod_spec(inject(manifest(), OPTIONS).text)
    found = pod_spec(again.text)
    del found["shareProcessNamespace"]  # it may be somebody else's wish by now
    assert found == fresh


WAYS = [(mode, sidecar) for mode in Mode for sidecar in Sidecar]


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("then", WAYS)
def test_injected_pod_is_switched_to_another_mode_or_sidecar(
    first: tuple[Mode, Sidecar], then: tuple[Mode, Sidecar]
) -> None:
    spec = "initContainers:\n- name: fetch\n  image: f\n" + POD_SPEC
    one, two = (
        Options(server=OPTIONS.server, mode=mode, sidecar=sidecar)
        for mode, sidecar in (first, then)
    )
    switched = inject(inject(manifest("Job", spec), one).text, two)
    assert inject(switched.text, two).text == switched.text
    fresh, found = pod_spec(inject(manifest("Job", spec), two).text), pod_spec(switched.text)
    # What may be somebody else's wish by now stays: it takes something from the pod, and gives
    # nothing. In mode interface it is there anyway.
    if two.sidecar is Sidecar.NATIVE:
        found.pop("shareProcessNamespace", None)
    for container in (*found["initContainers"], *found["containers"]):
        if container["name"] in ("fetch", "agent"):
            if two.mode is Mode.PROXY:
                assert container.pop("securityContext", BOUND) == BOUND
            if container.get("env") == []:
                del container["env"]
    assert found == fresh


def test_container_that_is_named_no_more_is_left_without_the_proxy() -> None:
    spec = POD_SPEC.replace("containers:", "containers:\n- {name: logs, image: l}")
    text = inject(manifest("Job", spec), OPTIONS).text
    options = Options(server=OPTIONS.server, containers=("agent",))
    logs, agent = pod_spec(inject(text, options).text)["containers"]
    assert logs["env"] == []
    assert "HTTP_PROXY" in variables(agent)


def test_container_of_others_is_never_written_anew() -> None:
    spec = "initContainers:\n- name: fetch   # mine\n  image:   f\n" + POD_SPEC
    native = inject(manifest("Job", spec), OPTIONS).text
    ordinary = inject(native, Options(server=OPTIONS.server, sidecar=Sidecar.CONTAINER)).text
    assert "- name: fetch   # mine\n" in ordinary
    assert names(pod_spec(ordinary)["initContainers"]) == ["fetch", layout.INIT]


COMMENTED = """\
# A nightly report.
%s
apiVersion: batch/v1
kind: Job
metadata:
    name: report   # its name
spec:
    template:
        spec:
            # the containers
            containers:
              # the agent
              - name: agent
                image: "agent:1"   # pinned
                # how
                command: ['python', "agent.py"]
                env:
                  # why
                  - name: MODE
                    value: 'yes'   # quoted
                  # after
                resources: {limits: {cpu: "1"}}
                securityContext:
                    runAsUser: 0o644
            terminationGracePeriodSeconds: 0060
            restartPolicy: Never
# the end
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_injection_only_adds_lines(newline: str) -> None:
    before = (COMMENTED % "---").replace("\n", newline)
    after = inject(before, OPTIONS).text
    rest = iter(after.split(newline))
    missing = [line for line in before.split(newline) if line not in rest]
    assert missing == []
    assert after.count(newline) == after.count("\n")


def test_comment_stays_with_what_it_is_about() -> None:
    lines = inject(COMMENTED % "", OPTIONS).text.splitlines()
    for comment, about in [
        ("# why", "- name: MODE"),
        ("# how", "command:"),
        ("# the agent", "- name: agent"),
    ]:
        (index,) = [number for number, line in enumerate(lines) if line.strip() == comment]
        assert lines[index + 1].strip().startswith(about)


def test_documents_without_pods_stay_byte_for_byte() -> None:
    other = "apiVersion:   v1\nkind:    ConfigMap\ndata: {a:    'b',  c: 0o17}   # odd\n\n\n"
    text = f"# first\n---\n{other}---   # parted\n{manifest()}...\n---\n{other}"
    result = inject(text, OPTIONS)
    assert result.text.startswith(f"# first\n---\n{other}---   # parted\n")
    assert result.text.endswith(f"...\n---\n{other}")
    assert result.injected == ["Job work"]


def test_text_without_pods_stays_byte_for_byte() -> None:
    for text in (
        "",
        "\n",
        "# nothing\n",
        "a:   1\n",
        "- 1\n-   2",
        "---\n---\n",
        "%YAML 1.2\n---\na: 1\n",
    ):
        result = inject(text, OPTIONS)
        assert result.text == text
        assert not result.changed
        assert not result.injected


def test_members_of_a_list_are_injected() -> None:
    items = [pyyaml.safe_load(manifest(kind)) for kind in ("Job", "Deployment")]
    text = pyyaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items})
    result = inject(text, OPTIONS)
    assert result.injected == ["Job work", "Deployment work"]
    assert inject(result.text, OPTIONS).text == result.text
    for item in pyyaml.safe_load(result.text)["items"]:
        assert names(pod_spec(pyyaml.safe_dump(item))["initContainers"])[0] == layout.INIT


def test_manifest_says_what_it_wants_itself() -> None:
    annotated = manifest().replace(
        "metadata:\n  name: work\n",
        "metadata:\n  name: work\n  annotations:\n    lattice.io/preset: isolated\n"
        '    lattice.io/ttl: 5m\n    lattice.io/allow: "10.96.0.7:443 10.96.0.8:53/udp"\n',
        1,
    )
    init = variables(pod_spec(inject(annotated, OPTIONS).text)["initContainers"][0])
    assert init["LATTICE_PRESET"] == "isolated"
    assert init["LATTICE_TTL"] == "5m"
    assert init["LATTICE_ALLOW"] == "10.96.0.7:443 10.96.0.8:53/udp"
    declined = annotated.replace("lattice.io/ttl: 5m", 'lattice.io/inject: "false"')
    assert inject(declined, OPTIONS).text == declined


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(pyyaml.safe_load(manifest())),
        json.dumps(pyyaml.safe_load(manifest()), indent=2),
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: work}\n"
        "spec: {template: {spec: {containers: [{name: agent, image: a}]}}}",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: work}\nspec:\n  volumes: []\n"
        "  initContainers: # none\n  containers: [{name: agent, image: a, env: []}]\n",
    ],
)
def test_brackets_are_injected_too(text: str) -> None:
    result = inject(text, OPTIONS)
    assert (
        pod_spec(result.text)["initContainers"]
        == pod_spec(inject(manifest(), OPTIONS).text)["initContainers"]
    )
    assert "HTTP_PROXY" in variables(pod_spec(result.text)["containers"][0])
    assert inject(result.text, OPTIONS).text == result.text


def test_anchors_aliases_and_merges_keep_their_meaning() -> None:
    text = manifest(
        "Job",
        "containers:\n- &base\n  name: one\n  image: a\n  env: &env\n  - name: A\n    value: x\n"
        "- name: two\n  image: a\n  env: *env\n- <<: *base\n  name: three\n"
        "- name: four\n  image: a\nrestartPolicy: Never\n",
    )
    result = inject(text, OPTIONS)
    spec = pod_spec(result.text)
    assert names(spec["containers"]) == ["one", "two", "three", "four"]
    for container in spec["containers"][:3]:
        assert variables(container)["A"] == "x"
    for container in spec["containers"]:
        assert [one["name"] for one in container["env"]].count("HTTP_PROXY") == 1
    assert inject(result.text, OPTIONS).text == result.text


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("restartPolicy: Never", "hostNetwork: true\nrestartPolicy: Never", "node's network"),
        ("restartPolicy: Never", "os: {name: windows}\nrestartPolicy: Never", "Windows"),
        ("image: agent:1", "image: a\n  env: [{name: https_proxy, value: x}]", "https_proxy"),
        ("image: agent:1", "image: a\n  ports: [{containerPort: 18421}]", "--health-port"),
        ("containers:", "containerz:", "spec.template.spec.containers"),
        ("image: agent:1", "image: [", "line"),
        ("image: agent:1", "image: a\n  image: b", "there twice"),
        ("image: agent:1", "image: {registry: a}", "no image"),
        ("image: agent:1", "image: {{ .Values.image }}", "line"),
        ("containers:\n- name: agent\n  image: agent:1", "containers: [1, 2]", "not a manifest"),
    ],
)
def test_what_would_not_work_is_refused_with_a_sentence(old: str, new: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(sentence)) as raised:
        inject(manifest("Job", POD_SPEC.replace(old, new)), OPTIONS)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("image: agent:1", "image: a\n  securityContext: {privileged: true}", "is privileged"),
        (
            "image: agent:1",
            "image: a\n  securityContext:\n    capabilities:\n      add: [NET_ADMIN, SYS_PTRACE]",
            "adds the capabilities NET_ADMIN, SYS_PTRACE",
        ),
        (
            "image: agent:1",
            "image: a\n  securityContext: {runAsGroup: 64206}",
            "its container agent runs as the group 64206",
        ),
        (
            "containers:",
            "securityContext: {runAsGroup: 64206}\ncontainers:",
            "its container agent runs as the group 64206",
        ),
        (
            "containers:",
            "initContainers:\n- name: fetch\n  image: f\n  securityContext: {privileged: true}\n"
            "containers:",
            "its container fetch is privileged",
        ),
    ],
)
def test_interface_mode_refuses_who_could_undo_the_lock(old: str, new: str, sentence: str) -> None:
    text = manifest("Job", POD_SPEC.replace(old, new))
    with pytest.raises(ConfigurationError, match=re.escape(sentence)) as raised:
        inject(text, interface())
    assert raised.value.hint
    inject(text, OPTIONS)  # without a lock there is nothing to undo


def test_ordinary_sidecar_refuses_what_it_cannot_serve() -> None:
    text = manifest("Job", POD_SPEC.replace("Never", "OnFailure"))
    with pytest.raises(ConfigurationError, match="OnFailure"):
        inject(text, Options(server=OPTIONS.server, sidecar=Sidecar.CONTAINER))
    inject(text, OPTIONS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ttl": "soon"}, "ttl"),
        ({"allow": ("10.96.0.7",)}, "HOST:PORT"),
        ({"allow": ("a b:1",)}, "HOST:PORT"),
        ({"allow_networks": ("10.20.0.0/16",)}, "in mode proxy the pod's network is not locked"),
        ({"mode": Mode.INTERFACE, "allow_networks": ("10.20.0.1/16",)}, "host bits"),
        ({"mode": Mode.INTERFACE, "allow_networks": ("here",)}, "allow-network"),
        ({"mode": Mode.INTERFACE, "containers": ("agent",)}, "no proxy"),
        ({"mode": Mode.INTERFACE, "no_proxy": ("db.internal",)}, "no proxy"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        Options(server=OPTIONS.server, **changes)


def lattice(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lattice_sdk", "k8s", "inject", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", "LATTICE_SERVER": OPTIONS.server},
    )


def test_command_filters_and_checks(tmp_path: Path) -> None:
    done = lattice("-", text=manifest())
    assert (done.returncode, done.stdout) == (0, inject(manifest(), OPTIONS).text)
    file = tmp_path / "job.yaml"
    file.write_text(manifest())
    file.chmod(0o640)
    checked = lattice("--check", str(file))
    assert (checked.returncode, checked.stdout) == (1, "")
    assert "not up to date: Job work" in checked.stderr
    assert file.read_text() == manifest()
    assert lattice("-i", str(file)).returncode == 0
    assert file.read_text() == done.stdout
    assert file.stat().st_mode & 0o777 == 0o640
    assert lattice("--check", str(file)).returncode == 0


def test_command_has_both_modes() -> None:
    arguments = ("--mode", "interface", "--allow-network", "10.20.0.0/16")
    done = lattice(*arguments, "--allow-network", "10.30.0.0/16", text=manifest())
    networks = ("10.20.0.0/16", "10.30.0.0/16")
    expected = inject(manifest(), interface(allow_networks=networks)).text
    assert (done.returncode, done.stdout) == (0, expected)
    refused = lattice("--allow-network", "10.20.0.0/16", text=manifest())
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "what to do: Use --no-proxy" in refused.stderr


def test_command_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    text = manifest() + "---\n" + manifest("Job", POD_SPEC + "hostNetwork: true\n")
    file.write_text(text)
    done = lattice("-i", str(file))
    assert done.returncode == 3
    assert "Job work: its pods use the node's network" in done.stderr
    assert "what to do" in done.stderr
    assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]

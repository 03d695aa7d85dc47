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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sidecar", "versions"),
    [(Sidecar.NATIVE, (NATIVE, NEWEST)), (Sidecar.CONTAINER, (OLDEST, NEWEST))],
)
@pytest.mark.parametrize("audience", [None, "lattice"])
def test_result_is_what_kubernetes_takes(
    kind: str, sidecar: Sidecar, versions: tuple[str, str], audience: str | None
) -> None:
    options = Options(
        server=OPTIONS.server, sidecar=sidecar, token_audience=audience, ca="trust:root.pem"
    )
    text = inject(manifest(kind), options).text
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


@pytest.mark.parametrize("mode", [Mode.PROXY])
@pytest.mark.parametrize("sidecar", Sidecar)
@pytest.mark.parametrize("kind", KINDS)
def test_injecting_again_changes_nothing(kind: str, sidecar: Sidecar, mode: Mode) -> None:
    options = Options(server=OPTIONS.server, sidecar=sidecar, mode=mode, ca="trust")
    once = inject(manifest(kind), options)
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


def test_ordinary_sidecar_refuses_what_it_cannot_serve() -> None:
    text = manifest("Job", POD_SPEC.replace("Never", "OnFailure"))
    with pytest.raises(ConfigurationError, match="OnFailure"):
        inject(text, Options(server=OPTIONS.server, sidecar=Sidecar.CONTAINER))
    inject(text, OPTIONS)


@pytest.mark.parametrize(
    "changes", [{"ttl": "soon"}, {"allow": ("10.96.0.7",)}, {"allow": ("a b:1",)}]
)
def test_options_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
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

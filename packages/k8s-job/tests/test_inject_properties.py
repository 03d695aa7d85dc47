"""Injection over manifests that nobody thought of."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lattice_k8s_job.inject import Options, inject
from lattice_k8s_job.inject.containers import agent_variables
from lattice_k8s_job.layout import Mode, Sidecar
from lattice_sdk import ConfigurationError

NAMES = st.sampled_from(["agent", "tool", "no", "yes", "null", "a-1", "7up"])
# What YAML readers disagree about, or what needs quotes.
TEXTS = st.sampled_from(
    [
        "on",
        "no",
        "1e3",
        "0644",
        "012",
        "1:20",
        "~",
        "a: b",
        "# x",
        "'",
        '"',
        "",
        " x ",
        "é",
        "{}",
        "- y",
    ]
) | st.text("abc #:'\"\\{}[]\n&*!|>%@`é", max_size=12)

VARIABLE = st.fixed_dictionaries({"name": st.sampled_from(["MODE", "N", "PATH_X"]), "value": TEXTS})
VARIABLES = st.lists(VARIABLE, min_size=1, max_size=3, unique_by=lambda one: one["name"])
SECURITY = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "runAsUser": st.just(1000),
        "allowPrivilegeEscalation": st.booleans() | st.none(),
        "privileged": st.just(False),
        "capabilities": st.sampled_from(
            [None, {}, {"drop": ["ALL"]}, {"drop": ["NET_RAW", "KILL"]}, {"drop": []}, {"add": []}]
        ),
    },
)
CONTAINER = st.fixed_dictionaries(
    {"name": NAMES, "image": st.sampled_from(["agent:1", "r.example/a@sha256:0"])},
    optional={
        "command": st.lists(TEXTS, min_size=1, max_size=3),
        "env": VARIABLES,
        "resources": st.just({"limits": {"cpu": "1", "memory": "1Gi"}}),
        "ports": st.just([{"containerPort": 8080}]),
        "securityContext": SECURITY,
    },
)
CONTAINERS = st.lists(CONTAINER, min_size=1, max_size=3, unique_by=lambda one: one["name"])
SPEC = st.fixed_dictionaries(
    {"containers": CONTAINERS},
    optional={
        "restartPolicy": st.just("Never"),
        "volumes": st.just([{"name": "data", "emptyDir": {}}]),
        "nodeSelector": st.just({"disk": "ssd"}),
        "terminationGracePeriodSeconds": st.just(60),
        "shareProcessNamespace": st.booleans(),
    },
)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    spec = draw(SPEC)
    if draw(st.booleans()):
        names = {one["name"] for one in spec["containers"]}
        starters = [one for one in draw(CONTAINERS) if one["name"] not in names]
        if starters:
            items = [("initContainers", starters), *spec.items()]
            spec = dict(draw(st.permutations(items)))
    template: dict[str, Any] = {"spec": spec}
    if draw(st.booleans()):
        template = {"metadata": {"labels": {"app": draw(NAMES)}}, **template}
    kind = draw(st.sampled_from(["Job", "Deployment", "Pod"]))
    metadata = {"name": draw(NAMES)}
    if kind == "Pod":
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}
    version = "batch/v1" if kind == "Job" else "apps/v1"
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": metadata,
        "spec": {"template": template},
    }


class Dumper(yaml.SafeDumper):
    """Indents sequences below their key, or not."""

    offset = 0

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless and not self.offset)


@st.composite
def texts(draw: st.DrawFn, *, brackets: bool = True) -> str:
    """A manifest as somebody would have written it, with comments between any two lines."""

    class Style(Dumper):
        offset = draw(st.sampled_from([0, 2]))

    text = yaml.dump(
        draw(manifests()),
        Dumper=Style,
        indent=draw(st.sampled_from([2, 4])) if Style.offset == 0 else 2,
        sort_keys=False,
        allow_unicode=True,
        width=draw(st.sampled_from([20, 200])),
        default_flow_style=draw(st.sampled_from([False, None] if brackets else [False])),
    )
    lines: list[str] = []
    for number, line in enumerate(text.splitlines()):
        indent = " " * draw(st.sampled_from([0, len(line) - len(line.lstrip())]))
        # Not in the middle of a value that goes over several lines.
        starts = line.lstrip().startswith("- ") or ":" in line.partition(" #")[0]
        if starts and (not lines or lines[-1].rstrip().endswith((":", "x", "1"))):
            lines += draw(st.sampled_from([[], [], [], [f"{indent}# above {number}"], [""]]))
        if draw(st.integers(0, 7)) == 0 and line.rstrip().endswith(":"):
            line += f"   # beside {number}"
        lines.append(line)
    commented = "\n".join(lines) + "\n"
    # A comment within a folded value would be part of it.
    return commented if read(commented) == read(text) else text


def read(text: str) -> Any:
    return yaml.safe_load(text)


def template_of(document: Any) -> Any:
    return document if document["kind"] == "Pod" else document["spec"]["template"]


def containers_of(document: Any) -> list[Any]:
    """Those that are not ours."""
    spec = template_of(document)["spec"]
    found = (*spec["containers"], *spec.get("initContainers", []))
    return [one for one in found if not one["name"].startswith("lattice-")]


def without_ours(document: Any) -> Any:
    """The document as it was before the injection; see :func:`plain`."""
    document = plain(document)
    template = template_of(document)
    spec = template["spec"]
    for key in ("initContainers", "containers", "volumes"):
        if key in spec:
            spec[key] = [one for one in spec[key] if not one["name"].startswith("lattice-")]
            if not spec[key]:
                del spec[key]
    for container in (*spec["containers"], *spec.get("initContainers", [])):
        if "env" in container:
            kept = [one for one in container["env"] if one["name"] not in agent_variables()]
            container["env"] = kept
            if not kept:
                del container["env"]
    labels = template["metadata"]["labels"]
    del labels["lattice.io/agent-managed"]
    if not labels:
        del template["metadata"]["labels"]
    if not template["metadata"]:
        del template["metadata"]
    return document


def plain(document: Any) -> Any:
    """The document without the few fields that injection may set to another value."""
    document = copy.deepcopy(document)
    template_of(document)["spec"].pop("shareProcessNamespace", None)
    for container in containers_of(document):
        security = container.get("securityContext") or {}
        for key in ("allowPrivilegeEscalation", "capabilities"):
            security.pop(key, None)
        if not security:
            container.pop("securityContext", None)
    return document


def without_leftovers(document: Any) -> Any:
    """An injected document without what other options may have left: nothing that gives power."""
    document = plain(document)
    template_of(document)["spec"]["volumes"].sort(key=lambda one: one["name"])
    for container in containers_of(document):
        if container.get("env") == []:
            del container["env"]
    return document


OPTIONS = st.sampled_from(
    [
        Options(server="https://lattice.example.com"),
        Options(server="https://lattice.example.com", sidecar=Sidecar.CONTAINER, ca="trust"),
        Options(server="https://lattice.example.com", token_audience="lattice"),
        Options(
            server="https://lattice.example.com",
            mode=Mode.INTERFACE,
            allow_networks=("10.20.0.0/16",),
        ),
        Options(
            server="https://lattice.example.com", mode=Mode.INTERFACE, sidecar=Sidecar.CONTAINER
        ),
    ]
)
PROPERTY = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@PROPERTY
@given(texts(), OPTIONS)
def test_nothing_but_ours_is_added(text: str, options: Options) -> None:
    after = inject(text, options).text
    assert without_ours(read(after)) == plain(read(text))


@PROPERTY
@given(texts(), OPTIONS)
def test_no_container_of_others_has_power_over_the_lock(text: str, options: Options) -> None:
    after = read(inject(text, options).text)
    for container in containers_of(after):
        if options.mode is Mode.INTERFACE:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"]["drop"] == ["ALL"]
            assert not security["capabilities"].get("add")
            assert agent_variables().isdisjoint(one["name"] for one in container.get("env") or [])
    if options.mode is Mode.PROXY:
        before = {one["name"]: one.get("securityContext") for one in containers_of(read(text))}
        assert before == {one["name"]: one.get("securityContext") for one in containers_of(after)}


# Lines of values that injection sets: those that mode interface, or an ordinary sidecar, is about.
SET = {
    "shareProcessNamespace: false",
    "securityContext: null",
    "securityContext: {}",
    "allowPrivilegeEscalation: true",
    "allowPrivilegeEscalation: null",
    "capabilities: null",
    "capabilities: {}",
    "drop: []",
    "NET_RAW",
    "KILL",
}


@PROPERTY
@given(texts(brackets=False), OPTIONS)
def test_every_line_stays_and_in_order(text: str, options: Options) -> None:
    rest = iter(inject(text, options).text.splitlines())
    kept = [line for line in text.splitlines() if line.strip().removeprefix("- ") not in SET]
    assert [line for line in kept if line not in rest] == []


@PROPERTY
@given(texts(), OPTIONS, OPTIONS)
def test_again_changes_nothing_whatever_was_before(
    text: str, first: Options, options: Options
) -> None:
    once = inject(inject(text, first).text, options).text
    assert inject(once, options).text == once
    assert without_leftovers(read(once)) == without_leftovers(read(inject(text, options).text))


@PROPERTY
@given(st.lists(texts(), min_size=2, max_size=3), OPTIONS)
def test_documents_do_not_touch_each_other(parts: list[str], options: Options) -> None:
    together = inject("---\n".join(parts), options).text
    assert together == "---\n".join(inject(part, options).text for part in parts)


@PROPERTY
@given(st.text("ab:-#\n \"'{}[],&*|>\t\r%.", max_size=60), OPTIONS)
def test_any_text_is_kept_or_refused_with_a_sentence(text: str, options: Options) -> None:
    try:
        after = inject(text, options).text
    except ConfigurationError as refusal:
        after = text if refusal.hint else ""
    assert after == text

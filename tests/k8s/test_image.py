"""The image of the two containers: what is in it, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from support.images import build_offline, server_image
from support.node import Node

pytestmark = [pytest.mark.pods, pytest.mark.slow, pytest.mark.timeout(240, func_only=True)]

LIST = """
import json, os, sys
from importlib.metadata import distributions
from pathlib import Path
found = {"user": os.getuid(), "writable": [], "programs": []}
installed = distributions(path=["/opt/lattice/lib"])
found["packages"] = sorted(f"{one.name} {one.version}" for one in installed)
for directory in ("/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin"):
    if os.path.isdir(directory):
        found["programs"] += os.listdir(directory)
for path in Path("/opt/lattice").rglob("*"):
    if os.access(path, os.W_OK):
        found["writable"].append(str(path))
engine = "/opt/lattice/lib/lattice_engine/_bin/lattice-engine"
found["engine"] = [os.access(engine, os.R_OK), os.access(engine, os.X_OK)]
print(json.dumps(found))
"""


# Megabytes that an image may add to its base: half as much again as it did when this was written.
# Every node pulls it before its first pod starts. The engine, and wheels that pods need, are what
# is in it; who adds so much more has added something else, or means to and changes this.
MOST = {"lattice-k8s-job": 100, "lattice-server": 160}


def in_image(node: Node, *arguments: str, entrypoint: str = "/usr/bin/python3") -> str:
    options = ("--rm", "--network=none", "--read-only", "--cap-drop=all")
    return node.podman(
        "run", *options, f"--entrypoint={entrypoint}", node.images.lattice, *arguments
    )


@pytest.fixture(scope="module")
def found(node: Node) -> dict[str, object]:
    return json.loads(in_image(node, "-c", LIST))


def test_image_needs_no_root_no_shell_and_no_writable_files(found: dict[str, object]) -> None:
    assert found["user"] == 64206
    assert found["writable"] == []
    programs = found["programs"]
    assert isinstance(programs, list)
    assert "python3" in programs
    assert not set(programs) & {"sh", "bash", "dash", "busybox", "perl", "pip"}
    assert found["engine"] == [False, True], "an engine that can be read can be looked into"


def test_labels_say_what_it_is(node: Node) -> None:
    (image,) = json.loads(node.podman("inspect", node.images.lattice))
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in image["Config"]["Labels"].items()
    }
    assert labels["title"] == "lattice-k8s-job"
    assert labels["licenses"] == "Apache-2.0"
    assert {"version", "revision", "created", "description"} <= set(labels)
    assert image["Config"]["User"] == "64206:64206"
    assert labels["io.lattice.sbom"] == "/opt/lattice/sbom.spdx.json"


def test_bill_of_materials_is_valid_and_complete(
    node: Node, found: dict[str, object], tmp_path: Path
) -> None:
    read = "print(open('/opt/lattice/sbom.spdx.json').read())"
    file = tmp_path / "sbom.spdx.json"
    file.write_text(in_image(node, "-c", read))
    document = parse_file(str(file))
    assert validate_full_spdx_document(document) == []
    described = {f"{one.name} {one.version}" for one in document.packages}
    packages = found["packages"]
    assert isinstance(packages, list)
    assert set(packages) <= described
    assert "lattice-k8s-job 0.1.0" in described
    modules = {one.name for one in document.packages}
    assert {"golang.zx2c4.com/wireguard", "gvisor.dev/gvisor", "go"} <= modules


NO_NETWORK = """
import socket
names = [name for _, name in socket.if_nameindex()]
assert names == ["lo"], f"a step of a build has a network: {names}"
try:
    socket.create_server(("127.0.0.1", 0))
    socket.create_connection(("127.0.0.1", 1))
except OSError as error:
    assert "unreachable" in str(error), error
"""


def test_builds_have_no_network(node: Node, tmp_path: Path) -> None:
    step = json.dumps(["/usr/bin/python3", "-c", NO_NETWORK])
    (tmp_path / "Containerfile").write_text(f"FROM {node.images.base}\nRUN {step}\n")
    build_offline(
        node.podman, "--no-cache", "--tag", "localhost/lattice-test-offline", str(tmp_path)
    )
    node.podman("rmi", "localhost/lattice-test-offline")


def test_commands_of_the_image_work(node: Node) -> None:
    entry = "/opt/lattice/bin/entrypoint"
    assert "usage: lattice-k8s" in in_image(node, "--help", entrypoint=entry)
    assert "lattice" in in_image(node, "version", entrypoint="/opt/lattice/bin/lattice")


@pytest.mark.parametrize("name", MOST)
def test_images_are_small(
    node: Node, name: str, record_property: Callable[[str, object], None]
) -> None:
    image = node.images.lattice if name == "lattice-k8s-job" else server_image(node.podman)
    assert name in image
    whole, base = (megabytes(node, one) for one in (image, node.images.base))
    told = f"{name}: {whole:.0f} MB, of which {base:.0f} MB are the base's"
    print(told)
    record_property("megabytes", round(whole, 1))
    assert whole - base <= MOST[name], f"{told}; it may add {MOST[name]} MB"


def megabytes(node: Node, image: str) -> float:
    """An image's size, unpacked."""
    return int(node.podman("image", "inspect", image, "--format", "{{.Size}}")) / 1e6

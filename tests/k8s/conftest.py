"""What the pod tests share: a node, and a fabric that pods on it can reach."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lattice_sdk.testing.world import World, start_world
from support.node import NODE_IP, Node, start_node


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    with start_node() as node:
        yield node


@pytest.fixture(scope="session")
def fabric(node: Node) -> Iterator[World]:
    with (
        tempfile.TemporaryDirectory(prefix="pods-") as name,
        start_world(Path(name), NODE_IP) as world,
    ):
        yield world

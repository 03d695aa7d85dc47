"""Sandboxes for the launcher's tests: as root and as an ordinary user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.sandboxes import Sandbox, users


@pytest.fixture(scope="module", params=users(), ids=lambda uid: f"uid {uid}")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One that no test breaks."""
    with Sandbox(request.param) as made:
        yield made


@pytest.fixture(params=users(), ids=lambda uid: f"uid {uid}")
def own_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One of the test's own."""
    with Sandbox(request.param) as made:
        yield made

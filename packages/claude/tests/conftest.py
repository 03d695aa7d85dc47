"""A model behind the tunnel, and options for the real claude command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions

from lattice_sdk.testing import World
from support.model import ScriptedModel, claude_environment

MODEL_URL = "http://claude-model.lattice"
Options = Callable[..., ClaudeAgentOptions]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def served_model(lattice_world: World) -> Iterator[ScriptedModel]:
    with ScriptedModel() as model, lattice_world.service("claude-model", model.target):
        yield model


@pytest.fixture
def model(served_model: ScriptedModel) -> ScriptedModel:
    """A designated tool service; a test gives it its script."""
    served_model.script = []
    served_model.requests.clear()
    return served_model


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Options for a command that reads no settings of this machine; its model is in the tunnel."""

    def make(**changes: Any) -> ClaudeAgentOptions:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        environment = claude_environment(home, changes.pop("url", MODEL_URL))
        given: dict[str, Any] = {
            "cwd": home,
            "setting_sources": [],
            "permission_mode": "bypassPermissions",
            **changes,
            "env": {**environment, **changes.get("env", {})},
        }
        return ClaudeAgentOptions(**given)

    return make

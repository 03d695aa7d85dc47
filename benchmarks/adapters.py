"""Adapters: what an identity costs a run of each framework, over framework and SDK alone."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fabrics import connector, fabric
from benchmarks.report import Section

ROOT = Path(__file__).parent.parent
SIZES = {"full": 9, "quick": 2, "tiny": 1}  # rounds
STEPS = {"full": ("1000", "7"), "quick": ("200", "3")}  # of the graph, and rounds
STEPS_AIMED_AT, OVERHEAD = 1000, 2  # steps, and per cent over a graph without an identity
NOISE = (
    "as far as *bare again* is from zero it is the machine's noise; the rest is one look-up of the "
    "agent in the run's context for each step that asks. It would take a machine that does nothing "
    "else, and for the look-up a step that keeps its agent"
)
ONE = """
import sys
from benchmarks.adapters import one
one(*sys.argv[1:])
"""


@dataclass(frozen=True)
class Adapter:
    """Where an adapter is driven by the contract suite; the same driver is timed here.

    Attributes:
        environment: folder of its interpreter.
        file: below tests/contract.
        name: of its class there.
        share: of the rounds that it gets; a command that starts takes seconds.
        model: whether it needs a model that speaks like Claude's.
    """

    environment: str
    file: str
    name: str
    share: float = 1
    model: bool = False


ADAPTERS = {
    "LangGraph": Adapter(".venv", "test_langgraph.py", "LangGraph"),
    "AutoGen, classic": Adapter(".venvs/autogen-classic", "test_autogen_classic.py", "Classic"),
    "AutoGen, agentchat": Adapter(
        ".venvs/autogen-agentchat", "test_autogen_agentchat.py", "AgentChat"
    ),
    "AutoGen, ag2": Adapter(".venvs/autogen-ag2", "test_autogen_ag2.py", "Ag2"),
    "Claude": Adapter(".venv", "test_claude.py", "Claude", 0.3, model=True),
}


def measure(size: str) -> Section:
    """A run with no work: of the framework, of the SDK alone, and of both by the adapter."""
    section = Section("Adapters: a run that does nothing")
    with fabric() as (running, settings), contextlib.ExitStack() as stack:
        for name, adapter in list(ADAPTERS.items())[: 1 if size == "tiny" else None]:
            interpreter = ROOT / adapter.environment / "bin" / "python"
            if not interpreter.exists():
                section.remarks.append(
                    f"{name} was not measured: {adapter.environment} is missing; "
                    "`make environments` makes it."
                )
                continue
            if adapter.model:
                stack.enter_context(_model(running))
            rounds = max(1, round(SIZES[size] * adapter.share))
            _add(section, name, _timed(interpreter, adapter, settings, rounds))
    if size in STEPS:
        _graph_steps(section, *STEPS[size])
    section.remarks.append(
        "The Kubernetes adapter is measured by benchmarks/pods.py, from a pod's creation to its "
        "first output, with the injection and without: it needs what whole pods need."
    )
    return section


def _timed(
    interpreter: Path, adapter: Adapter, settings: dict[str, Any], rounds: int
) -> dict[str, list[float]]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    done = subprocess.run(
        [str(interpreter), "-c", ONE, adapter.file, adapter.name, str(rounds)],
        env={**os.environ, "PYTHONPATH": paths},
        input=json.dumps({**settings, "backend": "userspace", "isolation": "proxy"}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(file: str, name: str, rounds: str) -> None:
    """Time one adapter in this interpreter; settings come from standard input."""
    from lattice_sdk import LatticeAgent

    settings = json.load(sys.stdin)
    spec = importlib.util.spec_from_file_location("driven", ROOT / "tests" / "contract" / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["driven"] = module
    spec.loader.exec_module(module)
    adapter = getattr(module, name)()

    def alone() -> None:
        with LatticeAgent(**settings):
            pass

    ways: dict[str, Callable[[], object]] = {
        "framework": lambda: adapter.plain(lambda: None),
        "sdk": alone,
        "adapter": lambda: adapter.run(settings, lambda _: None),
    }
    with LatticeAgent(**settings):  # keeps the engine running
        for way in ways.values():
            way()
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(int(rounds)):
            for way, work in ways.items():
                started = time.perf_counter()
                work()
                taken[way].append(time.perf_counter() - started)
    print(json.dumps(taken))


def _add(section: Section, name: str, taken: dict[str, list[float]]) -> None:
    ms = {way: [value * 1000 for value in values] for way, values in taken.items()}
    section.add(f"{name}: the framework alone", ms["framework"], "ms")
    section.add(f"{name}: the SDK alone (open and close)", ms["sdk"], "ms")
    section.add(f"{name}: by the adapter", ms["adapter"], "ms")
    rest = statistics.median(ms["adapter"]) - sum(
        statistics.median(ms[way]) for way in ("framework", "sdk")
    )
    section.add(f"{name}: the adapter over both", rest, "ms")


def _graph_steps(section: Section, steps: str, rounds: str) -> None:
    command = [sys.executable, "-m", "benchmarks.langgraph_overhead"]
    command += ["--steps", steps, "--rounds", rounds]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    for way in ("invoke", "ainvoke"):
        for name in ("bare_again", "identity", "identity_asked_for_in_each_step"):
            one = found[way]["processor_time"][name]
            told = f"LangGraph, {way}, {steps} steps: {name.replace('_', ' ')}, over bare"
            value = one["overhead_of_medians_percent"]
            # Few steps do not tell: what a run has once weighs more than what a step has.
            if name == "bare_again" or int(steps) < STEPS_AIMED_AT:
                section.add(told, value, "%")
            else:
                section.at_most(told, value, "%", OVERHEAD, note=NOISE)


@contextlib.contextmanager
def _model(running: Any) -> Any:
    sys.path.insert(0, str(ROOT / "tests"))
    from support.model import ScriptedModel, call, echo

    script = [[call("mcp__agent__work")], echo]
    with ScriptedModel(*script) as model, connector(running, "claude-model", {80: model.target}):
        yield

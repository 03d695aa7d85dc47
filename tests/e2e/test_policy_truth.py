"""A truth table of the policy, generated: after each step the real gateway does as the model says.

Random workspaces, presets, services, agents, delegations, renewals, revocations and changes of the
policy; flows are sampled and sent as real packets through real tunnels. ``LATTICE_TRUTH_EXAMPLES``
makes it longer.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import lattice_server
from lattice_server.fabric import Fabric
from support.truth_machine import PolicyMachine, Truth

EXAMPLES = int(os.environ.get("LATTICE_TRUTH_EXAMPLES", "6"))
STEPS = 14


def run(directory: Path, examples: int, expiries: int = 0) -> None:
    """Run examples of the machine, the same ones each time, on a fabric of their own."""
    with ExitStack() as stack:
        fabric = stack.enter_context(Fabric(directory, server_options={"gateway_wait": 10}))
        truth = Truth(stack, fabric, expiries)
        run_state_machine_as_test(
            type("TruthTable", (PolicyMachine,), {"truth": truth}),
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=True,
                database=None,
                report_multiple_bugs=False,
                # A step takes a tenth of a second and more: what fails is told as it is.
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gateways_verdicts_are_the_models(tmp_path: Path) -> None:
    run(tmp_path / "fabric", EXAMPLES, expiries=2)


# What a programmer may get wrong: a file of the control plane, what is there, what it becomes.
MUTANTS = {
    "a wrong port": (
        "policy.py",
        'Grant(service.address, "udp" if protocol == "udp" else "tcp", port)',
        'Grant(service.address, "udp" if protocol == "udp" else "tcp", port + 1)',
    ),
    "designation forgotten": (
        "presets.py",
        "(designated and SERVICES in self.egress)",
        "(SERVICES in self.egress)",
    ),
    "a comparison turned": (
        "policy.py",
        "asked.subnet_of(IPv4Network(network))",
        "IPv4Network(network).overlaps(asked) or not asked.is_loopback",
    ),
    "a forgotten revoke": (
        "endings.py",
        "control.hub.publish(touched, gone)",
        "control.hub.publish(touched, gone[1:])",
    ),
    "a parent forgotten": (
        "attenuation.py",
        "while above is not None:",
        "while False:",
    ),
    "a change of policy that nobody is told": (
        "workspace_policy.py",
        "control.hub.publish(touched)",
        "control.hub.publish(touched[:0])",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_control_plane_is_caught(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, before, after = MUTANTS[name]
    package = tmp_path / "mutant" / "lattice_server"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(lattice_server.__file__).parent, package, ignore=ignored)
    text = (package / file).read_text()
    assert text.count(before) == 1, f"{file} is not what the mutant was made for"
    (package / file).write_text(text.replace(before, after))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    with pytest.raises(AssertionError, match=r"passes|refused|goes on|broke|201"):
        run(tmp_path / "fabric", EXAMPLES)

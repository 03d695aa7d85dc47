"""A truth table of the policy, generated: after each step the real gateway does as the model says.

Random workspaces, presets, services, agents, delegations, renewals, revocations and changes of the
policy; flows are sampled and sent as real packets through real tunnels.
``LATTICE_TEST_TRUTH_EXAMPLES`` makes it longer, ``LATTICE_TEST_TRUTH_SEED`` another one;
the same seed is the same steps.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

import lattice_server
from lattice_server.fabric import Fabric
from support.truth_machine import PolicyMachine, Truth

EXAMPLES = int(os.environ.get("LATTICE_TEST_TRUTH_EXAMPLES", "4"))
SEED = int(os.environ.get("LATTICE_TEST_TRUTH_SEED", "1"))
STEPS = 14
PACKAGE = Path(lattice_server.__file__).parent


def run(directory: Path, examples: int, number: int, expiries: int = 0) -> None:
    """Run examples of the machine on a fabric of their own; ``number`` is their seed."""
    with ExitStack() as stack:
        patient = {"gateway_wait": 10, "delete_wait": 10}
        fabric = stack.enter_context(Fabric(directory, server_options=patient))
        truth = Truth(stack, fabric, expiries)
        run_state_machine_as_test(
            seed(number)(type("TruthTable", (PolicyMachine,), {"truth": truth})),
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
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
    run(tmp_path / "fabric", EXAMPLES, SEED, expiries=2)


@dataclass(frozen=True)
class Mutant:
    """What a programmer may get wrong.

    Attributes:
        file: of the control plane.
        before: what is there.
        after: what it becomes.
        seed: of examples that come to it early.
        caught: what the failure says.
        expiries: how many identities are waited for to the end.
    """

    file: str
    before: str
    after: str
    seed: int = 4
    caught: str = r": (passes |refused |the connection goes on|the connection broke)"
    expiries: int = 0


LENGTH = 8  # examples in which a mutant is to be caught
MUTANTS = {
    "a wrong port": Mutant(
        "policy.py",
        'Grant(service.address, "udp" if protocol == "udp" else "tcp", port)',
        'Grant(service.address, "udp" if protocol == "udp" else "tcp", port + 1)',
    ),
    "designation forgotten": Mutant(
        "presets.py",
        "(designated and SERVICES in self.egress)",
        "(SERVICES in self.egress)",
    ),
    "a network beside the connector's": Mutant(
        "policy.py",
        "asked.subnet_of(IPv4Network(network))",
        "IPv4Network(network).overlaps(asked) or not asked.is_loopback",
    ),
    ">= for <=": Mutant(
        "attenuation.py",
        "one.egress - {ALLOW} <= other.egress",
        "one.egress - {ALLOW} >= other.egress",
        caught="delegated",
    ),
    "a forgotten revoke": Mutant(
        "endings.py",
        "control.hub.publish(touched, gone)",
        "control.hub.publish(touched, gone[1:])",
    ),
    "a parent forgotten": Mutant(
        "attenuation.py",
        "at = one.parent",
        "at = None",
    ),
    "a life in the wrong unit": Mutant(
        "hub.py",
        "(self.expires_at - now) / 1000:.3f",
        "(self.expires_at - now) / 100:.3f",
        caught=": passes ",
        expiries=2,
    ),
    "a renewal that the gateway is not told of": Mutant(
        "publication.py",
        "[own] = await peer_objects(tx.connection, peer.workspace_id, [peer], now",
        "told = before if before and before.public_key == peer.public_key else peer\n"
        "    [own] = await peer_objects(tx.connection, peer.workspace_id, [told], now",
        caught=": neither connected nor refused",
        expiries=2,
    ),
    "a change of policy that nobody is told": Mutant(
        "workspace_policy.py",
        "control.hub.publish(touched)",
        "control.hub.publish(touched[:0])",
    ),
}


def mutated(mutant: Mutant, package: Path) -> str:
    """The text of the mutant's file.

    Args:
        mutant: what changes.
        package: of the control plane as it is.
    """
    text = (package / mutant.file).read_text()
    assert text.count(mutant.before) == 1, f"{mutant.file} is not what the mutant was made for"
    return text.replace(mutant.before, mutant.after)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_control_plane_is_what_its_mutants_were_made_for(mutant: Mutant) -> None:
    """Not slow, so that who changes a line is told at once that a mutant needs it."""
    compile(mutated(mutant, PACKAGE), mutant.file, "exec")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_control_plane_is_caught(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = MUTANTS[name]
    package = copied(tmp_path, monkeypatch)
    (package / mutant.file).write_text(mutated(mutant, package))
    with pytest.raises(AssertionError, match=mutant.caught):
        run(tmp_path / "fabric", LENGTH, mutant.seed, mutant.expiries)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "expiries"), sorted({(one.seed, one.expiries) for one in MUTANTS.values()})
)
def test_what_catches_the_mutants_finds_nothing_without_one(
    number: int, expiries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(tmp_path, monkeypatch)
    run(tmp_path / "fabric", LENGTH, number, expiries)


def copied(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the control plane, which is the one that a fabric starts from now on."""
    package = directory / "mutant" / "lattice_server"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return package

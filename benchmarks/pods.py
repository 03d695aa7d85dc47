"""What an identity costs a pod: ``python -m benchmarks.pods [--rounds N]``, as root, with podman.

A pod is made and started as the tests of whole pods do it (tests/support/pods.py), once as somebody
wrote it and once for each mode of the injection. The images are built before, and are there.
Prints Markdown. Not a part of the suite: that needs neither root nor a container runtime.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report

sys.path.insert(0, str(report.ROOT / "tests"))

from lattice_k8s_job.layout import Mode
from lattice_sdk.testing.world import World, start_world
from support.jobs import job
from support.node import NODE_IP, Node

# One that prints at once, so that what is measured is the way there.
AGENT = {"command": ["/usr/bin/python3", "-c", "print('ready')"]}
WAYS: dict[str, dict[str, Any]] = {
    "without Lattice": {"injected": False},
    **{f"mode {mode}": {"options": {"mode": mode}} for mode in Mode},
}


def one(node: Node, world: World, way: dict[str, Any]) -> tuple[float, float]:
    """A pod's life.

    Returns:
        Seconds from its creation to the first output of the agent's container, and from the end of
        that container to the pod's.
    """
    with job(node, world, name="bench", container=AGENT, **way) as pod:
        began = time.time()
        pod.start()
        pod.wait()
        agent = pod.ended_at("agent")
        ended = max(pod.ended_at(name) for name in (*pod.native, *pod.regular))
        return pod.printed_at("agent") - began, ended - agent


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pods", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with (
        Node() as node,
        tempfile.TemporaryDirectory(prefix="pods-") as directory,
        start_world(Path(directory), NODE_IP) as world,
    ):
        described = report.machine()
        one(node, world, {})  # podman unpacks an image when it is used first
        for _ in range(rounds):
            # By turns, so that what else the machine does falls on all of them.
            for name, way in WAYS.items():
                found[name].append(one(node, world, way))
    print(_markdown(found, described))


def _markdown(found: dict[str, list[tuple[float, float]]], described: dict[str, Any]) -> str:
    lines = [
        f"{described['cores']} cores ({described['processor']}), kernel {described['kernel']}, "
        f"{described['revision']}; others took {described['busy_before_percent']:.0f} % of the "
        "processors before.",
        "",
        "| pod | creation to first output | over without | agent's end to the pod's | rounds |",
        "| --- | --- | --- | --- | --- |",
    ]
    base = statistics.median(first for first, _ in found["without Lattice"])
    for name, rounds in found.items():
        firsts, ends = zip(*rounds, strict=True)
        first = statistics.median(firsts)
        lines.append(
            f"| {name} | {first:.2f} s ({min(firsts):.2f} to {max(firsts):.2f}) "
            f"| {first - base:.2f} s | {statistics.median(ends):.2f} s | {len(rounds)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

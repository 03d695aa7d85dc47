"""What the cluster's network does with a NetworkPolicy: packets of a pod, dropped outside of it.

https://kubernetes.io/docs/concepts/services-networking/network-policies/: what no rule names is
dropped, and what the pod's own node sends, such as probes, always passes.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

from support.node import NODE_IP
from support.pods import Pod

TABLE = "lattice-pods"


@contextlib.contextmanager
def enforced(policy: dict[str, Any], pod: Pod, others: Iterable[Pod]) -> Iterator[None]:
    """Hold the packets of ``pod``, which has its network already, to ``policy`` until the end.

    Args:
        policy: a NetworkPolicy.
        pod: that it selects.
        others: that its rules may select.
    """
    assert _selected(policy["spec"]["podSelector"], pod), "the policy is not for this pod"
    assert policy["spec"]["policyTypes"] == ["Egress", "Ingress"]
    assert "ingress" not in policy["spec"]
    accept = ["ether type arp accept"]
    for rule in policy["spec"]["egress"]:
        ports = [f"{port['protocol'].lower()} dport {port['port']}" for port in rule["ports"]]
        for peer in rule["to"]:
            for other in others:
                if _selected(peer["podSelector"], other):
                    accept += [f"ip daddr {other.ip} {port} accept" for port in ports]
    answers = [rule.replace("daddr", "saddr").replace("dport", "sport") for rule in accept]
    # Answers to the node, and what the node asks; not what the pod begins.
    accept.append(f"ip daddr {NODE_IP} tcp flags & (syn | ack) != syn accept")
    answers.append(f"ip saddr {NODE_IP} tcp dport {pod.health_port} accept")
    text = f"table netdev {TABLE} {{\n"
    for hook, rules in (("ingress", accept), ("egress", answers)):
        text += f' chain {hook} {{\n  type filter hook {hook} device "{pod.device}" priority 0;'
        text += " policy drop;\n" + "".join(f"  {rule}\n" for rule in rules) + " }\n"
    _nft("-f", "-", text=f"{text}}}\n")
    try:
        yield
    finally:
        _nft("delete", "table", "netdev", TABLE)


def _selected(selector: dict[str, Any], pod: Pod) -> bool:
    wanted: dict[str, str] = selector["matchLabels"]
    return wanted.items() <= pod.labels.items()


def _nft(*arguments: str, text: str = "") -> None:
    done = subprocess.run(
        ["nft", *arguments], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stderr}\n{text}"

"""``lattice-k8s``: the roles of the image, one for each container.

Of a pod's first process the kernel drops signals that nobody handles, so the handler comes before
everything that takes time to import.
"""

from __future__ import annotations

import sys

from lattice_k8s_job.ending import Ending

USAGE = """\
usage: lattice-k8s init|sidecar|wait

The two containers of Lattice in a pod. Their settings are in the environment, where
`lattice k8s inject` puts them.
  init      enrolls the pod, leaves the identity in the shared volume and ends
  sidecar   takes the identity up and keeps it until the pod ends
  wait      ends once the sidecar is ready
"""


def main() -> None:
    """The command."""
    ending = Ending()
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"]):
        print(USAGE, end="")
        return
    if arguments == ["wait"]:
        from lattice_k8s_job.wait import wait

        sys.exit(wait())
    if arguments not in (["init"], ["sidecar"]):
        print(USAGE, end="", file=sys.stderr)
        sys.exit(2)
    from lattice_k8s_job.roles import run

    sys.exit(run(arguments[0], ending))

"""A root agent that tries to get past its pod's tunnel, and a neighbour to be reached past it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from lattice_k8s_job.layout import USER_ID
from support.node import NODE_IP
from support.pods import Pod

ESCAPES = (Path(__file__).parent / "escapes.py").read_text()


@contextlib.contextmanager
def neighbour() -> Iterator[tuple[int, int]]:
    """A program on the node that answers, by TCP and by UDP; its ports."""
    with (
        socket.create_server((NODE_IP, 0)) as listener,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind((NODE_IP, 0))

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    _, sender = datagrams.recvfrom(100)
                    if sender is None:  # shut down
                        return
                    datagrams.sendto(b"!", sender)

        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()[1], datagrams.getsockname()[1]
        with contextlib.suppress(OSError):
            datagrams.shutdown(socket.SHUT_RDWR)


def arguments(ports: tuple[int, int], other: Pod) -> list[str]:
    """Of escapes.py."""
    return [NODE_IP, *map(str, ports), other.ip, str(USER_ID)]


def try_to_escape(pod: Pod, ports: tuple[int, int], other: Pod) -> dict[str, str]:
    """What each attempt of the agent's container came to; ``True`` is that it worked."""
    command = ("/usr/bin/python3", "-c", ESCAPES, *arguments(ports, other))
    told: dict[str, str] = json.loads(pod.execute("agent", *command))
    return told

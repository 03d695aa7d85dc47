"""A program in an agent's sandbox that listens at its overlay address and keeps a record."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator

from lattice_sdk import LatticeAgent

LISTENER = """
import json, os, selectors, socket
at = json.load(open(os.environ["LATTICE_SANDBOX"]))["overlayIP"]
def record(*what):
    print(json.dumps(what), flush=True)
with socket.create_server((at, 0)) as streams, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
    port = streams.getsockname()[1]
    datagrams.bind((at, port))
    record(port)
    with selectors.DefaultSelector() as ready:
        for each in (streams, datagrams):
            ready.register(each, selectors.EVENT_READ, each)
        while True:
            for key, _ in ready.select():
                if key.data is streams:
                    stream, source = streams.accept()
                    record("tcp", source[0], "")
                    with stream:
                        stream.sendall(b"heard")
                else:
                    text, source = datagrams.recvfrom(4096)
                    record("udp", source[0], text.decode())
                    datagrams.sendto(b"heard", source)
"""


class Record:
    """What has come.

    Attributes:
        address: where to.
        port: by TCP and by UDP.
        seen: protocol, source and text of each datagram and each connection.
    """

    def __init__(self, address: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._lines = process.stdout
        self.address, self.port = address, int(json.loads(self._lines.readline())[0])
        self.seen: list[tuple[str, str, str]] = []
        threading.Thread(target=self._keep, daemon=True).start()

    def of(self, source: str) -> list[tuple[str, str, str]]:
        """What has come from one address."""
        return [each for each in self.seen if each[1] == source]

    def texts(self) -> list[str]:
        """Of all datagrams."""
        return [text for _, _, text in self.seen]

    def _keep(self) -> None:
        for line in self._lines:
            protocol, source, text = json.loads(line)
            self.seen.append((protocol, source, text))


@contextlib.contextmanager
def listening(agent: LatticeAgent) -> Iterator[Record]:
    """Listen in an agent's sandbox until the end of the block."""
    with agent.popen(
        [sys.executable, "-I", "-c", LISTENER], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Record(agent.overlay_ip, process)
        finally:
            process.kill()

"""A tap on the wire: a TCP relay that keeps what goes by, in both directions."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Tap:
    """Context manager. What goes to ``url`` reaches the server and is kept.

    Attributes:
        url: where clients connect to.
        sent: what clients sent.
        received: what the server answered.
        deaf: set it, and clients lose their connections instead of getting answers.
    """

    deaf = False

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._target = (parts.hostname or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent, self.received = bytearray(), bytearray()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Tap:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for one in self._open:
            one.close()

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._open += [client, server]
            self._start(self._relay, client, server, self.sent)
            self._start(self._relay, server, client, self.received)

    def _relay(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    kept += data
                if self.deaf and kept is self.received:
                    break
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

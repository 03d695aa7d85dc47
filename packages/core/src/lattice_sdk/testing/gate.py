"""A front of the control plane that can be closed, so that renewals fail."""

from __future__ import annotations

import contextlib
import socket
import threading

__all__ = ["Gate"]


class Gate:
    """Forwards TCP connections to ``url`` until it is closed, and refuses until it is opened again.

    Attributes:
        url: where it is reached.
    """

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._target = (host, int(port))
        # Does not listen; while it is there, a port that is closed is given to nobody else.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((host, 0))
        self._address = self._reserved.getsockname()
        self._listener = socket.create_server(self._address)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self.url = f"http://{host}:{self._address[1]}"
        threading.Thread(target=self._accept, name="gate", daemon=True).start()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._reserved.close()

    def close(self) -> None:
        """End it with all its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._closed = True
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        """Forward again, where it did before; within the block only."""
        self._closed = False
        self._listener = socket.create_server(self._address)
        threading.Thread(target=self._accept, name="gate", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    upstream = socket.create_connection(self._target, timeout=5)
                except OSError:
                    client.close()
                    continue
                upstream.settimeout(None)
                with self._lock:
                    if self._closed:
                        client.close()
                        upstream.close()
                        return
                    self._connections |= {client, upstream}
                for source, sink in ((client, upstream), (upstream, client)):
                    threading.Thread(
                        target=self._copy, args=(source, sink), name="gate", daemon=True
                    ).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

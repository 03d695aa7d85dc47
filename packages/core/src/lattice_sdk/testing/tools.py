"""A tool service that says who called it, by the PROXY header of its connector."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["ToolService"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes
    server: ToolService

    def setup(self) -> None:
        super().setup()
        # https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt, version 1: one line of text
        words = self.rfile.readline(108).decode("ascii", "replace").split()
        self.client = words[2] if words[:1] == ["PROXY"] and len(words) > 2 else ""

    def do_GET(self) -> None:
        if self.path.startswith("/stream"):
            self.stream()
            return
        answer = {"service": self.server.name, "client": self.client} | self.server.extra
        self.answer(json.dumps(answer).encode(), "application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(body, "application/octet-stream")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self) -> None:
        """An endless body: a chunk each 5 ms until the reader is gone or the service stops."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while not self.server.stopping.wait(0.005):
                self.wfile.write(b"x" * 512)
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        return


class ToolService(ThreadingHTTPServer):
    """A service on a free port of loopback.

    ``GET`` tells its name and the client, ``POST`` echoes, ``GET /stream`` never ends.

    Attributes:
        target: ``HOST:PORT`` for a connector to forward to.
        extra: more fields of the answer to ``GET``; may be changed while it serves.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.extra: dict[str, object] = {}
        self.stopping = threading.Event()
        self.target = f"127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> ToolService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        self._thread.join(5)

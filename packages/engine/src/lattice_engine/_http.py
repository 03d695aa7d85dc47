"""HTTP over the engine's Unix socket: one request a connection, in HTTP/1.0.

That is all of HTTP that the control API needs, and what a program in a hurry has time to load.
"""

from __future__ import annotations

import contextlib
import socket
import time

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHUNK = 1 << 16  # bytes
_LONGEST_HEAD = 1 << 16


class Exchange:
    """A request that has been sent, and its answer.

    Args:
        path: of the socket.
        method: HTTP method.
        target: path and query.
        body: JSON, if there is one.
        timeout: seconds for the whole answer; ``None`` for a stream.
        begun: called with the socket, which may be shut down to end the exchange.

    Attributes:
        status: HTTP status.

    Raises:
        TimeoutError: it took longer.
        OSError: nobody answers there, or not in HTTP.
    """

    def __init__(
        self,
        path: str,
        method: str,
        target: str,
        body: bytes | None,
        timeout: float | None,
        begun: Callable[[socket.socket], None],
    ) -> None:
        self._until = None if timeout is None else time.monotonic() + timeout
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._data = b""
        try:
            begun(self._socket)
            self._bound()
            self._socket.connect(path)
            head = f"{method} {target} HTTP/1.0\r\nHost: engine\r\n"
            if body is not None:
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            with contextlib.suppress(BrokenPipeError):  # it may have answered before it read all
                self._socket.sendall(f"{head}\r\n".encode() + (body or b""))
            self.status = self._read_head()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def content(self) -> bytes:
        """The rest of the answer."""
        while chunk := self._receive():
            self._data += chunk
        return self._data

    def lines(self) -> Iterator[bytes]:
        """The answer's lines as they come."""
        while True:
            *whole, self._data = self._data.split(b"\n")
            yield from whole
            chunk = self._receive()
            if not chunk:
                return
            self._data += chunk

    def _read_head(self) -> int:
        while b"\r\n\r\n" not in self._data:
            chunk = self._receive()
            if not chunk or len(self._data) > _LONGEST_HEAD:
                raise ConnectionError("it does not answer in HTTP")
            self._data += chunk
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1][:3].isdigit():
            raise ConnectionError("it does not answer in HTTP")
        return int(words[1][:3])

    def _receive(self) -> bytes:
        self._bound()
        return self._socket.recv(_CHUNK)

    def _bound(self) -> None:
        if self._until is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)

"""The engine's control API over its Unix socket; synchronous, called by event loops in threads."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading

from lattice_engine._errors import EngineError
from lattice_engine._http import Exchange

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

_OK = 200


class EngineClient:
    """Speaks to one engine. Thread-safe; a forked child cannot use its parent's.

    Args:
        control: path of the engine's ``control.sock``.
        on_request: called before each call.
        explain: called when the engine does not answer; what it returns (why the engine is gone,
            its last log lines) is appended to the error.
    """

    def __init__(
        self,
        control: Path,
        *,
        on_request: Callable[[], None] | None = None,
        explain: Callable[[], str] | None = None,
    ) -> None:
        self.control = control
        self._on_request = on_request
        self._explain = explain
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._streams: set[socket.socket] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"EngineClient({str(self.control)!r})"

    def request(
        self, method: str, path: str, body: object | None = None, *, timeout: float = 30
    ) -> Any:
        """One call of the control API.

        Args:
            method: HTTP method.
            path: path and query, ``/v1/status``.
            body: what is sent as JSON, if anything.
            timeout: seconds until the call is given up.

        Returns:
            The decoded JSON answer, ``None`` for an empty one.

        Raises:
            EngineError: the engine refused (its code and status), or could not be reached.
        """
        if self._on_request is not None:
            self._on_request()
        data = None if body is None else json.dumps(body).encode()
        try:
            with self._exchange(method, path, data, timeout) as exchange:
                status, content = exchange.status, exchange.content()
        except TimeoutError as error:
            raise EngineError(
                "engine_timeout",
                f"the engine did not answer {method} {_route(path)} within {timeout:g} s",
            ) from error
        except OSError as error:
            raise self._unreachable(f"{method} {_route(path)}", error) from None
        return _decode(method, path, status, content)

    def status(self) -> dict[str, Any]:
        """``GET /v1/status``."""
        return self._object("GET", "/v1/status")

    def networks(self) -> dict[str, Any]:
        """What a tunnel can end in on this machine, found out by trying.

        For each of ``netstack``, ``namespace`` and ``interface``: ``able``, and either ``device``
        and ``why`` it is not a better one, or the ``code`` and ``detail`` of what is in the way.
        """
        return self._object("GET", "/v1/networks")

    def start_keeper(self) -> None:
        """Have the namespaces' keeper run before the first of them is needed.

        Raises:
            EngineError: it cannot, with the reasons of :meth:`put_tunnel`.
        """
        self.request("POST", "/v1/keeper")

    def enroll(self, body: dict[str, Any], *, timeout: float = 30) -> dict[str, Any]:
        """Ask a control plane for an identity, once; see the engine's README."""
        return self._object("POST", "/v1/enroll", body, timeout=timeout)

    def put_tunnel(
        self, tunnel: str, body: dict[str, Any], *, timeout: float = 60
    ) -> dict[str, Any]:
        """Make a tunnel; answers once it is proven (or raises ``handshake_timeout``)."""
        return self._object("PUT", f"/v1/tunnels/{_segment(tunnel)}", body, timeout=timeout)

    def patch_tunnel(self, tunnel: str, body: dict[str, Any]) -> dict[str, Any]:
        """Change a tunnel without a break in its connections."""
        return self._object("PATCH", f"/v1/tunnels/{_segment(tunnel)}", body)

    def get_tunnel(self, tunnel: str) -> dict[str, Any]:
        """State and counters of a tunnel; ``tunnel_not_found`` when there is none."""
        return self._object("GET", f"/v1/tunnels/{_segment(tunnel)}")

    def list_tunnels(self) -> list[dict[str, Any]]:
        """All tunnels."""
        return list(self._object("GET", "/v1/tunnels")["tunnels"])

    def delete_tunnel(self, tunnel: str, revoke: bool = False) -> None:
        """Take a tunnel down; also when there is none. ``revoke``: carry out its revoke first."""
        query = "?revoke=true" if revoke else ""
        self.request("DELETE", f"/v1/tunnels/{_segment(tunnel)}{query}")

    def add_forward(self, tunnel: str, body: dict[str, Any]) -> dict[str, Any]:
        """Listen on the overlay address and forward to a target."""
        return self._object("POST", f"/v1/tunnels/{_segment(tunnel)}/forwards", body)

    def delete_forward(self, tunnel: str, forward: str) -> None:
        """End a forward."""
        self.request("DELETE", f"/v1/tunnels/{_segment(tunnel)}/forwards/{_segment(forward)}")

    def put_routes(self, tunnel: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make a connector's tunnel serve exactly these names."""
        return self._object("PUT", f"/v1/tunnels/{_segment(tunnel)}/routes", body)

    def refusals(self, tunnel: str) -> list[dict[str, Any]]:
        """What a connector's tunnel did not carry since the last call."""
        return list(self._object("GET", f"/v1/tunnels/{_segment(tunnel)}/refusals")["refusals"])

    def probe(self, tunnel: str, address: str, timeout: float = 2.0) -> dict[str, Any]:
        """Handshake again and send an ICMP echo through the tunnel; ``timeout`` in seconds."""
        body = {"address": address, "timeout": timeout}
        path = f"/v1/tunnels/{_segment(tunnel)}/probe"
        return self._object("POST", path, body, timeout=timeout + 5)

    def put_state(self, body: dict[str, Any]) -> dict[str, Any]:
        """Replace the gateway's whole desired state."""
        return self._object("PUT", "/v1/state", body, timeout=60)

    def patch_state(self, body: dict[str, Any]) -> dict[str, Any]:
        """Change part of the gateway's desired state."""
        return self._object("PATCH", "/v1/state", body, timeout=60)

    def peers(self) -> list[dict[str, Any]]:
        """The peers that the gateway has programmed."""
        return list(self._object("GET", "/v1/peers")["peers"])

    def events(self) -> Iterator[dict[str, Any]]:
        """The gateway's events as they happen; blocks.

        Ends when :meth:`close` is called from another thread or the engine ends the stream.

        Raises:
            EngineError: the engine cannot be reached, or its stream broke off.
        """
        try:
            with self._exchange("GET", "/v1/events", None, None) as exchange:
                if exchange.status != _OK:
                    _decode("GET", "/v1/events", exchange.status, exchange.content())
                for line in exchange.lines():
                    if line:
                        yield json.loads(line)
        except OSError as error:
            if not self._closed:
                raise self._unreachable("GET /v1/events", error) from None

    def close(self) -> None:
        """End open event streams and calls. The engine itself goes on."""
        with self._lock:
            self._closed = True
            streams, self._streams = self._streams, set()
        if self._owner != os.getpid():
            return  # a shutdown of a socket shared by fork would hit the parent's streams
        for stream in streams:
            # Closing alone does not wake a thread that is blocked in recv; shutdown does.
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def _check_usable(self) -> None:
        if self._owner != os.getpid():
            raise EngineError(
                "engine_closed", "this engine belongs to the parent process: start one of your own"
            )
        if self._closed:
            raise EngineError("engine_closed", "the connection to the engine is closed")

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, body: bytes | None, timeout: float | None
    ) -> Iterator[Exchange]:
        stream: socket.socket | None = None

        def begun(made: socket.socket) -> None:
            nonlocal stream
            with self._lock:
                self._check_usable()
                self._streams.add(made)
                stream = made

        try:
            with Exchange(str(self.control), method, path, body, timeout, begun) as exchange:
                yield exchange
        finally:
            if stream is not None:
                with self._lock:
                    self._streams.discard(stream)

    def _object(
        self, method: str, path: str, body: object | None = None, *, timeout: float = 30
    ) -> dict[str, Any]:
        answer = self.request(method, path, body, timeout=timeout)
        if not isinstance(answer, dict):
            raise EngineError(
                "unexpected_answer",
                f"the engine answered {method} {_route(path)} without an object",
            )
        return answer

    def _unreachable(self, what: str, error: Exception) -> EngineError:
        if self._closed:
            return EngineError("engine_closed", "the connection to the engine is closed")
        why = f": {self._explain()}" if self._explain else f" ({error})"
        return EngineError(
            "engine_unreachable", f"the engine at {self.control} did not take {what}{why}"
        )


def _segment(name: str) -> str:
    if name.replace("-", "").isalnum() and name.isascii():
        return name
    from urllib.parse import quote

    return quote(name, safe="")


def _route(path: str) -> str:
    return path.partition("?")[0]


def _decode(method: str, path: str, status: int, content: bytes) -> Any:
    try:
        answer = json.loads(content) if content else None
    except ValueError:
        answer = content.decode(errors="replace")[:200]
    if status < 400:
        return answer
    problem = answer if isinstance(answer, dict) else {}
    detail = problem.get("detail") or f"the engine answered {method} {_route(path)} with {status}"
    raise EngineError(str(problem.get("code") or "unexpected_answer"), str(detail), status)

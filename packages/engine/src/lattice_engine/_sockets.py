"""Sockets of a tunnel's network namespace, for a process that is not in it."""

from __future__ import annotations

import array
import json
import os
import socket

from lattice_engine._errors import EngineError

_FAMILIES: dict[int, str] = {socket.AF_INET: "inet", socket.AF_INET6: "inet6"}
_TYPES: dict[int, str] = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "dgram"}
_LONGEST = 65536  # bytes of an answer
_INT = array.array("i").itemsize


def namespace_socket(
    path: str,
    family: int = socket.AF_INET,
    kind: int = socket.SOCK_STREAM,
    *,
    timeout: float = 10,
) -> socket.socket:
    """A new socket in a tunnel's network namespace: the kernel's own, unbound and unconnected.

    Args:
        path: the tunnel's ``sockets``, from the engine's answer.
        family: ``AF_INET`` or ``AF_INET6``.
        kind: ``SOCK_STREAM`` or ``SOCK_DGRAM``.
        timeout: seconds until the call is given up.

    Raises:
        EngineError: the tunnel is down or its namespace is lost, or the engine is gone.
    """
    if family not in _FAMILIES or kind not in _TYPES:
        raise ValueError("a namespace hands out TCP and UDP sockets for IPv4 and IPv6")
    request = json.dumps({"family": _FAMILIES[family], "type": _TYPES[kind]}).encode() + b"\n"
    descriptors: list[int] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.settimeout(timeout)
            server.connect(path)
            server.sendall(request)
            line, descriptors = _receive(server)
        answer = json.loads(line)
        if answer["ok"] and len(descriptors) == 1:
            return socket.socket(family, kind, fileno=descriptors.pop())
        code, detail = answer.get("code", "unexpected_answer"), answer.get("detail", "")
        raise EngineError(str(code), str(detail) or "the engine answered without a socket")
    except TimeoutError as error:
        raise EngineError(
            "engine_timeout", f"the engine did not hand out a socket within {timeout:g} s"
        ) from error
    except OSError as error:
        raise EngineError(
            "tunnel_down",
            f"the tunnel's network namespace cannot be reached ({error.strerror}): "
            "the tunnel is down, or its engine has ended",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            "unexpected_answer", "the engine's answer is not one that hands out a socket"
        ) from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _receive(server: socket.socket) -> tuple[bytes, list[int]]:
    """One line, and the descriptors that came along."""
    data = b""
    descriptors: list[int] = []
    try:
        while b"\n" not in data and len(data) < _LONGEST:
            # Not socket.recv_fds: it forgets its flags, and a child that is started meanwhile would
            # inherit the socket.
            chunk, ancillary, _, _ = server.recvmsg(
                4096, socket.CMSG_SPACE(_INT), socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, rights in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors += array.array("i", rights[: len(rights) // _INT * _INT])
            if not chunk:
                break
            data += chunk
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return data, descriptors

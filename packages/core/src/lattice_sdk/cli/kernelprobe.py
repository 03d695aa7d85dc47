"""What this kernel lets this user do, tried in a process of its own: ``python -m`` prints JSON.

It enters a user and a network namespace, which must not happen in the process that asks.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
NETLINK_ROUTE, RTM_NEWLINK = 0, 16  # linux/netlink.h, linux/rtnetlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 18, 1  # linux/if_link.h
NLMSG_ERROR = 2


def main() -> None:
    """Try, and print ``{"userNamespace": true or a reason, "kernelWireGuard": likewise}``."""
    found: dict[str, bool | str] = {}
    found["userNamespace"] = _unshare(CLONE_NEWUSER | CLONE_NEWNET)
    inside = found["userNamespace"] is True or _unshare(CLONE_NEWNET) is True
    found["kernelWireGuard"] = _make_link("wireguard") if inside else "no namespace to try it in"
    found["tun"] = _open_tun()
    sys.stdout.write(json.dumps(found))


def _unshare(flags: int) -> bool | str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) == 0:
        return True
    return os.strerror(ctypes.get_errno())


def _open_tun() -> bool | str:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or "it cannot be opened"
    return True


def _make_link(kind: str) -> bool | str:
    """Ask the kernel for an interface of a kind, in the network namespace of this process."""
    info = _attribute(IFLA_INFO_KIND, kind.encode())
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
    body += _attribute(IFLA_IFNAME, b"probe0\0") + _attribute(IFLA_LINKINFO, info)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    header = struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, flags, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as link:
            link.settimeout(5)
            link.send(header + body)
            answer = link.recv(4096)
    except OSError as error:
        return error.strerror or str(error)
    kind_of_answer = struct.unpack_from("=H", answer, 4)[0]
    code = -struct.unpack_from("=i", answer, 16)[0] if kind_of_answer == NLMSG_ERROR else 0
    return True if code == 0 else os.strerror(code)


def _attribute(number: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), number) + value + padding


if __name__ == "__main__":
    main()

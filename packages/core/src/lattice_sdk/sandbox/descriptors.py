"""Which descriptors a program in a sandbox may keep: none through which there is a network."""

import ctypes
import os
import stat

from lattice_sdk.sandbox.trouble import Trouble

_SOL_SOCKET, _SO_TYPE, _SO_ACCEPTCONN, _SO_DOMAIN = 1, 3, 30, 39  # asm-generic/socket.h
_SO_NETNS_COOKIE = 71
_AF_UNIX, _AF_INET, _SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET = 1, 2, 1, 2, 5

_libc = ctypes.CDLL(None, use_errno=True)


def check(descriptor: int) -> None:
    """Let a descriptor pass, closed ones too.

    A socket of the host's network can be disconnected and connected to anywhere, and through a
    directory of outside there is a way to what the sandbox covers.

    Raises:
        Trouble: the program may not have it.
    """
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise Trouble(
            f"descriptor {descriptor} is an open directory of outside, which the sandbox would "
            "leave by: give it a file, a pipe or a terminal"
        )
    if stat.S_ISSOCK(mode) and not _is_connected_pair(descriptor):
        raise Trouble(
            f"descriptor {descriptor} is a socket of the host's network, by which a program could "
            "leave the sandbox: put a pipe between, as `cat | lattice exec … | cat` does"
        )


def network_cookie() -> int:
    """What tells this network namespace from all there have been; 0 where the kernel cannot."""
    descriptor = _libc.socket(_AF_INET, _SOCK_DGRAM | os.O_CLOEXEC, 0)
    try:
        value, length = ctypes.c_uint64(0), ctypes.c_uint(8)
        _libc.getsockopt(
            descriptor, _SOL_SOCKET, _SO_NETNS_COOKIE, ctypes.byref(value), ctypes.byref(length)
        )
        return value.value
    finally:
        os.close(descriptor)


def _is_connected_pair(descriptor: int) -> bool:
    """Whether it is a Unix socket whose other end is fixed for good."""
    if _option(descriptor, _SO_DOMAIN) != _AF_UNIX or _option(descriptor, _SO_ACCEPTCONN):
        return False
    if _option(descriptor, _SO_TYPE) not in (_SOCK_STREAM, _SOCK_SEQPACKET):
        return False
    address, length = ctypes.create_string_buffer(128), ctypes.c_uint(128)
    return bool(_libc.getpeername(descriptor, address, ctypes.byref(length)) == 0)


def _option(descriptor: int, name: int) -> int:
    value, length = ctypes.c_int(-1), ctypes.c_uint(4)
    _libc.getsockopt(descriptor, _SOL_SOCKET, name, ctypes.byref(value), ctypes.byref(length))
    return value.value

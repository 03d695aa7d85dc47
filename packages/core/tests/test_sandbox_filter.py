"""The seccomp filter, instruction by instruction, also for processors that no test runs on."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from lattice_sdk.sandbox.seccomp import AUDIT_ARCH, SYSCALLS, filter_program

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
I386, ARM = 0x40000003, 0x40000028
MACHINES = sorted(AUDIT_ARCH)
HIGH = 0xABCD << 32  # of an argument: what the kernel does not look at


def judge(program: bytes, number: int, *arguments: int, architecture: int) -> int:
    """Interpret a filter as the kernel does (seccomp(2), linux/filter.h)."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *padded)
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        match operation:
            case 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:  # and #k
                accumulator &= value
            case 0x06:  # ret #k
                return value
            case 0x15 | 0x35 | 0x45:  # jeq, jge, jset
                holds = {
                    0x15: accumulator == value,
                    0x35: accumulator >= value,
                    0x45: bool(accumulator & value),
                }[operation]
                position += if_true if holds else if_false
            case _:
                raise AssertionError(f"instruction {operation:#x}")


class Filter:
    """A machine's filter."""

    def __init__(self, machine: str, *, unix_sockets: bool = False) -> None:
        self._machine = machine
        self._program = filter_program(machine, unix_sockets=unix_sockets)

    def __call__(self, name: str, *arguments: int) -> int:
        number = SYSCALLS[self._machine][name]
        return judge(self._program, number, *arguments, architecture=AUDIT_ARCH[self._machine])

    def raw(self, number: int, *arguments: int, architecture: int) -> int:
        return judge(self._program, number, *arguments, architecture=architecture)


@pytest.fixture(params=MACHINES)
def judged(request: pytest.FixtureRequest) -> Filter:
    return Filter(request.param)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM | 0o2000000])
def test_internet_sockets_pass(judged: Filter, family: int, kind: int) -> None:
    assert judged("socket", family, kind, 0) == ALLOW
    assert judged("socket", family | HIGH, kind, 0) == ALLOW


def test_unix_sockets_are_denied(judged: Filter) -> None:
    assert judged("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0) == ERRNO | errno.EACCES
    assert judged("socket", socket.AF_UNIX | HIGH, socket.SOCK_STREAM, 0) == ERRNO | errno.EACCES


@pytest.mark.parametrize("machine", MACHINES)
def test_unix_sockets_pass_when_asked_for(machine: str) -> None:
    opened = Filter(machine, unix_sockets=True)
    assert opened("socket", socket.AF_UNIX, socket.SOCK_DGRAM, 0) == ALLOW
    assert opened("socketpair", socket.AF_UNIX, socket.SOCK_DGRAM, 0) == ALLOW
    assert opened("socket", 40, socket.SOCK_STREAM, 0) == ERRNO | errno.EAFNOSUPPORT


@pytest.mark.parametrize("family", [0, 3, 5, 9, 15, 17, 21, 29, 30, 31, 38, 39, 40, 42, 43, 44, 45])
def test_every_other_family_is_unknown(judged: Filter, family: int) -> None:
    assert judged("socket", family, socket.SOCK_STREAM, 0) == ERRNO | errno.EAFNOSUPPORT


@pytest.mark.parametrize(("protocol", "passes"), [(0, True), (4, True), (9, False), (16, False)])
def test_netlink_is_for_looking_at_the_own_network(
    judged: Filter, protocol: int, passes: bool
) -> None:
    answer = judged("socket", socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    assert answer == (ALLOW if passes else ERRNO | errno.EPROTONOSUPPORT)


@pytest.mark.parametrize("flags", [0, 0o4000, 0o2000000])
@pytest.mark.parametrize(("kind", "passes"), [(1, True), (5, True), (2, False), (3, False)])
def test_only_pairs_of_streams_can_be_made(
    judged: Filter, kind: int, passes: bool, flags: int
) -> None:
    answer = judged("socketpair", socket.AF_UNIX, kind | flags, 0)
    assert answer == (ALLOW if passes else ERRNO | errno.EACCES)


@pytest.mark.parametrize("request_", [0x5412, 0x541C])
@pytest.mark.parametrize("high", [0, HIGH, 1 << 63])
def test_nothing_is_typed_into_a_terminal(judged: Filter, request_: int, high: int) -> None:
    assert judged("ioctl", 0, request_ | high, 0) == ERRNO | errno.EPERM
    assert judged("ioctl", 0, 0x5413 | high, 0) == ALLOW  # TIOCGWINSZ


@pytest.mark.parametrize("name", ["unshare", "clone"])
def test_no_user_namespace_can_be_made(judged: Filter, name: str) -> None:
    assert judged(name, 0x10000000) == ERRNO | errno.EPERM
    assert judged(name, 0x10000000 | 0x40000000 | HIGH) == ERRNO | errno.EPERM
    assert judged(name, 0x01200011) == ALLOW  # what fork() passes


def test_no_namespace_can_be_entered(judged: Filter) -> None:
    assert judged("setns", 3, 0) == ERRNO | errno.EPERM


LACKING = [f"io_uring_{what}" for what in ("setup", "enter", "register")]


@pytest.mark.parametrize("name", [*LACKING, "add_key", "request_key", "keyctl", "bpf"])
def test_ways_around_are_not_in_this_kernel(judged: Filter, name: str) -> None:
    assert judged(name) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("architecture", [I386, ARM, 0])
def test_calls_of_other_processors_do_not_exist(judged: Filter, architecture: int) -> None:
    for number in (0, 1, 102, 359):  # socketcall and socket of i386 among them
        assert judged.raw(number, architecture=architecture) == ERRNO | errno.ENOSYS


def test_third_interface_of_x86_64_does_not_exist() -> None:
    judged, x32 = Filter("x86_64"), 0x40000000
    for number in (x32 | 41, x32 | 53, x32 | 514, 0xFFFFFFFF):
        answer = judged.raw(number, socket.AF_UNIX, 1, architecture=AUDIT_ARCH["x86_64"])
        assert answer == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_not_named_passes(machine: str) -> None:
    judged = Filter(machine)
    named = set(SYSCALLS[machine].values())
    for number in set(range(463)) - named:
        assert judged.raw(number, architecture=AUDIT_ARCH[machine]) == ALLOW

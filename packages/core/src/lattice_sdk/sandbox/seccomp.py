"""The filter that judges a sandbox's system calls, written in classic BPF (seccomp(2)).

A network namespace bounds the internet protocols, and nothing else: Unix sockets reach the host's
services by their paths, and other families reach what they reach. So sockets are of the families
that the namespace bounds. Besides, nothing inside may type into the caller's terminal, have the
kernel look names up outside for it, or start over with fresh privileges.
"""

import errno

# linux/bpf_common.h
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _AND, _RETURN = (
    0x20,
    0x15,
    0x35,
    0x45,
    0x54,
    0x06,
)
# Offsets in struct seccomp_data, linux/seccomp.h. Arguments have 64 bits, the low half first.
_NUMBER, _ARCHITECTURE = 0, 4
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_SEQPACKET = 1, 5
_TYPE_MASK = 0xF  # the rest of a socket's type are flags, linux/net.h
NETLINK_ROUTE, NETLINK_SOCK_DIAG = 0, 4
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # asm-generic/ioctls.h
CLONE_NEWUSER = 0x10000000
_X32 = 0x40000000  # bit of the numbers of x86-64's third interface, asm/unistd.h

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
_COMMON = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
SYSCALLS = {
    # arch/x86/entry/syscalls/syscall_64.tbl
    "x86_64": {
        "ioctl": 16,
        "socket": 41,
        "socketpair": 53,
        "clone": 56,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "setns": 308,
        "bpf": 321,
        **_COMMON,
    },
    # include/uapi/asm-generic/unistd.h
    "aarch64": {
        "ioctl": 29,
        "unshare": 97,
        "socket": 198,
        "socketpair": 199,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "clone": 220,
        "setns": 268,
        "bpf": 280,
        **_COMMON,
    },
}
# As from a kernel that lacks them, so that programs go on without. io_uring makes sockets that no
# filter sees; request_key has the kernel ask a helper outside, which may look a name up in the DNS.
_LACKING: tuple[str, ...] = ("io_uring_setup", "io_uring_enter", "io_uring_register")
_LACKING += ("add_key", "request_key", "keyctl", "bpf")


def filter_program(machine: str, *, unix_sockets: bool) -> bytes:
    """The filter for the processes of a sandbox.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        unix_sockets: whether sockets of the Unix family may be made.
    """
    numbers, program = SYSCALLS[machine], Program()
    program.load(_ARCHITECTURE)
    program.unless_equal(AUDIT_ARCH[machine], errno.ENOSYS)
    program.load(_NUMBER)
    if machine == "x86_64":
        program.if_at_least(_X32, errno.ENOSYS)
    for name in _LACKING:
        program.if_equal(numbers[name], errno.ENOSYS)
    program.on(numbers["setns"], _refuse(errno.EPERM))
    for name in ("unshare", "clone"):
        program.on(numbers[name], _no_new_users())
    program.on(numbers["ioctl"], _no_typing())
    program.on(numbers["socket"], _sockets(unix_sockets=unix_sockets))
    if not unix_sockets:
        program.on(numbers["socketpair"], _pairs())
    program.returns(_RET_ALLOW)
    return bytes(program)


def _refuse(number: int) -> "Program":
    program = Program()
    program.returns(_RET_ERRNO | number)
    return program


def _no_new_users() -> "Program":
    """A new user namespace has all capabilities in it. Of clone3 the sysctl sees to that."""
    program = Program()
    program.load_argument(0)
    program.if_any_bit(CLONE_NEWUSER, errno.EPERM)
    program.returns(_RET_ALLOW)
    return program


def _no_typing() -> "Program":
    """The kernel looks at the low 32 bits of an ioctl's number only, and so does this."""
    program = Program()
    program.load_argument(1)
    program.if_equal(TIOCSTI, errno.EPERM)
    program.if_equal(TIOCLINUX, errno.EPERM)
    program.returns(_RET_ALLOW)
    return program


def _sockets(*, unix_sockets: bool) -> "Program":
    program = Program()
    program.load_argument(0)
    for family in (AF_INET, AF_INET6, *((AF_UNIX,) if unix_sockets else ())):
        program.allow_if_equal(family)
    program.if_equal(AF_UNIX, errno.EACCES)
    program.unless_equal(AF_NETLINK, errno.EAFNOSUPPORT)
    program.load_argument(2)
    program.allow_if_equal(NETLINK_ROUTE)
    program.allow_if_equal(NETLINK_SOCK_DIAG)
    program.returns(_RET_ERRNO | errno.EPROTONOSUPPORT)
    return program


def _pairs() -> "Program":
    """A pair of datagram sockets could be sent to any address; one of streams is what it is."""
    program = Program()
    program.load_argument(1)
    program.mask(_TYPE_MASK)
    program.allow_if_equal(SOCK_STREAM)
    program.allow_if_equal(SOCK_SEQPACKET)
    program.returns(_RET_ERRNO | errno.EACCES)
    return program


class Program:
    """An assembler for what is needed of classic BPF. ``bytes()`` gives struct sock_filter[]."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []

    def __bytes__(self) -> bytes:
        return b"".join(
            code.to_bytes(2, "little")
            + bytes((if_true, if_false))
            + (value & 0xFFFFFFFF).to_bytes(4, "little")
            for code, if_true, if_false, value in self._code
        )

    def __len__(self) -> int:
        return len(self._code)

    def load(self, offset: int) -> None:
        """Take a word of the call's description."""
        self._code.append((_LOAD, 0, 0, offset))

    def load_argument(self, index: int) -> None:
        """Take the low half of an argument."""
        self.load(16 + 8 * index)

    def mask(self, bits: int) -> None:
        """Keep these bits of what was taken."""
        self._code.append((_AND, 0, 0, bits))

    def returns(self, value: int) -> None:
        """Judge."""
        self._code.append((_RETURN, 0, 0, value))

    def allow_if_equal(self, value: int) -> None:
        """Let the call pass if what was taken is this."""
        self._code.append((_JUMP_EQUAL, 0, 1, value))
        self.returns(_RET_ALLOW)

    def if_equal(self, value: int, number: int) -> None:
        """Fail the call with an error number if what was taken is this."""
        self._code.append((_JUMP_EQUAL, 0, 1, value))
        self.returns(_RET_ERRNO | number)

    def unless_equal(self, value: int, number: int) -> None:
        """Fail the call with an error number if what was taken is not this."""
        self._code.append((_JUMP_EQUAL, 1, 0, value))
        self.returns(_RET_ERRNO | number)

    def if_at_least(self, value: int, number: int) -> None:
        """Fail the call with an error number if what was taken is this or more."""
        self._code.append((_JUMP_GREATER_EQUAL, 0, 1, value))
        self.returns(_RET_ERRNO | number)

    def if_any_bit(self, bits: int, number: int) -> None:
        """Fail the call with an error number if what was taken has one of these bits."""
        self._code.append((_JUMP_ANY_BIT, 0, 1, bits))
        self.returns(_RET_ERRNO | number)

    def on(self, call: int, judge: "Program") -> None:
        """Let another program, which must end with a return, judge this call."""
        self._code.append((_JUMP_EQUAL, 0, len(judge), call))
        self._code += judge._code

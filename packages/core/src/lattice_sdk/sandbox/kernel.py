"""The system calls that the launcher makes, by ctypes. Each raises :class:`OSError`."""

import ctypes
import os

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x20000, 0x8000000, 0x20000000  # linux/sched.h
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8  # linux/mount.h
MS_BIND, MS_MOVE, MS_REC, MS_SLAVE = 4096, 8192, 16384, 1 << 19
ATTR_READ_ONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8  # the same, mount_setattr(2)
SIG_DFL, SIG_IGN = 0, 1
SIGKILL, SIGPIPE, SIGCHLD, SIGCONT, SIGXFSZ = 9, 13, 17, 18, 25
STOPPING = SIGTSTP, SIGTTIN, SIGTTOU = 20, 21, 22
SIGNALS = range(1, 65)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 28, 38, 47  # linux/prctl.h
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
# linux/securebits.h: uid 0 means nothing, and none of this can be undone.
_SECURE = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_MOST_CAPABILITIES = 64
_LOCK_SH = 1  # asm-generic/fcntl.h
_SIG_BLOCK, _SIG_UNBLOCK, _SIG_SETMASK = 0, 1, 2
_SFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_SETATTR, _CLOSE_RANGE = 442, 436  # the same number on every architecture
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_JOIN_SESSION_KEYRING = 1  # linux/keyctl.h
_SIGINFO = 128  # bytes of a struct signalfd_siginfo

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_libc.signal.argtypes, _libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
_libc.syscall.restype = ctypes.c_long
_SignalSet = ctypes.c_ulong * 16  # sigset_t of glibc, and more than musl's


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def setns(descriptor: int, kind: int) -> None:
    """Enter the namespace of a descriptor."""
    _check(_libc.setns(descriptor, kind))


def unshare(kinds: int) -> None:
    """Leave namespaces for new ones; of processes, only children come into the new one."""
    _check(_libc.unshare(kinds))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Attach a file system, or change what is attached (man 2 mount)."""
    texts = (os.fsencode(text) or None for text in (source, target, kind))
    _check(_libc.mount(*texts, flags, data.encode() or None))


def bind(source: str, target: str, *, recursive: bool = False) -> None:
    """Let ``target`` be what ``source`` is."""
    mount(source, target, "", MS_BIND | (MS_REC if recursive else 0))


def restrict(target: str, flags: int, *, clear: int = 0, recursive: bool = False) -> None:
    """Set flags of a mount, and with ``recursive`` of those below; others stay as they are."""
    attributes = (ctypes.c_uint64 * 4)(flags, clear, 0, 0)
    _check(
        _libc.syscall(
            ctypes.c_long(_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        )
    )


def drop_privileges() -> None:
    """Be without any capability, for good, whatever is executed."""
    _check(_libc.prctl(_PR_SET_SECUREBITS, _SECURE, 0, 0, 0))
    for number in range(_MOST_CAPABILITIES):
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # past the last one of this kernel
    else:
        raise OSError(0, "this kernel has more capabilities than are known here")
    if number == 0:
        _check(-1)
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def be_private() -> None:
    """Let no other process of this user trace this one or read its memory."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def die_with_parent() -> None:
    """Be killed when the thread that forked this process ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))


def install_filter(program: bytes) -> None:
    """Have all system calls judged by a seccomp filter: 8 bytes for each of its instructions."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    given = Program(len(program) // 8, program)
    address = ctypes.addressof(given)
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address, 0, 0))


def leave_session_keyring(machine: str) -> None:
    """Take part in no keyring of outside; where the kernel has none, there is nothing to do."""
    if machine in _KEYCTL:
        call, what = ctypes.c_long(_KEYCTL[machine]), ctypes.c_int(_JOIN_SESSION_KEYRING)
        _libc.syscall(call, what, ctypes.c_void_p(None))


def close_others(kept: set[int]) -> None:
    """Close all descriptors but these."""
    first = 0
    for descriptor in (*sorted(kept), 1 << 30):
        if first < descriptor:
            low, high = ctypes.c_uint(first), ctypes.c_uint(descriptor - 1)
            if _libc.syscall(ctypes.c_long(_CLOSE_RANGE), low, high, ctypes.c_uint(0)) != 0:
                os.closerange(first, min(descriptor, os.sysconf("SC_OPEN_MAX")))
        first = descriptor + 1


def lock_shared(descriptor: int) -> None:
    """Hold a lock that others may hold too, until this process ends or closes the file."""
    _check(_libc.flock(descriptor, _LOCK_SH))


def block_signals() -> bytes:
    """Block every signal; what was blocked before, for :func:`set_blocked`."""
    every, before = _SignalSet(), _SignalSet()
    _libc.sigfillset(ctypes.byref(every))
    _check(_libc.sigprocmask(_SIG_BLOCK, ctypes.byref(every), ctypes.byref(before)))
    return bytes(before)


def set_blocked(mask: bytes) -> None:
    """Block these signals and no other."""
    given = _SignalSet.from_buffer_copy(mask)
    _check(_libc.sigprocmask(_SIG_SETMASK, ctypes.byref(given), None))


def suffer(number: int) -> None:
    """Let a signal have its usual effect on this process, which has all signals blocked."""
    _libc.signal(number, SIG_DFL)
    os.kill(os.getpid(), number)
    one = ctypes.byref(_signal_set((number,)))
    _libc.sigprocmask(_SIG_UNBLOCK, one, None)
    _libc.sigprocmask(_SIG_BLOCK, one, None)


def disposition(number: int, new: int) -> int:
    """Set what a signal does, ``SIG_DFL`` or ``SIG_IGN``; what it did before."""
    return _libc.signal(number, new) or 0


def signal_descriptor(numbers: tuple[int, ...] | range = SIGNALS) -> int:
    """A descriptor from which :func:`read_signals` takes these, which are blocked."""
    descriptor: int = _libc.signalfd(-1, ctypes.byref(_signal_set(numbers)), _SFD_FLAGS)
    _check(min(descriptor, 0))
    return descriptor


def read_signals(descriptor: int) -> list[tuple[int, int, int]]:
    """The signals that are pending: number, ``si_code``, process id of the sender."""
    found = []
    try:
        data = os.read(descriptor, 64 * _SIGINFO)
    except BlockingIOError:
        data = b""
    for start in range(0, len(data), _SIGINFO):
        fields = (ctypes.c_int32 * 4).from_buffer_copy(data, start)
        number, _, code, sender = fields
        found.append((number, code, sender))
    return found


def is_pending(number: int) -> bool:
    """Whether this process has the signal, which is blocked, and has not taken it."""
    pending = _SignalSet()
    _libc.sigpending(ctypes.byref(pending))
    return bool(_libc.sigismember(ctypes.byref(pending), number) == 1)


def take(number: int) -> bool:
    """Take a pending signal; whether there was one."""
    at_once = (ctypes.c_long * 2)(0, 0)
    wanted = ctypes.byref(_signal_set((number,)))
    return bool(_libc.sigtimedwait(wanted, None, ctypes.byref(at_once)) == number)


def take_all() -> list[int]:
    """Take all pending signals but those of children."""
    return [
        number for number in SIGNALS if number != SIGCHLD and is_pending(number) and take(number)
    ]


def _signal_set(numbers: tuple[int, ...] | range) -> "ctypes.Array[ctypes.c_ulong]":
    made = _SignalSet()
    _libc.sigemptyset(ctypes.byref(made))
    for number in numbers:
        _libc.sigaddset(ctypes.byref(made), number)
    return made

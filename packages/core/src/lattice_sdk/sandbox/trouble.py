"""Why a sandbox cannot be made: a sentence that names what forbids it, and what would allow it."""

import errno

NOT_SANDBOXED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127  # as env(1) and timeout(1) count

APPARMOR = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
USERNS_CLONE = "/proc/sys/kernel/unprivileged_userns_clone"


class Trouble(Exception):  # noqa: N818 - read in `raise Trouble`
    """The program was not started.

    Attributes:
        status: exit status for it.
        number: the system's error number, 0 if there is none.
    """

    def __init__(self, sentence: str, status: int = NOT_SANDBOXED, number: int = 0) -> None:
        super().__init__(sentence)
        self.status, self.number = status, number


class Step:
    """A context in which an :class:`OSError` becomes a :class:`Trouble` about this step.

    Args:
        what: what is being done, to be read after "the sandbox cannot be made:".
        limit: the sysctl that bounds it, in ``/proc/sys/user``.
        hint: what to do about it, where the usual causes do not apply.
    """

    def __init__(self, what: str, *, limit: str = "", hint: str = "") -> None:
        self._what, self._limit, self._hint = what, limit, hint

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, OSError):
            number = error.errno or 0
            why = self._hint or cause(number, self._limit)
            raise Trouble(
                f"the sandbox cannot be made: {self._what}: {error.strerror or error}. {why}",
                number=number,
            ) from None


def cause(number: int, limit: str = "") -> str:
    """What on this machine forbids namespaces or mounts in them, and what would allow it."""
    if number == errno.ENOSPC and limit:
        return f"user.{limit} is used up: sysctl -w user.{limit}=10000"
    if limit and setting(f"/proc/sys/user/{limit}") == "0":
        return f"user.{limit} is 0: sysctl -w user.{limit}=10000"
    if number == errno.ENOSYS:
        return "This kernel is too old: Linux 5.12 or later is needed"
    if setting(APPARMOR) == "1":
        return (
            "AppArmor takes the rights of unprivileged user namespaces away: sysctl -w "
            "kernel.apparmor_restrict_unprivileged_userns=0, or load an AppArmor profile with "
            "`userns,` for this Python"
        )
    if setting(USERNS_CLONE) == "0":
        return "kernel.unprivileged_userns_clone is 0: sysctl -w kernel.unprivileged_userns_clone=1"
    if field("Seccomp") == "2":
        return (
            "This process is under a seccomp filter, as a container is: allow unshare, setns and "
            "mount in it (docker run --security-opt seccomp=unconfined)"
        )
    return "A security module of this machine forbids it (SELinux, a container): its log says which"


def masked_proc() -> str | None:
    """What hides a part of ``/proc``; then the kernel mounts no new one in a user namespace."""
    for _, target, _, _ in mounts():
        if target.startswith("/proc/") and not target.startswith("/proc/sys/fs/binfmt_misc"):
            return target
    return None


def mounts() -> list[tuple[str, str, str, str]]:
    """The mounts of this process: id, where, kind of file system, options (proc(5), mountinfo)."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            words = line.split(b" ")
            rest = words[words.index(b"-") + 1 :]
            target = _unescaped(words[4]).decode(errors="surrogateescape")
            found.append((words[0].decode(), target, rest[0].decode(), words[5].decode()))
    return found


def setting(path: str) -> str:
    """A setting of the kernel; empty where it has none of that name."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def field(name: str) -> str:
    """A field of this process's ``/proc/self/status``."""
    for line in setting("/proc/self/status").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _unescaped(text: bytes) -> bytes:
    for code in (b"\\040", b"\\011", b"\\012", b"\\134"):
        text = text.replace(code, bytes((int(code[1:], 8),)))
    return text

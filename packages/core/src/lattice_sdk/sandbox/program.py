"""The program that a sandbox is for: its environment, and becoming it."""

import errno
import os

from lattice_sdk.sandbox import kernel
from lattice_sdk.sandbox.spec import INSIDE
from lattice_sdk.sandbox.trouble import NOT_EXECUTABLE, NOT_FOUND, Trouble

_DEFAULT_PATH = "/bin:/usr/bin"  # as execvp(3) has it
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy")


def environment(variables: dict[str, str], *, runtime_dir: str = "") -> dict[bytes, bytes]:
    """What the program gets of this process's environment, and what is set besides.

    Not Lattice's own settings, which hold credentials, and no proxy: from inside, none of the
    host's is reached.

    Args:
        variables: to be set.
        runtime_dir: for ``XDG_RUNTIME_DIR``, where that is set outside.
    """
    kept = {}
    # The kernel's copy: Python may have added a locale to its own (PEP 538).
    with open("/proc/self/environ", "rb") as file:
        for entry in file.read().split(b"\0"):
            name, separator, value = entry.partition(b"=")
            if separator and not is_withheld(os.fsdecode(name)):
                kept[name] = value
    if runtime_dir and b"XDG_RUNTIME_DIR" in kept:
        kept[b"XDG_RUNTIME_DIR"] = os.fsencode(runtime_dir)
    return kept | {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}


def is_withheld(name: str) -> bool:
    """Whether a variable of this name is not for programs of an agent."""
    ours = name.startswith("LATTICE_") and name != INSIDE
    return ours or name.lower() in _PROXIES


class Signals:
    """What signals did and which were blocked when this process began, for the program."""

    def __init__(self) -> None:
        self._blocked = kernel.block_signals()
        # Else nothing could be waited for.
        self._children = kernel.disposition(kernel.SIGCHLD, kernel.SIG_DFL)

    def restore(self) -> None:
        """Be as this process began, as far as that goes through Python."""
        for number in kernel.SIGNALS:
            before = kernel.disposition(number, kernel.SIG_DFL)
            if number == kernel.SIGCHLD:
                before = self._children
            # Python itself ignores these two, in all of its processes.
            if before == kernel.SIG_IGN and number not in (kernel.SIGPIPE, kernel.SIGXFSZ):
                kernel.disposition(number, kernel.SIG_IGN)
        kernel.set_blocked(self._blocked)


def become(name: str, arguments: list[str], variables: dict[bytes, bytes]) -> None:
    """Execute a program, found as execvp(3) finds it.

    Raises:
        Trouble: there is none of that name, or it cannot be executed.
    """
    failure = errno.ENOENT
    if "/" in name:
        places = [name]
    else:
        path = os.fsdecode(variables.get(b"PATH", b"")) or _DEFAULT_PATH
        places = [f"{place or '.'}/{name}" for place in path.split(":")] if name else []
    for place in places:
        try:
            _execute(place, arguments, variables)
        except OSError as error:
            number = error.errno or 0
            if number not in (errno.ENOENT, errno.ENOTDIR) and failure != errno.EACCES:
                failure = number
            if number not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                break
    status = NOT_FOUND if failure == errno.ENOENT else NOT_EXECUTABLE
    raise Trouble(f"{name}: {os.strerror(failure)}", status, failure)


def _execute(place: str, arguments: list[str], variables: dict[bytes, bytes]) -> None:
    try:
        os.execve(place, arguments, variables)  # noqa: S606 - what this is for
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        os.execve("/bin/sh", ["/bin/sh", place, *arguments[1:]], variables)  # noqa: S606

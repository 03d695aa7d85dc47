"""The program of ``lattice exec``, seen from its parent: as if there were nothing in between.

The launcher that becomes it is in this process's session and process group. So what the terminal
sends reaches the program by itself; what is sent to this process is passed on to it. Stopping,
continuing and ending go the other way.
"""

from __future__ import annotations

import os
import signal
import stat

from lattice_sdk.sandbox.home import command
from lattice_sdk.sandbox.program import is_withheld
from lattice_sdk.sandbox.trouble import Trouble

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from collections.abc import Iterable

_FATAL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_ALL = frozenset(signal.valid_signals())
_KERNEL = 0  # si_code above this: the kernel sent it, for the terminal say (sigaction(2))


class Child:
    """The program. It starts when :meth:`go` says so; the launcher gets ready before that.

    Args:
        arguments: of the program.
        unix_sockets: whether it may make sockets of the Unix family.
        spec: path of the launcher's file; one that :meth:`go` hands over when left out.
        mask: the signals that are to be blocked in it; as in this process when left out.

    Attributes:
        pid: the launcher's process id.
    """

    def __init__(
        self,
        arguments: Iterable[str],
        *,
        unix_sockets: bool = False,
        spec: str = "",
        mask: Iterable[int] | None = None,
    ) -> None:
        self._report, reporting = os.pipe()
        reading, self._spec = os.pipe() if not spec else (-1, -1)
        options = ["--leash", "--report", str(reporting)]
        words = command(
            spec or f"/proc/self/fd/{reading}",
            arguments,
            unix_sockets=unix_sockets,
            options=options,
        )
        given = [each for each in (reporting, reading) if each >= 0]
        for descriptor in given:
            os.set_inheritable(descriptor, True)
        environment = {name: text for name, text in os.environ.items() if not is_withheld(name)}
        # With what this process was started with: it has changed nothing of it yet.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if mask is None else mask
        self.pid = os.posix_spawn(words[0], words, environment, setsigmask=mask)
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else nobody could be waited for
        for descriptor in given:
            os.close(descriptor)
        self._terminal = _Terminal()
        self._status: int | None = None

    def go(self, spec: bytes = b"") -> None:
        """Let the program start, and wait until it has. From here on signals are the program's.

        Args:
            spec: what the launcher was to be told.

        Raises:
            Trouble: it cannot be started.
            KeyboardInterrupt: a signal has come that was for the start.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
        if signal.sigpending() & set(_FATAL):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            raise KeyboardInterrupt  # by the default handlers, at the latest here
        if self._spec >= 0:
            view = memoryview(spec)
            while view:
                view = view[os.write(self._spec, view) :]
            os.close(self._spec)
            self._spec = -1
        told = b""
        while data := os.read(self._report, 4096):
            told += data
        os.close(self._report)
        if told:
            status, number, sentence = told.decode(errors="replace").split(" ", 2)
            self._wait(0)
            raise Trouble(sentence, int(status), int(number))
        _let_go_of_pipes()

    def abandon(self) -> None:
        """There is nothing to start. Again without effect."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._wait(0)
        if self._spec >= 0:
            os.close(self._spec)
            os.close(self._report)
            self._spec = -1

    def attend(self) -> int:
        """Be like the program until it has ended; its wait status."""
        while self._status is None:
            came = signal.sigwaitinfo(_ALL)
            if came.si_signo == signal.SIGCHLD:
                self._look()
            elif came.si_code <= _KERNEL:
                self._pass_on(came.si_signo)
        self._terminal.restore()
        return self._status

    def _pass_on(self, number: int) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def _look(self) -> None:
        while self._status is None:
            status = self._wait(os.WNOHANG | os.WUNTRACED)
            if status is None:
                return
            if os.WIFSTOPPED(status):
                from lattice_sdk.sandbox.kernel import suffer

                suffer(os.WSTOPSIG(status))

    def _wait(self, options: int) -> int | None:
        """A change of the launcher's state."""
        pid, status = os.waitpid(self.pid, options)
        if pid == 0:
            return None
        if not os.WIFSTOPPED(status):
            self._status = status
        return status


class _Terminal:
    """The terminal, if this process is in its foreground: a program may take it and not return."""

    def __init__(self) -> None:
        self._descriptor, self._group = -1, os.getpgrp()
        for descriptor in (0, 1, 2):
            try:
                if os.isatty(descriptor) and os.tcgetpgrp(descriptor) == self._group:
                    self._descriptor = os.dup(descriptor)
                    return
            except OSError:
                continue  # it is not this process's terminal

    def restore(self) -> None:
        """Have it again. All signals are blocked, so this does not stop this process."""
        if self._descriptor < 0:
            return
        try:
            if os.tcgetpgrp(self._descriptor) != self._group:
                os.tcsetpgrp(self._descriptor, self._group)
        except OSError:
            return  # it has been hung up


def _let_go_of_pipes() -> None:
    """Who reads what the program writes, or writes what it reads, must see it close its end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            continue
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            os.dup2(nothing, descriptor)
    os.close(nothing)


def end_like(status: int) -> None:
    """End as a program ended; does not return.

    Args:
        status: its wait status.
    """
    if os.WIFSIGNALED(status):
        import resource

        from lattice_sdk.sandbox.kernel import block_signals, suffer

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        block_signals()
        suffer(os.WTERMSIG(status))
        os._exit(128 + os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))

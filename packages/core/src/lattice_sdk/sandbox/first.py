"""The first process of a sandbox: makes its view, becomes powerless, starts the program, reaps."""

import os
import select
import time

from lattice_sdk.sandbox import kernel, seccomp, wire
from lattice_sdk.sandbox.program import Signals, become, environment
from lattice_sdk.sandbox.spec import Spec
from lattice_sdk.sandbox.trouble import NOT_SANDBOXED, Step, Trouble
from lattice_sdk.sandbox.view import View, enter_directory, working_directory

# Seconds in which a signal that the launcher passes on, and that came to the whole process group,
# is the same one.
SAME = 0.25


class First:
    """Process 1 of a sandbox.

    Args:
        spec: the sandbox's.
        arguments: of the program.
        signals: as they were.
        unix_sockets: whether the program may make them.
        kept: descriptors for the program.
        told: pipe to the launcher.
        orders: pipe from it: signals to pass on, one a byte. It ends when the launcher does.
    """

    def __init__(
        self,
        spec: Spec,
        arguments: list[str],
        signals: Signals,
        *,
        unix_sockets: bool,
        kept: set[int],
        told: int,
        orders: int,
    ) -> None:
        self._spec, self._arguments, self._signals = spec, arguments, signals
        self._unix_sockets, self._kept = unix_sockets, kept
        self._told, self._orders = told, orders
        self._program = 0
        self._seen: dict[int, float] = {}

    def run(self) -> None:
        """Do all of it; does not return."""
        try:
            self._settle()
            self._start()
        except Trouble as trouble:
            wire.send(self._told, wire.FAILED, trouble.status, trouble.number, str(trouble))
            os._exit(NOT_SANDBOXED)
        self._attend()

    def _settle(self) -> None:
        """Become what the program will be in: from here on there is no way back."""
        kernel.die_with_parent()
        if select.select([self._orders], [], [], 0)[0]:
            os._exit(NOT_SANDBOXED)  # the launcher is dead already, and nobody will kill this
        where, view = working_directory(), View(self._spec)
        view.make()
        enter_directory(where, view)
        self._variables = environment(self._spec.variables, runtime_dir=f"/run/user/{os.getuid()}")
        machine = os.uname().machine
        kernel.leave_session_keyring(machine)
        with Step("dropping all rights"):
            kernel.drop_privileges()
            kernel.be_private()
        kernel.close_others({0, 1, 2, self._told, self._orders, *self._kept})
        with Step("a seccomp filter", hint="This kernel has none: CONFIG_SECCOMP_FILTER"):
            kernel.install_filter(seccomp.filter_program(machine, unix_sockets=self._unix_sockets))

    def _start(self) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._program = os.fork()
        if self._program == 0:
            try:
                self._signals.restore()
                os.close(reading)
                become(self._arguments, self._variables)
            except Trouble as trouble:
                wire.send(writing, wire.FAILED, trouble.status, trouble.number, str(trouble))
            finally:
                os._exit(NOT_SANDBOXED)
        os.close(writing)
        failed = wire.receive(reading)
        if failed is not None:
            _, status, number, sentence = failed[0]
            raise Trouble(sentence, status, number)
        os.close(reading)
        # Who reads what the program writes must see it close its end.
        nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        kernel.close_others({0, 1, 2, self._told, self._orders})
        os.chdir("/")
        wire.send(self._told, wire.STARTED)

    def _attend(self) -> None:
        waiting, signals = select.poll(), kernel.signal_descriptor()
        waiting.register(signals, select.POLLIN)
        waiting.register(self._orders, select.POLLIN)
        while True:
            self._reap()
            ready = {descriptor for descriptor, _ in waiting.poll()}
            # Signals first: whether one came to the whole group must be known before an order.
            for number, code, _ in kernel.read_signals(signals):
                if code <= 0:
                    self._seen[number] = time.monotonic()
            if self._orders in ready:
                orders = os.read(self._orders, 64)
                if not orders:
                    os._exit(NOT_SANDBOXED)
                for number in orders:
                    self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        """Give the program a signal that the launcher got, unless it got it itself."""
        came = self._seen.get(number, 0.0)
        in_group = os.getpgid(self._program) == os.getpgid(0)
        if not (in_group and time.monotonic() - came < SAME):
            os.kill(self._program, number)

    def _reap(self) -> None:
        while True:
            try:
                found, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not found:
                return
            if found != self._program:
                continue
            if os.WIFSTOPPED(status):
                wire.send(self._told, wire.STOPPED, os.WSTOPSIG(status))
            elif os.WIFCONTINUED(status):
                wire.send(self._told, wire.CONTINUED)
            else:
                wire.send(self._told, wire.ENDED, status)
                os._exit(0)  # and with this one all others of the sandbox

"""The first process of a sandbox: makes its view, becomes powerless, starts the program, reaps."""

import os
import select
import time

from lattice_sdk.sandbox import kernel, seccomp, wire
from lattice_sdk.sandbox.program import Signals, become, environment
from lattice_sdk.sandbox.spec import Spec
from lattice_sdk.sandbox.trouble import NOT_SANDBOXED, Step, Trouble
from lattice_sdk.sandbox.view import View, enter_directory, working_directory

PATIENCE = 5.0  # seconds in which the second report of one signal must come to be known as such


class First:
    """Process 1 of a sandbox.

    Args:
        spec: the sandbox's.
        name: of the program, to be executed.
        arguments: of the program, its name as it is to see it first.
        signals: as they were.
        early: signals that came before this process was there.
        unix_sockets: whether the program may make them.
        kept: descriptors for the program.
        told: pipe to the launcher.
        orders: pipe from it: signals to pass on. It ends when the launcher does.
        family: whether the launcher's parent is in the launcher's process group.
    """

    def __init__(
        self,
        spec: Spec,
        name: str,
        arguments: list[str],
        signals: Signals,
        *,
        early: list[int],
        unix_sockets: bool,
        kept: set[int],
        told: int,
        orders: int,
        family: bool,
    ) -> None:
        self._spec, self._signals, self._early = spec, signals, early
        self._name, self._arguments = name, arguments
        self._unix_sockets, self._kept = unix_sockets, kept
        self._told, self._orders, self._family = told, orders, family
        self._program = self._stops = 0
        self._expected: dict[tuple[int, bool], float] = {}

    def run(self) -> None:
        """Do all of it; does not return."""
        try:
            self._settle()
            self._start()
        except Trouble as trouble:
            wire.send(self._told, wire.FAILED, trouble.status, trouble.number, str(trouble))
        except BaseException as error:
            sentence = f"the sandbox cannot be made, by a defect of lattice: {error!r}"
            wire.send(self._told, wire.FAILED, NOT_SANDBOXED, 0, sentence)
        else:
            self._attend()
        finally:
            os._exit(NOT_SANDBOXED)

    def _settle(self) -> None:
        """Become what the program will be in: from here on there is no way back."""
        kernel.die_with_parent()
        if wire.is_over(self._orders):
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
        in_group = kernel.take_all()
        self._program = os.fork()
        if self._program == 0:
            try:
                self._signals.restore()
                os.close(reading)
                become(self._name, self._arguments, self._variables)
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
        for number in in_group:
            self._expect(number, False)
            self._expect(number, True)
        for number in (*self._early, *in_group):
            os.kill(self._program, number)

    def _attend(self) -> None:
        waiting, children = select.poll(), kernel.signal_descriptor((kernel.SIGCHLD,))
        waiting.register(children, select.POLLIN)
        waiting.register(self._orders, select.POLLIN)
        while True:
            self._reap()
            ready = {descriptor for descriptor, _ in waiting.poll()}
            kernel.read_signals(children)
            self._reap()
            if self._orders not in ready:
                continue
            given = wire.orders(self._orders)
            if given is None:
                os._exit(NOT_SANDBOXED)
            for number, by_parent, stops in given:
                if not self._has_it(number, by_parent) and not self._is_past(number, stops):
                    os.kill(self._program, number)
                wire.send(self._told, wire.OBEYED)

    def _has_it(self, number: int, by_parent: bool) -> bool:
        """Whether the program got the signal by itself, since it was sent to the whole group.

        This process is in that group, and what comes to it stays pending as a witness. The
        launcher's parent and the launcher may both report the same signal.
        """
        if os.getpgid(self._program) != os.getpgid(0):
            return False
        if kernel.take(number):
            if self._family:
                self._expect(number, not by_parent)
            return True
        return time.monotonic() < self._expected.pop((number, by_parent), 0.0)

    def _expect(self, number: int, by_parent: bool) -> None:
        """The program has this signal, and somebody else may report it as well."""
        self._expected[number, by_parent] = time.monotonic() + PATIENCE

    def _is_past(self, number: int, stops: int) -> bool:
        """Whether what the signal asks for has been overtaken: to stop by going on, or the other.

        The kernel forgets a pending one of these when the other comes, but not an order.
        """
        if number in kernel.STOPPING:
            return kernel.is_pending(kernel.SIGCONT)
        if number == kernel.SIGCONT:
            return stops != self._stops % 256 or any(map(kernel.is_pending, kernel.STOPPING))
        return False

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
                self._stops += 1
                wire.send(self._told, wire.STOPPED, os.WSTOPSIG(status))
            elif os.WIFCONTINUED(status):
                wire.send(self._told, wire.CONTINUED)
            else:
                wire.send(self._told, wire.ENDED, status)
                os._exit(0)  # and with this one all others of the sandbox

"""The process that is started in a program's place: enters the namespaces, and is like the program.

It stays outside, where nothing inside sees it: passes signals on, stops and ends as the program
does, and ends the program when the agent ends.
"""

import os
import select

from lattice_sdk.sandbox import descriptors, kernel, wire
from lattice_sdk.sandbox import spec as specs
from lattice_sdk.sandbox.first import First
from lattice_sdk.sandbox.program import Signals, become, environment
from lattice_sdk.sandbox.trouble import NOT_SANDBOXED, Step, Trouble


class Options:
    """The command line.

    Attributes:
        spec: path of the spec.
        name: of the program.
        arguments: of the program, as it is to see them.
        directory: where it begins; where the launcher does when empty.
        kept: descriptors besides 0, 1 and 2 that it gets.
        report: descriptor on which a failure is told; standard error when negative.
        leash: whether all ends with the thread that started the launcher.
        unix_sockets: whether the program may make them.
    """

    def __init__(self, words: list[str]) -> None:
        self.directory, self.name, self.report = "", "", -1
        self.kept: set[int] = set()
        self.leash = self.unix_sockets = False
        words = list(words)
        while words and words[0].startswith("--") and words[0] != "--":
            name = words.pop(0)
            if name == "--leash":
                self.leash = True
            elif name == "--unix-sockets":
                self.unix_sockets = True
            elif name == "--cwd":
                self.directory = words.pop(0)
            elif name == "--execute":
                self.name = words.pop(0)
            elif name == "--fds":
                self.kept = {int(word) for word in words.pop(0).split(",")}
            elif name == "--report":
                self.report = int(words.pop(0))
            else:
                raise Trouble(f"the launcher does not know {name}: it is not for use by hand")
        if len(words) < 3 or words[1] != "--":
            raise Trouble("the launcher wants SPEC -- PROGRAM ARGUMENTS…")
        self.spec, self.arguments = words[0], words[2:]
        self.name = self.name or self.arguments[0]


def main(words: list[str]) -> None:
    """Run a program; does not return."""
    report = -1
    signals = Signals()  # what comes before the program is there is kept for it
    _occupy()
    try:
        options = Options(words)
        report = options.report
        _run(options, signals)
    except Trouble as trouble:
        _tell(report, trouble)
        os._exit(trouble.status)
    except BaseException as error:
        _tell(report, Trouble(f"the program was not started, by a defect of lattice: {error!r}"))
        os._exit(NOT_SANDBOXED)


def _occupy() -> None:
    """Fill the places of standard descriptors that are closed, until the program is executed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def _run(options: Options, signals: Signals) -> None:
    if options.leash:
        kernel.die_with_parent()
    try:
        spec = specs.read(options.spec)
    except (OSError, ValueError) as error:
        raise Trouble(
            f"the agent of this sandbox has ended, or its spec {options.spec} cannot be read: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from None
    if options.directory:
        try:
            os.chdir(options.directory)
        except OSError as error:
            raise Trouble(
                f"the working directory {options.directory}: {error.strerror}",
                number=error.errno or 0,
            ) from None
    if spec.kind in (specs.NAMESPACE, specs.PROBE):
        Launcher(spec, options, signals).run()
    if options.report >= 0:
        os.set_inheritable(options.report, False)
    signals.restore()
    become(options.name, options.arguments, environment(spec.variables))


class Launcher:
    """Drives one sandbox from outside."""

    def __init__(self, spec: specs.Spec, options: Options, signals: Signals) -> None:
        self._spec, self._options, self._signals = spec, options, signals
        self._first = 0
        self._parent = os.getppid()
        self._family = self._parent > 0 and os.getpgid(self._parent) == os.getpgrp()
        self._status: int | None = None
        self._failure: Trouble | None = None
        self._stops = self._stop = self._unobeyed = 0

    def run(self) -> None:
        """Start the program and be like it; does not return.

        Raises:
            Trouble: it cannot be started.
        """
        kept = self._options.kept
        for descriptor in (0, 1, 2, *kept):
            descriptors.check(descriptor)
        keeper, lifeline = self._watch()
        if self._spec.kind == specs.PROBE:
            self._make()
        else:
            self._enter()
        with Step("a process namespace of its own", limit="max_pid_namespaces"):
            kernel.unshare(kernel.CLONE_NEWPID)
        told, telling = os.pipe2(os.O_CLOEXEC)
        ordered, self._orders = os.pipe2(os.O_CLOEXEC)
        early = kernel.take_all()
        self._first = os.fork()
        if self._first == 0:
            os.close(told)
            os.close(self._orders)
            First(
                self._spec,
                self._options.name,
                self._options.arguments,
                self._signals,
                early=early,
                unix_sockets=self._options.unix_sockets,
                kept=kept,
                told=telling,
                orders=ordered,
                family=self._family,
            ).run()
        os.close(telling)
        os.close(ordered)
        with Step("dropping all rights"):
            kernel.drop_privileges()
            kernel.be_private()
        self._attend(told, keeper, lifeline)
        _, ended = os.waitpid(self._first, 0)
        if self._failure is not None:
            raise self._failure
        _be_like(ended if self._status is None else self._status)

    def _watch(self) -> tuple[int, int]:
        """Descriptors that tell of the ends of the namespaces' keeper and of the agent."""
        try:
            lifeline = os.open(self._spec.lifeline, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            # Until nothing of the sandbox is left; so the agent can wait for that.
            kernel.lock_shared(lifeline)
            if os.read(lifeline, 1) == b"":
                raise Trouble("the agent of this sandbox has ended")
        except BlockingIOError:
            pass
        except OSError as error:
            raise Trouble(f"the agent of this sandbox has ended: {error.strerror}") from None
        try:
            return os.pidfd_open(self._spec.keeper), lifeline
        except OSError as error:
            raise Trouble(f"the engine of this sandbox has ended: {error.strerror}") from None

    def _enter(self) -> None:
        with Step("the agent's namespaces", hint="The engine of this agent has ended"):
            paths = (self._spec.user, self._spec.net)
            found = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        uid = os.getuid()
        with Step("entering the agent's user namespace", limit="max_user_namespaces"):
            kernel.setns(found[0], kernel.CLONE_NEWUSER)
        if os.getuid() != uid:
            raise Trouble("the sandbox cannot be entered: it is of an agent of another user")
        with Step("entering the agent's network namespace", limit="max_net_namespaces"):
            kernel.setns(found[1], kernel.CLONE_NEWNET)
            if self._spec.cookie not in (0, descriptors.network_cookie()):
                raise Trouble("the agent of this sandbox has ended: its namespace is another's now")

    def _make(self) -> None:
        """Namespaces as an agent's, with nothing in them."""
        uid, gid = os.getuid(), os.getgid()
        with Step("a user namespace", limit="max_user_namespaces"):
            kernel.unshare(kernel.CLONE_NEWUSER)
            maps = (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            )
            for name, text in maps:
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        with Step("a network namespace", limit="max_net_namespaces"):
            kernel.unshare(kernel.CLONE_NEWNET)

    def _attend(self, told: int, keeper: int, lifeline: int) -> None:
        """Until the first process has ended."""
        waiting, signals = select.poll(), kernel.signal_descriptor()
        for descriptor in (told, keeper, lifeline, signals):
            waiting.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in waiting.poll()}
            if signals in ready:
                self._pass_on(kernel.read_signals(signals))
            for descriptor in ready & {keeper, lifeline}:
                os.kill(self._first, kernel.SIGKILL)
                waiting.unregister(descriptor)
            if told in ready:
                messages = wire.receive(told)
                if messages is None:
                    return
                for message in messages:
                    self._hear(*message)
                if self._stop and not self._unobeyed:
                    number, self._stop = self._stop, 0
                    kernel.suffer(number)

    def _hear(self, kind: bytes, value: int, number: int, text: str) -> None:
        if kind == wire.FAILED:
            self._failure = Trouble(text, value, number)
        elif kind == wire.ENDED:
            self._status, self._stop = value, 0
        elif kind == wire.STOPPED:
            # Not before all orders are obeyed: this process could not be told to go on first.
            self._stops, self._stop = self._stops + 1, value
        elif kind == wire.CONTINUED:
            self._stop = 0
        elif kind == wire.OBEYED:
            self._unobeyed -= 1
        elif kind == wire.STARTED:
            if self._options.report >= 0:
                os.close(self._options.report)
            nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for descriptor in (0, 1, 2):
                os.dup2(nothing, descriptor)
            for descriptor in self._options.kept:
                os.close(descriptor)

    def _pass_on(self, signals: list[tuple[int, int, int]]) -> None:
        """What somebody sent; what the terminal sends, the program gets from it as well."""
        for number, code, sender in signals:
            if code <= 0:
                by_parent = sender == self._parent
                self._unobeyed += wire.order(
                    self._orders, number, by_parent=by_parent, stops=self._stops
                )


def _be_like(status: int) -> None:
    """End as the program ended."""
    if os.WIFSIGNALED(status):
        kernel.suffer(os.WTERMSIG(status))
        os._exit(128 + os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _tell(report: int, trouble: Trouble) -> None:
    if report >= 0:
        text = f"{trouble.status} {trouble.number} {trouble}"
        os.write(report, text.encode(errors="replace"))
    else:
        os.write(2, f"lattice: {trouble}\n".encode(errors="replace"))

"""``lattice exec`` from its command line to its end."""

from __future__ import annotations

import os
import signal
import sys
import threading

from lattice_sdk.execution.options import HelpWanted, Options, UsageError, parse
from lattice_sdk.sandbox.spec import INSIDE
from lattice_sdk.sandbox.trouble import NOT_SANDBOXED, Trouble

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from collections.abc import Callable

    from lattice_sdk.execution.quick import Found, Quick

DEBUG = "LATTICE_DEBUG"
TAKEOVER = 5.0  # seconds before a renewal that the SDK is loaded, which takes less than one


def main(words: list[str]) -> None:
    """Do what the command line says, and end as the program; comes back where help is wanted.

    Args:
        words: what follows ``lattice exec``.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        execute(parse(words))
    except HelpWanted:
        return
    except UsageError as error:
        tell(f"{error}\n  what to do: lattice exec --help")
        os._exit(NOT_SANDBOXED)


_interrupts: list[int] = []


def _interrupt(number: int, frame: object) -> None:
    """As Python's own handler, and remember it."""
    _interrupts.append(number)
    del frame
    raise KeyboardInterrupt


def _heed_interrupt() -> None:
    """Interrupt where that was lost: Python drops what is raised in callbacks, as of its imports.

    Raises:
        KeyboardInterrupt: there was one.
    """
    if _interrupts:
        raise KeyboardInterrupt


def execute(options: Options) -> None:
    """Run the program and end as it; does not return."""
    if os.environ.get(INSIDE):
        _already_inside(options)
    from lattice_sdk.execution.child import end_like

    try:
        end_like(_run(options))
    except Trouble as trouble:
        tell(str(trouble))
        os._exit(trouble.status)
    except KeyboardInterrupt:
        end_like(signal.SIGINT)
    except Exception as error:
        if _interrupts:  # until 3.12, Python tells of one in the body of a class as another error
            end_like(signal.SIGINT)
        if os.environ.get(DEBUG, "") not in ("", "0"):
            raise
        tell(
            f"this is a defect of lattice: {type(error).__name__}: {error}\n"
            f"  what to do: run it again with {DEBUG}=1 and report what that prints"
        )
        os._exit(NOT_SANDBOXED)


def _run(options: Options) -> int:
    """The wait status of the program."""
    from lattice_sdk.execution.settings import ordinary

    settings = ordinary(options)
    if settings is None:
        return _run_by_sdk(options, None)
    from lattice_engine import EngineError
    from lattice_sdk.execution.quick import Quick, Unordinary

    try:
        quick = Quick(options, settings)
    except EngineError:
        return _run_by_sdk(options, None)
    try:
        spec = quick.spec()
    except Unordinary:
        quick.child.abandon()
        return _run_by_sdk(options, quick.found)
    except BaseException:
        quick.leave()
        raise
    return _attend(options, quick, spec)


def _attend(options: Options, quick: Quick, spec: bytes) -> int:
    keeping = None
    try:
        _heed_interrupt()
        quick.child.go(spec)
        # Signals are blocked from here on, and so they are in threads.
        keeping = _Keeping(options, quick.found)
        return quick.child.attend()
    finally:
        if keeping is None or not keeping.leave():
            quick.leave()


class _Keeping:
    """Has the SDK take the identity over before it is to be renewed."""

    def __init__(self, options: Options, found: Found) -> None:
        self._options, self._found = options, found
        self._ending, self._taking = threading.Event(), threading.Lock()
        self._close: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._take_over, name="lattice-exec", daemon=True)
        self._thread.start()

    def _take_over(self) -> None:
        from lattice_engine import EngineProcess

        EngineProcess.sweep()
        if self._ending.wait(max(0.0, self._found.renewal - TAKEOVER)):
            return
        with self._taking:
            if self._ending.is_set():
                return
            try:
                from lattice_sdk.execution.takeover import make_agent

                talk()
                agent = make_agent(self._options, self._found)
                self._close = agent.close
                agent.open()
            except Exception as error:
                tell(f"the identity of this program will not be renewed: {error}")

    def leave(self) -> bool:
        """Give the identity back; whether there is nothing left to do."""
        self._ending.set()
        with self._taking:
            if self._close is not None:
                self._close()
                return True
        return False


def _run_by_sdk(options: Options, found: Found | None) -> int:
    """The same, with everything that the SDK can do."""
    # Threads that start now leave signals to this one, which looks at them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    from lattice_sdk.errors import LatticeError
    from lattice_sdk.execution.child import Child
    from lattice_sdk.execution.takeover import make_agent

    talk()
    _heed_interrupt()
    try:
        agent = make_agent(options, found)
        came = _await(agent.open)
        if came is not None:
            agent.close()
            return came
    except LatticeError as error:
        raise Trouble(_told(error)) from None
    try:
        spec = agent._life.living_tunnel().launcher_spec()
        child = Child(options.command, unix_sockets=options.unix_sockets, spec=spec, mask=before)
        child.go()
        return child.attend()
    except LatticeError as error:
        raise Trouble(_told(error)) from None
    finally:
        agent.close()


_FATAL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def _await(work: Callable[[], object]) -> int | None:
    """Do something in a thread; a signal that ended the wait for it, if one did."""
    failure: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)
        done.set()
        os.kill(os.getpid(), signal.SIGCHLD)

    threading.Thread(target=run, name="lattice-exec", daemon=True).start()
    while not done.is_set():
        came = signal.sigwaitinfo(signal.valid_signals())
        if came.si_signo in _FATAL:
            return int(came.si_signo)
    if failure:
        raise failure[0]
    return None


def _already_inside(options: Options) -> None:
    """In a sandbox the program has this one's identity; it could have none of its own."""
    if options.asks:
        tell(
            "this is a sandbox already, whose identity cannot be changed from inside\n"
            "  what to do: leave --preset, --allow, --forward, --ttl and --type out"
        )
        os._exit(NOT_SANDBOXED)
    from lattice_sdk.sandbox.program import become

    try:
        become(options.command[0], options.command, dict(os.environb))
    except Trouble as trouble:
        tell(str(trouble))
        os._exit(trouble.status)


def talk() -> None:
    """Have warnings of the SDK told as this command's own."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(record.getMessage())

    log = logging.getLogger("lattice")
    if not log.handlers:
        log.addHandler(Handler(logging.WARNING))
        log.propagate = False


def tell(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"lattice exec: {text}\n")
    sys.stderr.flush()


def _told(error: Exception) -> str:
    hint = getattr(error, "hint", None)
    message = getattr(error, "message", str(error))
    return f"{message}\n  what to do: {hint}" if hint else str(message)

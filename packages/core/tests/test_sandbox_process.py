"""The launcher is like the program: ends, stops, takes signals as it, and outlives nothing."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lattice_sdk.sandbox import wire
from support.sandboxes import NOBODY_IN_PARTICULAR, Sandbox, interpreter
from support.waiting import process_alive, process_state, wait_for

# An ordinary user may not look into every directory of the tests' own PATH.
CLEAN = {"PATH": "/usr/bin:/bin"}
# Prints each signal that it gets, until it is told to end.
LISTEN = """
import os, signal, sys, time
for number in range(1, 65):
    if number not in (9, 17, 19, 32, 33):
        signal.signal(number, lambda n, _: os.write(1, f"{n}\\n".encode()))
os.write(1, b"ready\\n")
while True:
    time.sleep(0.2)  # pause() does not return for a signal that came just before it
"""


@contextlib.contextmanager
def running(sandbox: Sandbox, *arguments: str, **settings: Any) -> Iterator[Program]:
    """A program inside, until the end of the block."""
    settings = {"stdout": subprocess.PIPE, "cwd": "/", **settings}
    with sandbox.popen(*arguments, **settings) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


class Program:
    """One that prints lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._rest = ""

    def line(self, timeout: float = 20.0) -> str:
        """The next line; empty when there is none in time, or no more."""
        assert self.process.stdout is not None
        end = time.monotonic() + timeout
        while "\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return ""
            data = os.read(self.process.stdout.fileno(), 4096).decode()
            if not data:
                return ""
            self._rest += data
        found, _, self._rest = self._rest.partition("\n")
        return found


def inner(process: subprocess.Popen[str]) -> list[int]:
    """The launcher's descendants, from outside."""
    found: list[int] = []
    waiting = [process.pid]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            found += map(int, children)
            waiting += map(int, children)
    return found


@pytest.mark.parametrize("code", [0, 1, 3, 77, 125, 126, 127, 130, 255])
def test_exit_status_is_the_programs(sandbox: Sandbox, code: int) -> None:
    assert sandbox.run("sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_death_by_signal_is_the_programs(sandbox: Sandbox, number: signal.Signals) -> None:
    assert sandbox.run("sh", "-c", f"kill -{int(number)} $$").returncode == -number


def test_program_that_is_not_there(sandbox: Sandbox) -> None:
    done = sandbox.run("no-such-program", env=CLEAN)
    assert (done.returncode, done.stderr) == (
        127,
        "lattice: no-such-program: No such file or directory\n",
    )
    assert sandbox.run("/nonexistent/program").returncode == 127
    assert sandbox.run("", env=CLEAN).returncode == 127


def test_program_that_cannot_be_executed(sandbox: Sandbox) -> None:
    done = sandbox.run("/etc/passwd")
    assert (done.returncode, done.stderr) == (126, "lattice: /etc/passwd: Permission denied\n")
    assert sandbox.run("/etc").returncode == 126


def test_script_without_an_interpreter_is_the_shells(sandbox: Sandbox) -> None:
    with tempfile.TemporaryDirectory(prefix="lattice-place-") as place:
        Path(place).chmod(0o755)
        script = Path(place, "script")
        script.write_text('echo "ran $1"\n')
        script.chmod(0o755)
        assert sandbox.run(str(script), "with this").stdout == "ran with this\n"


def test_failure_can_be_told_to_a_descriptor(sandbox: Sandbox) -> None:
    reading, writing = os.pipe()
    with open(reading) as report:
        options = ("--report", str(writing))
        done = sandbox.run("no-such-program", options=options, pass_fds=(writing,), env=CLEAN)
        os.close(writing)
        assert report.read() == "127 2 no-such-program: No such file or directory"
    assert done.stderr == ""


def test_report_ends_when_the_program_has_started(sandbox: Sandbox) -> None:
    reading, writing = os.pipe()
    options = ("--report", str(writing))
    with (
        open(reading) as report,
        running(sandbox, "sleep", "60", options=options, pass_fds=(writing,)) as program,
    ):
        os.close(writing)
        assert report.read() == ""
        assert program.process.poll() is None


def test_end_of_output_is_seen_while_the_program_goes_on(sandbox: Sandbox) -> None:
    """No process of the sandbox keeps the program's pipes open for it."""
    reading, writing = os.pipe()
    with (
        open(reading) as output,
        running(
            sandbox, "sh", "-c", "echo hello; exec >&- 2>&-; exec sleep 60", stdout=writing
        ) as program,
    ):
        os.close(writing)
        assert output.read() == "hello\n"
        assert program.process.poll() is None


def test_standard_input_is_read_to_its_end(sandbox: Sandbox) -> None:
    done = sandbox.run("sh", "-c", "cat; echo done", stdin=None, input="one\ntwo\n")
    assert done.stdout == "one\ntwo\ndone\n"


def test_broken_pipe_kills_the_program(sandbox: Sandbox) -> None:
    """Python ignores SIGPIPE; the program must not find it so."""
    reading, writing = os.pipe()
    os.close(reading)
    done = sandbox.run("sh", "-c", "while :; do echo x; done", stdout=writing, capture_output=False)
    os.close(writing)
    assert done.returncode == -signal.SIGPIPE


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1])
def test_ignored_signals_are_ignored_inside(sandbox: Sandbox, number: signal.Signals) -> None:
    code = f"import signal; print(signal.getsignal({int(number)}) == signal.SIG_IGN)"
    assert sandbox.script(code) == "False"
    ignore = lambda: signal.signal(number, signal.SIG_IGN)  # noqa: E731
    assert sandbox.script(code, preexec_fn=ignore) == "True"


def test_blocked_signals_are_blocked_inside(sandbox: Sandbox) -> None:
    code = "import signal; print(sorted(map(int, signal.pthread_sigmask(0, []))))"
    assert sandbox.script(code) == "[]"

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    assert sandbox.script(code, preexec_fn=block) == f"[{int(signal.SIGUSR2)}]"


SENT = [
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGWINCH,
]


@pytest.mark.parametrize("number", SENT)
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_signal_comes_through_once(sandbox: Sandbox, number: signal.Signals, group: bool) -> None:
    """To the launcher alone, as ``kill PID``; or to the whole group, as a shell's ``kill %1``."""
    arguments = (sandbox.python, "-I", "-c", LISTEN)
    with running(sandbox, *arguments, start_new_session=True) as program:
        assert program.line() == "ready"
        send(program, number, group=group)
        assert program.line() == str(int(number))
        send(program, signal.SIGUSR2, group=False)
        assert program.line() == str(int(signal.SIGUSR2)), f"{number.name} came twice"


def send(program: Program, number: int, *, group: bool) -> None:
    (os.killpg if group else os.kill)(program.process.pid, number)


def test_group_of_the_programs_own_gets_what_the_launcher_gets(sandbox: Sandbox) -> None:
    """A program that has left the group, as shells with job control do, must not miss a signal."""
    code = f"import os; os.setpgid(0, 0)\n{LISTEN}"
    arguments = (sandbox.python, "-I", "-c", code)
    with running(sandbox, *arguments, start_new_session=True) as program:
        assert program.line() == "ready"
        send(program, signal.SIGTERM, group=True)
        assert program.line() == str(int(signal.SIGTERM))


def test_group_kill_from_inside_comes_once(sandbox: Sandbox) -> None:
    code = LISTEN.replace('os.write(1, b"ready\\n")', "os.kill(0, signal.SIGTERM)")
    arguments = (sandbox.python, "-I", "-c", code)
    with running(sandbox, *arguments, start_new_session=True) as program:
        assert program.line() == str(int(signal.SIGTERM))
        send(program, signal.SIGUSR2, group=False)
        assert program.line() == str(int(signal.SIGUSR2))


def waited(pid: int, options: int = os.WUNTRACED | os.WCONTINUED) -> int:
    """The next change of a child's state, as wait status."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(os.waitpid(pid, options)[1]))
    thread.start()
    thread.join(20)
    assert found, "the launcher's state did not change"
    return found[0]


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_stop_and_continue(sandbox: Sandbox, group: bool) -> None:
    """As the terminal's Ctrl-Z: the launcher stops when, and as, the program has stopped."""
    code = "import os, signal\nos.write(1, b'ready\\n')\nwhile True: signal.pause()"
    with running(
        sandbox, sandbox.python, "-I", "-c", code, preexec_fn=lambda: os.setpgid(0, 0)
    ) as program:
        assert program.line() == "ready"
        pid = program.process.pid
        for _ in range(2):
            send(program, signal.SIGTSTP, group=group)
            status = waited(pid)
            assert os.WIFSTOPPED(status)
            assert os.WSTOPSIG(status) == signal.SIGTSTP
            wait_for(
                "the program's stop", lambda: "T" in map(process_state, inner(program.process))
            )
            send(program, signal.SIGCONT, group=group)
            assert os.WIFCONTINUED(waited(pid))
            wait_for("all to go on", lambda: "T" not in map(process_state, inner(program.process)))
            wait_for("the launcher to attend", lambda: blocked(pid) >> (signal.SIGTSTP - 1) & 1)
        send(program, signal.SIGTERM, group=False)
        assert os.WTERMSIG(waited(pid)) == signal.SIGTERM
        program.process.returncode = -signal.SIGTERM


def blocked(pid: int) -> int:
    """The signals that a process blocks, as a mask."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["SigBlk"], 16)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_before_the_program_is_there_is_not_lost(
    sandbox: Sandbox, number: signal.Signals
) -> None:
    for delay in (0.0, 0.003, 0.006, 0.009, 0.012, 0.015, 0.02):
        with running(sandbox, "sleep", "60") as program:
            time.sleep(delay)  # into whichever stage of the start that is
            send(program, number, group=False)
            assert program.process.wait(20) == -number


def test_order_that_waits_is_no_end_of_the_launcher() -> None:
    """Or a signal that comes early would keep the program from being started."""
    reading, writing = os.pipe()
    try:
        assert not wire.is_over(reading)
        wire.order(writing, signal.SIGTERM, by_parent=False, stops=0)
        assert not wire.is_over(reading)
        os.close(writing)
        assert wire.is_over(reading)
    finally:
        os.close(reading)


def test_program_that_handles_ctrl_z_is_not_stopped_past_it(sandbox: Sandbox) -> None:
    arguments = (sandbox.python, "-I", "-c", LISTEN)
    with running(sandbox, *arguments, preexec_fn=lambda: os.setpgid(0, 0)) as program:
        assert program.line() == "ready"
        send(program, signal.SIGTSTP, group=True)
        assert program.line() == str(int(signal.SIGTSTP))
        send(program, signal.SIGUSR2, group=False)
        assert program.line() == str(int(signal.SIGUSR2)), "the launcher was stopped"


def test_children_of_the_program_do_not_outlive_it(sandbox: Sandbox) -> None:
    """Daemons and fork bombs, however they hide."""
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(100)
    os._exit(0)
os.write(1, b"ready\\n")
input()
"""
    arguments = (sandbox.python, "-I", "-c", code)
    with running(sandbox, *arguments, stdin=subprocess.PIPE) as program:
        assert program.line() == "ready"
        before = wait_for("the daemon", lambda: len(f := inner(program.process)) >= 2 and f)
        program.process.communicate("\n", timeout=20)
        assert not [pid for pid in before if process_alive(pid)]


ENDS = ["agent", "engine", "launcher"]


@pytest.mark.parametrize("end", ENDS)
def test_everything_ends_with_what_it_depends_on(own_sandbox: Sandbox, end: str) -> None:
    """However the agent or its engine ends, or the launcher."""
    code = """
import os, signal, time
for number in range(1, 65):
    if number not in (9, 19, 32, 33):
        signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
os.write(1, b"ready\\n")
time.sleep(100)
"""
    with running(own_sandbox, own_sandbox.python, "-I", "-c", code) as program:
        assert program.line() == program.line() == "ready"
        pids = inner(program.process)
        assert len(pids) == 3
        if end == "agent":
            own_sandbox.drop_lifeline()
        elif end == "engine":
            own_sandbox.kill_keeper()
        else:
            program.process.kill()
        wait_for("all to be gone", lambda: not [p for p in pids if process_alive(p)])
        assert program.process.wait(20) == -signal.SIGKILL


def test_leash_ends_all_with_the_thread_that_started_it(own_sandbox: Sandbox) -> None:
    """Also when they are stopped, as after Ctrl-Z."""
    start = (own_sandbox.python, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])")
    listen = (own_sandbox.python, "-I", "-c", LISTEN)
    starter = subprocess.Popen(
        [*start, *own_sandbox.command(*listen, options=("--leash",))],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        **own_sandbox._as_user(),
    )
    with starter:
        program = Program(starter)
        assert program.line() == "ready"
        pids = inner(starter)
        assert len(pids) == 3
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_for("all to have stopped", lambda: {process_state(pid) for pid in pids} == {"T"})
        starter.kill()
        wait_for("all to be gone", lambda: not [p for p in pids if process_alive(p)])


def test_agent_that_has_ended_gets_no_programs(own_sandbox: Sandbox) -> None:
    own_sandbox.drop_lifeline()
    done = own_sandbox.run("true")
    assert (done.returncode, done.stderr) == (125, "lattice: the agent of this sandbox has ended\n")


def test_namespace_of_another_process_is_not_entered(own_sandbox: Sandbox) -> None:
    """The keeper's process id may be somebody else's by now."""
    own_sandbox.spec.cookie += 1
    own_sandbox.write()
    done = own_sandbox.run("true")
    assert done.returncode == 125
    assert "its namespace is another's now" in done.stderr


def test_other_user_does_not_enter(own_sandbox: Sandbox) -> None:
    command = own_sandbox.command("true")
    others = {"user": NOBODY_IN_PARTICULAR, "group": NOBODY_IN_PARTICULAR, "extra_groups": []}
    command[0] = interpreter(NOBODY_IN_PARTICULAR)
    if own_sandbox.uid:
        others = {}
    if os.getuid() == 0:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=False, cwd="/", **others
        )
        assert done.returncode != 0
        assert "another user" in done.stderr or "denied" in done.stderr


def test_program_without_a_namespace_is_run_as_it_is(own_sandbox: Sandbox) -> None:
    """With the proxy of a tunnel in its environment instead."""
    own_sandbox.spec.kind = "proxy"
    own_sandbox.spec.variables = {"HTTP_PROXY": "http://peer:secret@127.0.0.1:1"}
    own_sandbox.write()
    environment = {"LATTICE_TOKEN": "lt-secret", "PATH": os.environ["PATH"], "HTTPS_PROXY": "x"}
    done = own_sandbox.run("env", env=environment)
    assert sorted(done.stdout.split()) == [
        "HTTP_PROXY=http://peer:secret@127.0.0.1:1",
        f"PATH={os.environ['PATH']}",
    ]
    assert own_sandbox.run("sh", "-c", "kill -9 $$").returncode == -9
    assert own_sandbox.run("no-such-program", env=CLEAN).returncode == 127

"""``lattice-claude``: terminal, signals and exit status are the program's own."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lattice_sdk.testing import World
from support.model import ScriptedModel, call, claude_environment, echo
from support.waiting import processes_mentioning, wait_for

LATTICE_CLAUDE = str(Path(sys.executable).with_name("lattice-claude"))
Start = Callable[..., Any]


@pytest.fixture
def environment(lattice_world: World, tmp_path: Path) -> Mapping[str, str]:
    return {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "LATTICE_SERVER": lattice_world.server,
        "LATTICE_TOKEN": lattice_world.token,
    }


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """A program in the command's place; its first two arguments are ``--settings FILE``."""

    def make(script: str) -> str:
        file = tmp_path / "claude"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return str(file)

    return make


@pytest.fixture
def start(environment: Mapping[str, str]) -> Iterator[Start]:
    """Start ``lattice-claude``; what still runs at the end of the test is ended."""
    with contextlib.ExitStack() as stack:

        def make(*arguments: str, **options: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [LATTICE_CLAUDE, *arguments],
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **options,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield make


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LATTICE_CLAUDE, *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_real_command_works_in_the_agents_network(
    environment: Mapping[str, str], lattice_world: World, model: ScriptedModel, tmp_path: Path
) -> None:
    before = lattice_world.peers()
    model.script = [[call("Bash", command="curl -s http://github-tools.lattice/")], echo]
    settings = json.dumps({"permissions": {"allow": ["Bash(curl:*)"]}})
    more = claude_environment(tmp_path, "http://claude-model.lattice")
    done = run(
        {**environment, **more},
        *("--name", "by-hand", "--ttl", "5m", "--", "claude", "-p", "Go on."),
        *("--settings", settings, "--setting-sources", "", "--output-format", "json"),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(json.loads(done.stdout)["result"])
    assert answer["client"].startswith("10.")
    assert lattice_world.peers() <= before


def test_settings_of_the_caller_are_kept_and_its_token_is_not(
    environment: Mapping[str, str], program: Callable[[str], str]
) -> None:
    program('cat "$2"; echo; shift 2; echo "$@"; env')
    proxied = {**environment, "LATTICE_ISOLATION": "proxy"}
    done = run(proxied, "claude", "-p", "--settings", '{"env": {"A": "b"}, "model": "x"}', "hi")
    settings, arguments, *rest = done.stdout.splitlines()
    assert arguments == "-p hi"
    found = json.loads(settings)
    assert (found["model"], found["env"]["A"]) == ("x", "b")
    assert "@" in found["env"]["HTTP_PROXY"]
    assert environment["LATTICE_TOKEN"] not in "\n".join(rest)
    assert found["env"]["HTTP_PROXY"] not in "\n".join(rest)
    assert re.search(r"^HTTP_PROXY=http://127.0.0.1:\d+$", "\n".join(rest), re.MULTILINE)


def test_exit_status_is_the_programs(
    environment: Mapping[str, str], lattice_world: World, program: Callable[[str], str]
) -> None:
    before = lattice_world.peers()
    assert run(environment, "--", program("exit 7")).returncode == 7
    assert run(environment, "--", program("kill -s USR2 $$")).returncode == -signal.SIGUSR2
    assert run(environment, "--", program("kill -s KILL $$")).returncode == -signal.SIGKILL
    assert lattice_world.peers() <= before


def test_input_is_the_programs(start: Start, program: Callable[[str], str]) -> None:
    process = start("--", program("read line; echo got $line"))
    assert process.communicate("something\n", timeout=60)[0] == "got something\n"


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
def test_signals_reach_the_program(
    start: Start, program: Callable[[str], str], lattice_world: World, name: str
) -> None:
    # Waits are short: dash sees a signal that comes just before one only after it.
    script = f'trap "echo caught; exit 5" {name}; echo ready; while :; do sleep 0.05; done'
    process = start("--", program(script), start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(60) == 5
    assert process.stdout.read() == "caught\n"


def test_program_ends_with_a_killed_wrapper(
    start: Start, program: Callable[[str], str], lattice_world: World, tmp_path: Path
) -> None:
    before = lattice_world.peers()
    process = start("--", program("echo ready; exec tail -f /dev/null"), str(tmp_path))
    assert process.stdout.readline() == "ready\n"
    (peer,) = lattice_world.peers() - before
    process.kill()
    wait_for("the program to end", lambda: not processes_mentioning(str(tmp_path)))
    wait_for("the identity to end", lambda: not lattice_world.knows(peer))


# Tells of each signal who sent it: 0 is the terminal, and in a namespace whoever is outside.
WITNESS = """
import os, signal, sys
both = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, both)
print("terminal" if os.isatty(0) and os.isatty(1) else "none", "ready", flush=True)
print("got", input(), flush=True)
while True:
    found = signal.sigwaitinfo(both)
    print("signal", found.si_signo, "from", found.si_pid, flush=True)
    if found.si_signo == signal.SIGTERM:
        sys.exit(9)
"""


@pytest.mark.parametrize("isolation", ["required", "proxy"])
def test_terminal_is_the_programs_and_ctrl_c_reaches_it_once(
    environment: Mapping[str, str], program: Callable[[str], str], tmp_path: Path, isolation: str
) -> None:
    (tmp_path / "witness.py").write_text(WITNESS)
    path = program(f"exec {sys.executable} {tmp_path}/witness.py")
    wrapper, terminal = pty.fork()
    if wrapper == 0:
        command = [LATTICE_CLAUDE, "--isolation", isolation, "--", path]
        os.execve(LATTICE_CLAUDE, command, dict(environment))
    try:
        assert "terminal" in read_until(terminal, "ready")
        os.write(terminal, b"typed\n")
        read_until(terminal, "got typed")
        os.write(terminal, b"\x03")
        shown = read_until(terminal, f"signal {int(signal.SIGINT)} from 0")
        os.kill(wrapper, signal.SIGTERM)
        shown += read_until(terminal, None)
        assert shown.count(f"signal {int(signal.SIGINT)} ") == 1
        assert shown.count(f"signal {int(signal.SIGTERM)} ") == 1
        assert isolation == "required" or f"from {wrapper}" in shown
        assert os.waitstatus_to_exitcode(os.waitpid(wrapper, 0)[1]) == 9
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(wrapper, signal.SIGKILL)
        os.close(terminal)


def read_until(terminal: int, text: str | None) -> str:
    """What the terminal shows up to ``text``, or to its end."""
    shown = ""
    while text is None or text not in shown:
        try:
            chunk = os.read(terminal, 4096).decode()
        except OSError:  # EIO: nobody has the other side open
            chunk = ""
        if not chunk:
            assert text is None, f"the terminal has ended without {text!r}: {shown}"
            break
        shown += chunk
    return shown


def test_failures_say_what_to_do(
    environment: Mapping[str, str], program: Callable[[str], str]
) -> None:
    absent = run(environment, "--", "absent-command")
    assert absent.returncode == 3
    assert "what to do" in absent.stderr
    refused = run({**environment, "LATTICE_TOKEN": "lt-wrong-token"}, "--", program("echo started"))
    assert refused.returncode == 4
    assert refused.stdout == ""
    wrong = run(environment, "--isolation", "proxy", "claude", "--settings", "absent.json")
    assert wrong.returncode == 3
    assert "absent.json" in wrong.stderr


def test_command_starts_without_the_sdk() -> None:
    look = "import sys, lattice_claude.cli, lattice_claude.launch as _; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert "lattice_claude.launch" in done.stdout.split()
    assert "claude_agent_sdk" not in done.stdout.split()

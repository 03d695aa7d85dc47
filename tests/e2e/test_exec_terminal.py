"""``lattice exec`` in a terminal is as if it were not there, compared with the bare command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import World
from lattice_sdk.testing.leftovers import descendants
from support.left import agents, gateway_peers
from support.terminal import Terminal
from support.waiting import long_sleep, process_alive, process_stat, sleeping, wait_for

PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
CTRL_C, CTRL_D, CTRL_Z, CTRL_BACKSLASH = "\x03", "\x04", "\x1a", "\x1c"


@pytest.fixture(params=["bare", "lattice exec"])
def run(request: pytest.FixtureRequest, world: World) -> Callable[..., Terminal]:
    """Run a command in a terminal."""

    def start(*command: str, **settings: Any) -> Terminal:
        environment = {
            **os.environ,
            "LATTICE_SERVER": world.fabric.url,
            "LATTICE_TOKEN": world.fabric.workspace_token,
            "TERM": "dumb",
            "PS1": "prompt> ",
            "HISTFILE": "/dev/null",
        }
        prefix = [sys.executable, "-m", "lattice_sdk", "exec", "--isolation", "required", "--"]
        words = list(command) if request.param == "bare" else [*prefix, *command]
        return Terminal(words, environment, **settings)

    return start


def python(code: str) -> list[str]:
    return [PYTHON, "-u", "-c", code]


# A signal that comes just before a read is handled only after it: so no read waits for long.
LISTENING = """
import select, signal, sys
for number in ("INT", "QUIT", "TERM", "HUP", "TSTP", "WINCH", "USR1"):
    signal.signal(getattr(signal, "SIG" + number), lambda n, _: print("got", n, "."))
print("ready")
while not select.select([0], [], [], 0.05)[0]:
    pass
sys.stdin.readline()
"""


@pytest.mark.parametrize("code", [0, 3, 130, 255])
def test_exit_status(run: Callable[..., Terminal], code: int) -> None:
    with run("sh", "-c", f"exit {code}") as terminal:
        assert terminal.news() == {"status": code << 8, "terminal": True}


def test_terminal_is_the_callers(run: Callable[..., Terminal]) -> None:
    code = "import os, sys; print([os.isatty(n) for n in (0, 1, 2)], open('/dev/tty').isatty())"
    with run(*python(code)) as terminal:
        terminal.expect("[True, True, True] True")
        assert terminal.news()["status"] == 0


def test_window_size_is_the_terminals(run: Callable[..., Terminal]) -> None:
    code = f"import os\nprint(tuple(os.get_terminal_size()))\n{LISTENING}"
    code += "print(tuple(os.get_terminal_size()))"
    with run(*python(code), size=(41, 113)) as terminal:
        terminal.expect("(113, 41)")
        terminal.expect("ready")
        terminal.resize(12, 34)
        terminal.expect(f"got {int(signal.SIGWINCH)} .")
        terminal.type("\n")
        terminal.expect("(34, 12)")
        assert terminal.news()["status"] == 0
        assert "got" not in terminal.rest()


@pytest.mark.parametrize(
    ("key", "number"), [(CTRL_C, signal.SIGINT), (CTRL_BACKSLASH, signal.SIGQUIT)]
)
def test_key_that_ends_the_program(
    run: Callable[..., Terminal], key: str, number: signal.Signals
) -> None:
    with run("sh", "-c", "ulimit -c 0; echo ready; exec sleep 60") as terminal:
        terminal.expect("ready")
        terminal.type(key)
        assert os.WTERMSIG(terminal.news()["status"]) == number


@pytest.mark.parametrize("key", [CTRL_C, CTRL_BACKSLASH])
def test_key_that_the_program_handles_comes_once(run: Callable[..., Terminal], key: str) -> None:
    number = {CTRL_C: signal.SIGINT, CTRL_BACKSLASH: signal.SIGQUIT}[key]
    with run(*python(LISTENING)) as terminal:
        terminal.expect("ready")
        terminal.type(key)
        terminal.expect(f"got {int(number)} .")
        os.kill(terminal.job, signal.SIGUSR1)
        terminal.expect(f"got {int(signal.SIGUSR1)} .")
        terminal.type("\n")
        assert terminal.news()["status"] == 0
        assert "got" not in terminal.rest()


def test_program_is_stopped_and_goes_on(run: Callable[..., Terminal]) -> None:
    with run("sh", "-c", "echo ready; read line; echo line: $line") as terminal:
        terminal.expect("ready")
        for _ in range(2):
            terminal.type(CTRL_Z)
            assert terminal.news() == {"stopped": signal.SIGTSTP}
            terminal.foreground()
        terminal.type("on we go\n")
        terminal.expect("line: on we go")
        assert terminal.news() == {"status": 0, "terminal": True}


def test_stopped_program_can_be_killed(run: Callable[..., Terminal]) -> None:
    with run("sh", "-c", "echo ready; exec sleep 60") as terminal:
        terminal.expect("ready")
        terminal.type(CTRL_Z)
        assert terminal.news() == {"stopped": signal.SIGTSTP}
        os.kill(terminal.job, signal.SIGKILL)
        terminal.foreground(dead=True)
        assert os.WTERMSIG(terminal.news()["status"]) == signal.SIGKILL


def test_kill_of_what_runs_leaves_nothing(run: Callable[..., Terminal], world: World) -> None:
    """Neither its program nor its helpers nor its identity; a bare program is just gone."""
    before, long = agents(world.fabric), long_sleep()
    with run("sh", "-c", f"trap '' HUP INT TERM; echo ready; sleep {long}") as terminal:
        terminal.expect("ready")
        inside = wait_for("the program", lambda: sleeping(long))
        mine = [terminal.job, *descendants(terminal.job)]
        assert set(inside) <= set(mine)
        identities = agents(world.fabric) - before
        os.kill(terminal.job, signal.SIGKILL)
        assert os.WTERMSIG(terminal.news()["status"]) == signal.SIGKILL
        if not identities:
            for pid in inside:  # nobody sees to the children of a bare shell
                os.kill(pid, signal.SIGKILL)
        wait_for("all processes to be gone", lambda: not [p for p in mine if process_alive(p)])
        wait_for("its identity to be gone", lambda: not identities & agents(world.fabric))


def test_program_that_handles_the_stop_is_not_stopped_past_it(
    run: Callable[..., Terminal],
) -> None:
    with run(*python(LISTENING)) as terminal:
        terminal.expect("ready")
        terminal.type(CTRL_Z)
        terminal.expect(f"got {int(signal.SIGTSTP)} .")
        terminal.type("\n")
        assert terminal.news() == {"status": 0, "terminal": True}


def test_end_of_input(run: Callable[..., Terminal]) -> None:
    with run("sh", "-c", "echo ready; exec cat") as terminal:
        terminal.expect("ready")
        terminal.type(CTRL_D)
        assert terminal.news()["status"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_signal_that_somebody_sends_comes_once(
    run: Callable[..., Terminal], number: signal.Signals, group: bool
) -> None:
    with run(*python(LISTENING)) as terminal:
        terminal.expect("ready")
        (os.killpg if group else os.kill)(terminal.job, number)
        terminal.expect(f"got {int(number)} .")
        terminal.type("\n")
        assert terminal.news()["status"] == 0
        assert "got" not in terminal.rest()


def test_shell_with_job_control(run: Callable[..., Terminal]) -> None:
    """It takes the terminal for itself and its jobs, and gives it back in the end."""
    with run("bash", "--norc", "--noprofile", "-i") as terminal:
        terminal.expect("prompt> ")
        terminal.type("set -o | grep monitor\n")
        terminal.expect("on")
        terminal.expect("prompt> ")
        long = long_sleep()
        terminal.type(f"sleep {long}\n")
        terminal.expect(f"sleep {long}")
        wait_until_in_foreground(long)
        terminal.type(CTRL_Z)
        terminal.expect("Stopped")
        terminal.expect("prompt> ")
        terminal.type("fg\n")
        terminal.expect(f"sleep {long}")
        wait_until_in_foreground(long)
        terminal.type(CTRL_C)
        terminal.expect("prompt> ")
        terminal.type("exit 5\n")
        assert terminal.news() == {"status": 5 << 8, "terminal": True}


def wait_until_in_foreground(seconds: str) -> None:
    """Until a job of the inner shell, which sleeps that long, has the terminal."""
    wait_for("the inner job", lambda: [pid for pid in sleeping(seconds) if has_terminal(pid)])


def has_terminal(pid: int) -> bool:
    """Whether the process runs in its terminal's foreground: proc(5), of /proc/PID/stat."""
    found = process_stat(pid)
    return bool(found) and found[0] != "T" and found[2] == found[5]


def test_nothing_is_typed_into_the_callers_terminal(
    run: Callable[..., Terminal], request: pytest.FixtureRequest
) -> None:
    """Else what a program leaves in the terminal is read by the shell that started it."""
    code = """
import fcntl, termios
try:
    for character in b"echo injected":
        fcntl.ioctl(0, termios.TIOCSTI, bytes([character]))
    print("typed")
except PermissionError:
    print("refused")
"""
    with run(*python(code)) as terminal:
        inside = "lattice" in request.node.callspec.id
        terminal.expect("refused" if inside or not legacy() else "typed")
        assert terminal.news()["status"] == 0


def legacy() -> bool:
    """Whether this kernel lets terminals be typed into at all."""
    setting = Path("/proc/sys/dev/tty/legacy_tiocsti")
    return not setting.exists() or setting.read_text().strip() == "1" or os.getuid() == 0


def test_hang_up_of_the_terminal_ends_the_program(
    run: Callable[..., Terminal], tmp_path: Any
) -> None:
    marker = tmp_path / "hung-up"
    script = f"trap 'echo > {marker}; exit' HUP; echo ready; while :; do sleep 0.05; done"
    with run("bash", "-c", script) as terminal:
        terminal.expect("ready")
        os.killpg(terminal.job, signal.SIGHUP)
        wait_for("the program to have been told", marker.exists)
        assert terminal.news()["status"] == 0


def test_kill_of_the_shell_hangs_the_program_up(
    run: Callable[..., Terminal], world: World, tmp_path: Path
) -> None:
    """It is told, may end as it likes, and nothing of it is left."""
    before, peers = agents(world.fabric), gateway_peers(world.fabric)
    marker = tmp_path / "hung-up"
    script = f"trap 'echo > {marker}; exit' HUP; echo ready; while :; do sleep 0.05; done"
    with run("bash", "-c", script) as terminal:
        terminal.expect("ready")
        mine = [terminal.job, *descendants(terminal.job)]
        terminal.kill_shell()
        wait_for("the program to have been told", marker.exists)
        wait_for("all processes to be gone", lambda: not [p for p in mine if process_alive(p)])
    wait_for("its identity to be gone", lambda: agents(world.fabric) <= before)
    wait_for("it to leave the gateway", lambda: gateway_peers(world.fabric) <= peers)

"""``lattice exec``: any program as an agent, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import World
from lattice_sdk.testing.gate import Gate
from lattice_sdk.testing.leftovers import descendants
from support.left import Left, agents, watched
from support.waiting import long_sleep, process_alive, processes_mentioning, sleeping, wait_for
from support.wrapped import GRANTED

EXEC = [sys.executable, "-m", "lattice_sdk", "exec"]
GONE_WITHIN = 10.0  # seconds after a kill; two are promised, the rest is for a busy machine


class Exec:
    """Runs the command with settings of a world, and a directory for temporary files of its own."""

    def __init__(self, world: World, temporary: Path, left: Left) -> None:
        self.world, self.temporary, self.left = world, temporary, left
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(temporary.parent),
            "TMPDIR": str(temporary),
            "LATTICE_SERVER": world.fabric.url,
            "LATTICE_TOKEN": world.fabric.workspace_token,
        }

    def command(self, *program: str, options: tuple[str, ...] = ()) -> list[str]:
        return [*EXEC, *options, "--", *program]

    def run(
        self,
        *program: str,
        options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> subprocess.CompletedProcess[str]:
        settings = {"capture_output": True, "text": True, "timeout": 60, **settings}
        return subprocess.run(
            self.command(*program, options=options),
            env={**self.environment, **(environment or {})},
            **settings,
        )

    @contextlib.contextmanager
    def start(
        self, *program: str, options: tuple[str, ...] = (), **settings: Any
    ) -> Iterator[subprocess.Popen[str]]:
        settings = {"stdout": subprocess.PIPE, "text": True, **settings}
        environment = {**self.environment, **settings.pop("environment", {})}
        with subprocess.Popen(
            self.command(*program, options=options), env=environment, **settings
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def agents(self) -> set[str]:
        """Peers of agents that the control plane has."""
        return agents(self.world.fabric)

    def assert_nothing_left(self) -> None:
        """No process, no namespace, no file, no identity."""
        assert self.left.found() == []


@pytest.fixture
def lattice(world: World, tmp_path: Path) -> Iterator[Exec]:
    """The command; whatever a test does with it, nothing is left."""
    temporary = tmp_path / "t"
    temporary.mkdir()
    with watched(world.fabric, temporary) as left:
        yield Exec(world, temporary, left)
        wait_for("nothing to be left", lambda: not left.found(), instead=left.found)


ADDRESS = "import json, os; print(json.load(open(os.environ['LATTICE_SANDBOX']))['overlayIP'])"


def test_program_has_the_agents_network_and_no_other(lattice: Exec) -> None:
    script = f'curl -sS --max-time 10 {GRANTED}; echo; python3 -c "{ADDRESS}"; '
    script += f"curl -sS --max-time 10 {lattice.world.fabric.url}"
    done = lattice.run("sh", "-c", script)
    told = done.stdout.splitlines()
    assert json.loads(told[0])["client"] == told[1]
    assert done.returncode == 7
    assert "Couldn't connect" in done.stderr
    lattice.assert_nothing_left()


@pytest.mark.parametrize("more", [-11, -2, -1, 0, 1])
def test_directory_for_temporary_files_may_have_a_long_name(lattice: Exec, more: int) -> None:
    """As long as the path of a socket may just be, and a little more or less: see unix(7)."""
    socket = f"/lattice-{os.getuid()}/engine-0123456789/control.sock"
    with tempfile.TemporaryDirectory(prefix="lx-") as short:
        room = 107 - len(socket) - len(f"{short}/") + more
        temporary = Path(short, "t" * room)
        temporary.mkdir()
        done = lattice.run("echo", "it runs", environment={"TMPDIR": str(temporary)})
    assert (done.stdout, done.stderr) == ("it runs\n", "")


def test_output_is_the_programs_alone(lattice: Exec) -> None:
    done = lattice.run("sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 0)


@pytest.mark.parametrize("code", [0, 1, 2, 16, 70, 125, 126, 127, 141, 255])
def test_exit_status_is_the_programs(lattice: Exec, code: int) -> None:
    assert lattice.run("sh", "-c", f"exit {code}").returncode == code
    lattice.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
def test_death_by_signal_is_the_programs(lattice: Exec, number: signal.Signals) -> None:
    assert lattice.run("sh", "-c", f"kill -{int(number)} $$").returncode == -number


@pytest.mark.parametrize(
    ("program", "status", "sentence"),
    [
        ("no-such-program", 127, "no-such-program: No such file or directory"),
        ("/etc/passwd", 126, "/etc/passwd: Permission denied"),
    ],
)
def test_program_that_cannot_start(lattice: Exec, program: str, status: int, sentence: str) -> None:
    done = lattice.run(program)
    assert (done.returncode, done.stderr) == (status, f"lattice exec: {sentence}\n")
    lattice.assert_nothing_left()


def test_files_and_directory_are_the_callers(lattice: Exec, tmp_path: Path) -> None:
    done = lattice.run("sh", "-c", "pwd; echo made > here; id -u", cwd=tmp_path)
    assert done.stdout.split() == [str(tmp_path), str(os.getuid())]
    assert (tmp_path / "here").read_text() == "made\n"


def test_pipes_are_the_programs(lattice: Exec) -> None:
    data = "x" * 3_000_000
    assert lattice.run("cat", input=data).stdout == data
    assert lattice.run("head", "-c", "3", input=data).stdout == "xxx"
    shell = f"{' '.join(lattice.command('yes'))} | head -n 2"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell],
        env=lattice.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("y\ny\n", 128 + signal.SIGPIPE)


def test_end_of_output_is_seen_before_the_end(lattice: Exec) -> None:
    reading, writing = os.pipe()
    with open(reading) as output:
        script = "echo done; exec >&- 2>&- <&-; exec sleep 60"
        with lattice.start("sh", "-c", script, stdout=writing, stderr=writing) as process:
            os.close(writing)
            assert output.read() == "done\n"
            assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signal_is_passed_on(lattice: Exec, number: signal.Signals) -> None:
    with lattice.start("sh", "-c", "echo up; exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(20) == -number


def test_kill_of_the_parent_ends_program_and_identity(lattice: Exec) -> None:
    before, long = lattice.agents(), long_sleep()
    script = f"trap '' TERM HUP INT; (setsid sleep {long} &); echo up; sleep {long}"
    with lattice.start("sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        lattice.left.note()
        peers = lattice.agents() - before
        assert len(peers) == 1
        pids = descendants(process.pid)
        process.kill()
        killed = time.monotonic()
        wait_for("the program to be gone", lambda: not processes_mentioning(f"sleep {long}"))
        wait_for("its peer to be gone", lambda: not peers & lattice.agents())
        assert time.monotonic() - killed < GONE_WITHIN
        wait_for("all processes to be gone", lambda: not [p for p in pids if process_alive(p)])


def test_daemon_that_the_program_leaves_ends_with_it(lattice: Exec) -> None:
    long = long_sleep()
    script = f"trap '' HUP TERM; setsid sleep {long} >&- 2>&- <&- & read -r _; exit 5"
    with lattice.start("sh", "-c", script, stdin=subprocess.PIPE) as process:
        wait_for("the daemon", lambda: sleeping(long))
        lattice.left.note()
        process.communicate("\n", timeout=60)
        assert process.returncode == 5
    lattice.assert_nothing_left()


def test_interrupt_during_the_start_leaves_nothing(lattice: Exec) -> None:
    long = long_sleep()
    for delay in (0.0, 0.02, 0.04, 0.06, 0.08, 0.12, 0.2):
        with lattice.start("sleep", long, stdin=subprocess.DEVNULL) as process:
            time.sleep(delay)  # into whichever stage of the start that is
            process.send_signal(signal.SIGINT)
            try:
                status = process.wait(10)
            except subprocess.TimeoutExpired:
                # Python drops what its own handler raises in a callback, as of an early import.
                process.send_signal(signal.SIGINT)
                status = process.wait(60)
            assert status in (-signal.SIGINT, 1), delay
    wait_for("programs to be gone", lambda: not processes_mentioning(f"sleep {long}"))


# `lattice exec` that gets Ctrl-C at a moment in which Python drops what its handler raises, or
# makes another error of it.
DROPPED = """
import os, signal, sys, weakref
from lattice_sdk.execution import main, quick, settings

def drop(_):
    os.kill(os.getpid(), signal.SIGINT)

class Thing:
    pass

class Wrapping:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)

def wrapped(of, name):
    def instead(*arguments):
        class Thing:
            attribute = Wrapping()
    setattr(of, name, instead)

def interrupted(of, name):
    work = getattr(of, name)
    def both(*arguments):
        thing = Thing()
        watched = weakref.ref(thing, drop)
        del thing
        return work(*arguments)
    setattr(of, name, both)

if sys.argv[1] == "wrapped":
    wrapped(quick.Quick, "spec")
elif sys.argv[1] == "quick":
    interrupted(quick.Quick, "spec")
else:
    settings.ordinary = lambda options: None
    interrupted(main, "_run_by_sdk")
main.main(["--", "echo", "it runs"])
"""


@pytest.mark.parametrize("way", ["quick", "sdk", "wrapped"])
def test_interrupt_that_python_drops_ends_it_all_the_same(lattice: Exec, way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, way],
        env=lattice.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ("Exception ignored in" in done.stderr) is (way != "wrapped")
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")


def test_ignored_hangup_stays_ignored(lattice: Exec) -> None:
    """As nohup has it."""
    script = "echo up; read -r line; echo $line"
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with lattice.start("sh", "-c", script, preexec_fn=ignore, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.kill(process.pid, signal.SIGHUP)
        assert process.communicate("still here\n", timeout=20)[0] == "still here\n"


# The life of the identity.


def test_identity_is_renewed_while_the_program_runs(lattice: Exec) -> None:
    """The SDK takes it over in time, and gives it back in the end."""
    before, own = lattice.agents(), os.getpriority(os.PRIO_PROCESS, 0)
    step = f"curl -sS --max-time 9 {GRANTED} || exit 1; echo; sleep 1"
    script = f"for i in $(seq 22); do {step}; done; read -r _"
    with lattice.start(
        "sh", "-c", script, options=("--ttl", "20s"), stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        clients = [json.loads(line)["client"] for line in itertools.islice(process.stdout, 22)]
        # What has renewed it: at a lower priority it would come too late on a busy machine.
        levels = set()
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread that has ended meanwhile
                levels.add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    assert len(clients) == 22
    assert len(set(clients)) == 1
    assert levels == {own}
    assert lattice.agents() <= before


def test_program_without_renewals_loses_its_network_and_is_told(lattice: Exec) -> None:
    script = f"echo up; read -r _; curl -sS --max-time 9 -o /dev/null {GRANTED}; echo $?"
    with (
        Gate(lattice.world.fabric.url) as gate,
        lattice.start(
            "sh",
            "-c",
            script,
            options=("--ttl", "8s", "--server", gate.url),
            stdin=subprocess.PIPE,
            stderr=(lattice.temporary.parent / "errors").open("w"),
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        gate.close()
        wait_for(
            "the end of the identity to be told",
            lambda: "has ended" in (lattice.temporary.parent / "errors").read_text(),
        )
        output, _ = process.communicate("\n", timeout=60)
    assert output == "7\n"
    assert process.returncode == 0


def test_server_inside_is_reached_by_agents_of_the_workspace(lattice: Exec) -> None:
    code = """
import os, json, socket
at = json.load(open(os.environ["LATTICE_SANDBOX"]))["overlayIP"]
with socket.create_server((at, 8000)) as server:
    print(at, flush=True)
    stream, source = server.accept()
    stream.sendall(source[0].encode())
"""
    options = ("--preset", "coordinator")
    with lattice.start("python3", "-c", code, options=options) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        script = f'exec 3<>/dev/tcp/{address}/8000; cat <&3; echo; python3 -c "{ADDRESS}"'
        done = lattice.run("bash", "-c", script, options=options)
        assert server.wait(20) == 0
    seen, own = done.stdout.split()
    assert seen == own


# Answers one connection to the listener that is its standard input with what came up to a full
# stop, reversed, and is there until that has been read: the tunnel goes down with its program.
REVERSING = """
import socket
print("up", flush=True)
stream, _ = socket.socket(fileno=0).accept()
data = b""
while not data.endswith(b"."):
    data += stream.recv(65536)
stream.sendall(data[::-1])
stream.recv(1)
"""
SENDING = """
import socket, sys
data = sys.stdin.buffer.read()
with socket.create_connection((sys.argv[1], 9000), 30) as stream:
    stream.sendall(data)
    left = len(data)
    while left:
        chunk = stream.recv(min(left, 65536))
        left -= len(chunk) or left
        sys.stdout.buffer.write(chunk)
"""


@pytest.mark.parametrize("isolation", ["required", "proxy"])
def test_forward_leads_to_what_listens_on_this_machine(lattice: Exec, isolation: str) -> None:
    """Another program than that of `lattice exec`, where that has no listener of this machine's."""
    peers = lattice.agents()
    coordinator = ("--preset", "coordinator")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        program, stdin = ("python3", "-c", REVERSING), listener
        if isolation == "required":
            beside = subprocess.Popen(
                [sys.executable, "-c", REVERSING], stdin=listener, stdout=subprocess.DEVNULL
            )
            stack.enter_context(beside)
            stack.callback(beside.kill)  # before it is waited for
            program, stdin = ("sh", "-c", "echo up; read -r _"), subprocess.PIPE
        to = f"9000:127.0.0.1:{listener.getsockname()[1]}"
        options = (*coordinator, "--isolation", isolation, "--forward", to)
        server = stack.enter_context(lattice.start(*program, options=options, stdin=stdin))
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        (peer,) = lattice.agents() - peers
        known = lattice.world.fabric.request("GET", f"/api/v1/peers/{peer}")
        address = known["overlayIP"].removesuffix("/32")
        sent = "".join(map(str, range(100_000))) + "."
        sending = ("python3", "-c", SENDING, address)
        done = lattice.run(*sending, options=coordinator, input=sent)
        assert done.stdout == sent[::-1], done.stderr
        if isolation == "required":
            server.communicate("\n", timeout=60)
        assert server.wait(60) == 0


def test_allow_means_the_isolated_preset(lattice: Exec) -> None:
    search, tools = (lattice.world.addresses[name] for name in ("search", "github-tools"))
    script = f"curl -sS --max-time 9 -o /dev/null http://{search}/ || exit 1; "
    script += f"curl -sS --max-time 9 -o /dev/null http://{tools}/; echo $?; "
    script += 'grep -o \'"policyPreset": "[a-z]*"\' /run/lattice/identity.json'
    token = lattice.world.fabric.create_token(
        kind="workspace", workspaceId="dev", allowIsolated=True
    )
    options = ("--allow", f"{search}:80")
    done = lattice.run("sh", "-c", script, options=options, environment={"LATTICE_TOKEN": token})
    assert done.stdout == '7\n"policyPreset": "isolated"\n', done.stderr


# Failures of its own.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--nonsense",), "there is no option --nonsense"),
        (("--allow", "nowhere"), "--allow: 'nowhere' is not HOST:PORT"),
        (("--ttl",), "no program is named"),
    ],
)
def test_wrong_usage(lattice: Exec, options: tuple[str, ...], sentence: str) -> None:
    done = subprocess.run(
        [*EXEC, *options, *(["1h"] if options == ("--ttl",) else ["--", "true"])],
        env=lattice.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 125
    assert sentence in done.stderr
    assert "lattice exec --help" in done.stderr


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"LATTICE_TOKEN": "lt-wrong"}, "Check that the token belongs to this control plane"),
        ({"LATTICE_SERVER": "http://127.0.0.1:9"}, "the control plane cannot be reached"),
        ({"LATTICE_SERVER": ""}, "no control plane is named"),
        ({"LATTICE_TOKEN": ""}, "no token is set"),
        ({"LATTICE_ISOLATION": "total"}, "isolation"),
        ({"LATTICE_ENGINE": "/nonexistent"}, "LATTICE_ENGINE names /nonexistent"),
    ],
)
def test_failure_says_what_to_do(lattice: Exec, environment: dict[str, str], sentence: str) -> None:
    done = lattice.run("echo", "ran", environment={**environment, "LATTICE_TIMEOUT": "20"})
    assert (done.returncode, done.stdout) == (125, "")
    assert sentence in done.stderr
    assert "what to do" in done.stderr
    assert "Traceback" not in done.stderr
    lattice.assert_nothing_left()


# What is out of the ordinary goes by the SDK, and is the same.

WAYS: dict[str, Callable[[Path], tuple[tuple[str, ...], dict[str, str]]]] = {
    "ordinary": lambda _: ((), {}),
    "a timeout": lambda _: ((), {"LATTICE_TIMEOUT": "20"}),
    "a proxy": lambda _: (("--isolation", "proxy"), {}),
    "a state directory": lambda home: ((), {"LATTICE_STATE_DIR": str(home / "state")}),
    "a forward": lambda _: (("--preset", "coordinator", "--forward", "9000:9000"), {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_same(lattice: Exec, way: str, tmp_path: Path) -> None:
    options, environment = WAYS[way](tmp_path)
    script = f"cat; curl -sS --max-time 9 -o /dev/null {GRANTED} && exit 6"
    done = lattice.run("sh", "-c", script, options=options, environment=environment, input="in\n")
    assert (done.stdout, done.returncode) == ("in\n", 6), done.stderr
    done = lattice.run("sh", "-c", "kill -TERM $$", options=options, environment=environment)
    assert done.returncode == -signal.SIGTERM
    done = lattice.run("no-such-program", options=options, environment=environment)
    assert done.returncode == 127


@pytest.mark.parametrize("way", WAYS)
def test_signal_is_passed_on_in_every_way(lattice: Exec, way: str, tmp_path: Path) -> None:
    options, environment = WAYS[way](tmp_path)
    script = "trap 'echo caught; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    with lattice.start("bash", "-c", script, options=options, environment=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.communicate(timeout=30)[0] == "caught\n"
        assert process.returncode == 3


@pytest.mark.parametrize("isolation", ["preferred", "required"])
def test_machine_that_forbids_sandboxes(lattice: Exec, isolation: str) -> None:
    """As a container whose /proc is masked: a proxy and a warning, or nothing."""
    if os.getuid() != 0:
        pytest.skip("changes the machine's mounts")
    line = lattice.command("sh", "-c", "echo ran $HTTP_PROXY", options=("--isolation", isolation))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", 'mount -t tmpfs t /proc/bus; exec "$@"', "sh", *line],
        env=lattice.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "/proc/bus hides a part of /proc" in done.stderr
    if isolation == "required":
        assert (done.returncode, done.stdout) == (125, "")
    else:
        assert done.returncode == 0
        assert done.stdout.startswith("ran http://peer-")
        assert "are not isolated" in done.stderr


def test_settings_come_from_the_config_file_too(lattice: Exec, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'server = "{lattice.world.fabric.url}"\ntoken = "{lattice.world.fabric.workspace_token}"\n'
    )
    environment = {"LATTICE_SERVER": "", "LATTICE_TOKEN": "", "LATTICE_CONFIG": str(config)}
    done = lattice.run("cat", str(config), environment=environment)
    assert (done.returncode, done.stdout) == (0, ""), "the token can be read inside"


def test_token_file_cannot_be_read_inside(lattice: Exec, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(lattice.world.fabric.workspace_token)
    environment = {"LATTICE_TOKEN": "", "LATTICE_TOKEN_FILE": str(file)}
    done = lattice.run("cat", str(file), environment=environment)
    assert (done.returncode, done.stdout) == (0, "")
    assert file.read_text() == lattice.world.fabric.workspace_token


# Many.


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_hundred_in_turn_leave_nothing(lattice: Exec) -> None:
    for number in range(100):
        script = f"echo up; read -r _; exit {number}"
        with lattice.start("sh", "-c", script, stdin=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            lattice.left.note()
            process.communicate("\n", timeout=60)
            assert process.returncode == number
    lattice.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fifty_at_once_leave_nothing(lattice: Exec) -> None:
    """All of them work at the same time, before the first one ends."""
    before, met = lattice.agents(), threading.Barrier(50, lattice.left.note)

    def one(number: int) -> tuple[str, int]:
        script = f"curl -sS --max-time 60 {GRANTED} || exit 99; echo; read -r _; exit {number}"
        with lattice.start("sh", "-c", script, stdin=subprocess.PIPE) as process:
            assert process.stdout is not None
            seen = json.loads(process.stdout.readline())
            met.wait(200)
            process.communicate("\n", timeout=60)
            return seen["client"], process.returncode

    with ThreadPoolExecutor(50) as pool:
        done = list(pool.map(one, range(50)))
    assert [status for _, status in done] == list(range(50))
    assert len({client for client, _ in done}) == 50
    assert lattice.agents() <= before
    lattice.assert_nothing_left()

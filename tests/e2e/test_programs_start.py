"""Programs of an agent are started as :mod:`subprocess` starts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import World
from lattice_sdk import (
    ConfigurationError,
    LatticeAgent,
)
from lattice_sdk.testing import running
from lattice_sdk.testing.leftovers import descendants
from support.waiting import long_sleep, processes_mentioning, wait_for
from support.wrapped import GRANTED, curl


@pytest.fixture(scope="module")
def agent(world: World) -> Iterator[LatticeAgent]:
    """One whose programs are isolated."""
    with world.agent(isolation="required") as agent:
        yield agent


def test_run_is_as_subprocess_run(agent: LatticeAgent) -> None:
    script = ["sh", "-c", "cat; echo error >&2; exit 3"]
    for settings in (
        {"input": "hello", "capture_output": True, "text": True},
        {"input": b"hello", "capture_output": True},
        {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
    ):
        bare, ours = subprocess.run(script, **settings), agent.run(script, **settings)  # type: ignore[call-overload]
        assert vars(ours) == vars(bare)
    with pytest.raises(subprocess.CalledProcessError) as failure:
        agent.run(script, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    assert failure.value.cmd == script
    assert failure.value.returncode == 3


def test_run_kills_at_its_timeout(agent: LatticeAgent) -> None:
    script = ["sh", "-c", "echo so far; sleep 60 & sleep 60"]
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        agent.run(script, timeout=10, stdout=subprocess.PIPE)
    assert expired.value.output == b"so far\n"


@pytest.mark.parametrize("start", ["run", "popen"])
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["no-such-program"], FileNotFoundError),
        (["/nonexistent/program"], FileNotFoundError),
        (["/etc/passwd"], PermissionError),
    ],
)
def test_program_that_cannot_start_raises_as_subprocess_does(
    agent: LatticeAgent, start: str, command: list[str], kind: type[OSError]
) -> None:
    with pytest.raises(kind) as bare:
        subprocess.Popen(command)
    with pytest.raises(kind) as ours:
        getattr(agent, start)(command)
    assert (ours.value.errno, ours.value.filename) == (bare.value.errno, bare.value.filename)


def test_missing_directory_raises_as_subprocess_does(agent: LatticeAgent) -> None:
    for start in (subprocess.run, agent.run):
        with pytest.raises(FileNotFoundError) as failure:
            start(["true"], cwd="/nonexistent")
        assert failure.value.filename == "/nonexistent"


def test_settings_of_subprocess_work(agent: LatticeAgent, tmp_path: Path) -> None:
    def out(*arguments: Any, **settings: Any) -> str:
        settings = {"capture_output": True, "text": True, "check": True, **settings}
        return str(agent.run(*arguments, **settings).stdout)

    assert out("echo $0 $HELLO", shell=True, env={"HELLO": "there"}) == "/bin/sh there\n"
    assert out(["pwd"], cwd=tmp_path) == f"{tmp_path}\n"
    assert out("pwd", cwd="/") == "/\n"
    assert out(["renamed", "-c", "echo $0"], executable="/bin/sh") == "renamed\n"
    assert out(["sh", "-c", "umask"], umask=0o27) == "0027\n"
    reading, writing = os.pipe()
    with open(reading) as told:
        agent.run(["bash", "-c", f"echo told >&{writing}"], pass_fds=(writing,), check=True)
        os.close(writing)
        assert told.read() == "told\n"


@pytest.mark.parametrize("settings", [{"user": 1}, {"group": 1}, {"close_fds": False}])
def test_settings_that_do_not_go_are_refused(agent: LatticeAgent, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        agent.popen(["true"], **settings)


def test_popen_can_be_signalled_and_waited_for(agent: LatticeAgent) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1):
        with agent.popen(["sleep", "60"]) as process:
            process.send_signal(number)
            assert process.wait(20) == -number


def test_popen_comes_back_when_the_program_runs(agent: LatticeAgent) -> None:
    """A signal that is sent at once reaches the program, not something on the way to it."""
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    with agent.popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.communicate(timeout=20)[0] == "caught\n"
        assert process.returncode == 5


def test_popen_from_a_thread_that_ends(agent: LatticeAgent) -> None:
    found: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: found.append(agent.popen(["sleep", "60"])))
    thread.start()
    thread.join()
    with found[0] as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()


def test_asyncio_has_the_same(agent: LatticeAgent) -> None:
    async def main() -> tuple[bytes, int | None]:
        process = await agent.create_subprocess_exec(
            "sh",
            "-c",
            "cat; exit 4",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=4096,
        )
        output, _ = await process.communicate(b"through a pipe")
        with pytest.raises(FileNotFoundError):
            await agent.create_subprocess_exec("no-such-program")
        many = [agent.create_subprocess_exec(*curl("-o", "/dev/null", GRANTED)) for _ in range(5)]
        codes = [await each.wait() for each in await asyncio.gather(*many)]
        assert codes == [0] * 5
        return output, process.returncode

    assert asyncio.run(main()) == (b"through a pipe", 4)


def test_cancelled_start_leaves_no_program(agent: LatticeAgent) -> None:
    long = long_sleep()

    async def main() -> None:
        for delay in (0.0, 0.005, 0.02, 0.05):
            starting = asyncio.create_task(agent.create_subprocess_exec("sleep", long))
            await asyncio.sleep(delay)
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await starting).kill()

    asyncio.run(main())
    wait_for("the programs to be gone", lambda: not processes_mentioning(f"sleep {long}"))


def test_wrap_is_for_anybody_to_execute(agent: LatticeAgent, tmp_path: Path) -> None:
    line = agent.wrap(curl(GRANTED), cwd=tmp_path)
    assert all(isinstance(word, str) for word in line)
    script = tmp_path / "wrapper"
    words = " ".join(f"'{word}'" for word in line)
    script.write_text(f"#!/bin/sh\nexec {words}\n")
    script.chmod(0o755)
    done = subprocess.run([script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["client"] == agent.overlay_ip


def test_wrapped_line_and_environment_hold_no_secret(world: World) -> None:
    with world.agent(isolation="required") as agent:
        config, identity = agent.wireguard_config, agent._identity()
        assert config is not None
        secrets = [
            world.fabric.workspace_token,
            config.get_secret_value().split("PrivateKey = ")[1].split()[0],
            identity.enrollment_token.get_secret_value(),
            agent.proxy_env()["HTTP_PROXY"].split("@")[0].rpartition(":")[2],
        ]
        environment = {**os.environ, "LATTICE_TOKEN": secrets[0], **agent.proxy_env()}
        with agent.popen(["sleep", "60"], env=environment) as process:
            public = [*agent.wrap(["true"]), *process.args]  # type: ignore[list-item]
            for pid in [process.pid, *descendants(process.pid)]:
                public += [running.environment(pid), running.arguments(pid)]
            process.kill()
        spec = Path(public[4]) if public[4].endswith("spec") else Path(agent.wrap(["x"])[4])
        public.append(spec.read_text())
        for path in (spec.parent / "view").iterdir():
            public.append(path.read_text())
        assert not [secret for secret in secrets if secret in "\0".join(public)]
        assert spec.stat().st_mode & 0o777 == 0o600
        assert spec.parent.stat().st_mode & 0o777 == 0o700

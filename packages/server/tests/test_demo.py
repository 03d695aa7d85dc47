"""``lattice demo`` as people run it, and what it does when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lattice_server.demo.outcome import Outcome
from lattice_server.demo.view import JsonView, TextView, shown
from support.waiting import processes_mentioning, wait_for


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the demo's own, with a short path for sockets."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


# With the bounds of a machine that is busy with other tests; `make demo` holds to the stated ones.
# Python drops what a signal's handler raises while it runs a callback of its own, such as one of
# the import system: then the signal comes again, as from somebody who sees that nothing happens.
PATIENT = """
import runpy, signal, sys
from lattice_server.demo import story

story.REFUSED_WITHIN, story.CUT_WITHIN, story.REMOVED_WITHIN = 10.0, 5.0, 15.0
story.SHORT_TTL, story.PATIENCE = "10s", 60.0


def again(dropped):
    error = dropped.exc_value
    if isinstance(error, KeyboardInterrupt):
        number = signal.SIGINT
    elif isinstance(error, SystemExit):
        number = error.code - 128
    else:
        return sys.__unraisablehook__(dropped)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
    signal.alarm(1)


sys.unraisablehook = again
sys.argv = ["lattice", *sys.argv[1:]]
runpy.run_module("lattice_sdk", run_name="__main__")
"""


def run_demo(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start ``lattice demo``."""
    return subprocess.Popen(
        [sys.executable, "-c", PATIENT, "demo", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_demo_shows_all_steps_and_leaves_nothing(home: Path) -> None:
    with run_demo(home, "--json") as demo:
        out, err = demo.communicate(timeout=240)
    assert demo.returncode == 0, f"{out}\n{err}"
    report = json.loads(out)
    assert report["ok"] is True
    steps = {step["name"]: step for step in report["steps"]}
    assert set(steps) >= {
        "granted", "undesignated", "neighbour", "renewed", "deleted", "killed", "expired",
        "nothing_left",
    }  # fmt: skip
    assert "sandboxed" in steps["undesignated"]["shown"]
    assert steps["deleted"]["figures"]["ms"] < 5000
    assert steps["killed"]["figures"]["ms"] < 15000
    assert abs(steps["expired"]["figures"]["ms_from_expiry"]) < 5000
    assert list(home.iterdir()) == []
    assert processes_mentioning(str(home)) == []


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(home: Path, kind: signal.Signals) -> None:
    with run_demo(home) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "enrolls" in line:
                break
        demo.send_signal(kind)
        out, err = demo.communicate(timeout=180)
        assert demo.returncode not in (0, None), f"{out}\n{err}"
    assert "Traceback" not in err
    wait_for("all processes to end", lambda: not processes_mentioning(str(home)))
    assert list(home.iterdir()) == []


def test_step_that_shows_something_else_fails_the_demo_and_ends_it(home: Path) -> None:
    program = (
        "import runpy, sys; from lattice_server.demo import story; story.REFUSED_WITHIN = 0.0;"
        "story.SHORT_TTL, story.PATIENCE = '30s', 60.0;"
        "sys.argv = ['lattice', 'demo', '--json'];"
        "runpy.run_module('lattice_sdk', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["ok"] is False
    assert [step["ok"] for step in report["steps"]] == [True, True, True, False]
    assert "was refused after" in report["steps"][-1]["shown"]
    assert list(home.iterdir()) == []
    assert processes_mentioning(str(home)) == []


def test_footprint_finds_an_orphan_a_socket_a_file_and_a_held_namespace(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, tempfile; from pathlib import Path; Path('made').touch();"
        "subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)"
    )
    checker = f"""
import os, socket, subprocess, sys, tempfile
from pathlib import Path
from lattice_server.demo.leftovers import Footprint
directory = Path(tempfile.mkdtemp(prefix="fp-"))
footprint = Footprint(directory)
subprocess.run([sys.executable, "-c", {program!r}], cwd=directory, check=True)
server = socket.socket(socket.AF_UNIX)
server.bind(str(directory / "s"))
apart = "import ctypes; assert not ctypes.CDLL(None).unshare(0x50000000); print(); input()"
with subprocess.Popen(
    [sys.executable, "-c", apart], stdin=subprocess.PIPE, stdout=subprocess.PIPE
) as child:
    child.stdout.readline()
    assert footprint.remember_namespaces() == 1
    network = os.readlink(f"/proc/{{child.pid}}/ns/net")
    held = os.open(f"/proc/{{child.pid}}/ns/net", os.O_RDONLY)
    child.communicate(b"\\n")
found = footprint.found()
for line in found:
    if line.startswith("process"):
        os.kill(int(line.split()[1].strip(":")), 9)
        os.waitpid(int(line.split()[1].strip(":")), 0)
server.close()
os.close(held)
assert f"namespace {{network}} of process {{os.getpid()}}" in found, found
import shutil; shutil.rmtree(directory)
print(len(found), "|".join(found), footprint.found())
"""
    done = subprocess.run(
        [sys.executable, "-c", checker], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "sleep 60" in done.stdout
    assert "socket " in done.stdout
    assert "/made" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_views_tell_failure(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome("x", "A claim", False, "what went wrong")
    for view in (TextView(), JsonView()):
        view.end(outcome)
        view.close([outcome])
    text = capsys.readouterr().out
    assert "what went wrong" in text
    assert '"ok": false' in text


def test_terminal_shows_the_step_that_runs_and_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = Outcome("x", "A claim", True, "what was seen", {"ms": 1.0})
    with shown(TextView()) as view:
        view.begin("A claim")
        view.say("3 s to go")
        view.end(outcome)
        view.close([outcome])
    told = capsys.readouterr().out
    assert "3 s to go" in told
    assert told.index("3 s to go") < told.index("what was seen")
    assert "\x1b[?25h" in told.split("what was seen")[0], "the cursor is hidden for good"

"""The seven wheels are all that is needed: the demo runs from them, without the sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path for path in (ROOT / "packages").iterdir() if path.is_dir())
UV = ROOT / ".tools" / "bin" / "uv"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# The command as a wheel has installed it, with the bounds of a machine that is busy with other
# tests; `make demo` holds to the stated ones.
PATIENT = """
import runpy, sys
from lattice_server.demo import story

story.REFUSED_WITHIN, story.CUT_WITHIN, story.REMOVED_WITHIN = 10.0, 5.0, 15.0
story.SHORT_TTL, story.PATIENCE = "10s", 60.0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All wheels, built as `make wheels` does."""
    directory = tmp_path_factory.mktemp("wheels")
    go = subprocess.run(
        [ROOT / "scripts" / "bootstrap.sh", "go"], capture_output=True, text=True, check=True
    )
    command = [UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--offline"]
    command += ["--python", sys.executable, "--out-dir", directory]
    for package in PACKAGES:
        subprocess.run(
            [*command, package], env={**os.environ, "LATTICE_GO": go.stdout.strip()}, check=True
        )
    return sorted(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheels: list[Path]) -> Iterator[Path]:
    """An interpreter that has the wheels, and of this one's packages those of others."""
    with tempfile.TemporaryDirectory(prefix="wheels-") as name:
        directory = Path(name)
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, directory], check=True)
        python = directory / "bin" / "python"
        subprocess.run(
            [
                UV,
                "pip",
                "install",
                "--quiet",
                "--offline",
                "--no-deps",
                "--python",
                python,
                *wheels,
            ],
            check=True,
        )
        # Sources that are installed as editable are not found by way of a .pth of another place.
        (site,) = directory.glob("lib/python*/site-packages")
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        yield python


def test_each_package_is_a_wheel_and_only_the_engines_is_of_a_platform(wheels: list[Path]) -> None:
    names = {wheel.name.split("-")[0] for wheel in wheels}
    assert names == {
        "lattice_sdk", "lattice_engine", "lattice_server", "lattice_langgraph",
        "lattice_autogen", "lattice_claude", "lattice_k8s_job",
    }  # fmt: skip
    for wheel in wheels:
        tags = wheel.stem.split("-", 2)[2]
        assert ("manylinux_2_17_" in tags) == wheel.name.startswith("lattice_engine")
        assert tags.startswith("py3-none-")
        with ZipFile(wheel) as archive:
            packed = archive.namelist()
            assert any(name.endswith("/py.typed") for name in packed)
            assert not [name for name in packed if name.startswith("tests/")]


def test_engine_of_the_wheel_is_found_and_runs(python: Path) -> None:
    code = "import subprocess; from lattice_engine import engine_path as p; print(p());"
    code += "print(subprocess.check_output([p(), 'version'], text=True))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    path, version = done.stdout.split("\n", 1)
    assert Path(path).is_relative_to(python.parent.parent)
    assert "0.1.0" in version


def test_command_of_the_wheel_runs(python: Path) -> None:
    command = [python.parent / "lattice", "version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "lattice-sdk" in done.stdout


def test_demo_runs_from_the_wheels(python: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="demo-") as home:
        done = subprocess.run(
            [python, "-c", PATIENT, python.parent / "lattice", "demo", "--json"],
            env={"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["ok"] is True

"""Claims about the repository itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Written in pieces, so that this file does not name what it looks for.
HOSTS = ["pypi" + ".org", "python" + "hosted.org", "proxy.go" + "lang.org", "npmjs" + ".org"]


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name]


@pytest.mark.parametrize("host", HOSTS)
def test_no_tracked_file_names_a_package_registry(host: str) -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.is_file() and host in path.read_text(errors="replace")
    ]
    assert found == []


@pytest.mark.parametrize(
    "skipping",
    [
        "import pytest\n@pytest.mark.skip(reason='no wireguard')\ndef test_it(): pass\n",
        "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): pass\n",
    ],
    ids=["test", "module"],
)
def test_skipped_test_fails_ci(tmp_path: Path, skipping: str) -> None:
    assert "LATTICE_TEST_NO_SKIPS=1 make test" in (ROOT / ".ci" / "run").read_text()
    (tmp_path / "test_skipping.py").write_text(skipping)
    for value, good in (("1", False), ("", True)):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", "."],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "LATTICE_TEST_NO_SKIPS": value},
            capture_output=True,
            text=True,
            check=False,
        )
        # https://docs.pytest.org/en/stable/reference/exit-codes.html: 5 is "no tests collected"
        assert (done.returncode in (0, 5)) is good, done.stdout
        assert good or "may not be skipped here" in done.stdout

"""Claims about the repository itself."""

import subprocess
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

"""The images of the pod tests: a root file system of Debian packages, and wheels.

Those are fetched before; the builds themselves have no network.

What was built is kept in .build/pods under a name made of all that went into it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / ".build" / "pods"
IMAGE = ROOT / "packages" / "k8s-job" / "image"
AGENT = Path(__file__).parent / "podagent.py"
# Python, its standard library and what that needs, and the C++ library that the server's greenlet
# wants; no shell, no package manager.
DEBIAN_PACKAGES = ("python3-minimal", "libpython3-stdlib", "base-files", "netbase", "libstdc++6")
Podman = Callable[..., str]


@dataclass(frozen=True)
class Images:
    """Names of the images.

    Attributes:
        lattice: of init container and sidecar.
        agent: an agent's, with LangGraph and podagent.py; nothing of Lattice in it.
        base: what both are made from.
    """

    lattice: str
    agent: str
    base: str


def build(podman: Podman) -> Images:
    """The images; made where they are not there yet."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base, python = _base(podman)
        return Images(_lattice(podman, base, python), _agent(podman, base, python), base)


def _base(podman: Podman) -> tuple[str, str]:
    suite = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )["VERSION_CODENAME"]
    key = _key([suite, platform.machine(), *DEBIAN_PACKAGES])
    archive = BUILD / f"rootfs-{key}.tar"
    if not archive.exists():
        sources = [
            str(path)
            for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").iterdir())
            if path.is_file() and suite in path.read_text() and "debian" in path.read_text()
        ]
        unfinished = archive.with_suffix(".unfinished.tar")
        include = f"--include={','.join(DEBIAN_PACKAGES)}"
        _run(
            "mmdebstrap", "--quiet", "--variant=extract", include, suite, str(unfinished), *sources
        )
        unfinished.rename(archive)
        for older in BUILD.glob("rootfs-*.tar"):
            if older != archive:
                older.unlink()
    name = f"localhost/lattice-test-base:{key}"
    if not _there(podman, name):
        podman("import", "--quiet", str(archive), name)
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    run = ("run", "--rm", "--network=none", "--entrypoint=python3", name, "-c", version)
    return name, podman(*run).strip()


def server_image(podman: Podman) -> str:
    """The image of server and gateway, from the same Containerfile."""
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _lattice(podman, *_base(podman), "lattice-server", "lattice")


def _lattice(
    podman: Podman,
    base: str,
    python: str,
    distribution: str = "lattice-k8s-job",
    command: str = "lattice-k8s",
) -> str:
    sources = [ROOT / "requirements.lock", Path(__file__), *IMAGE.iterdir()]
    for package in ("core", "engine", distribution.removeprefix("lattice-")):
        sources += (ROOT / "packages" / package / "src").rglob("*.py")
        sources += (ROOT / "packages" / package).glob("pyproject.toml")
    sources += (ROOT / "packages" / "engine").rglob("*.go")
    sources += (ROOT / "packages" / "engine").glob("go.*")
    name = f"localhost/{distribution}:{_key([base, *_contents(sources)])}"
    if not _there(podman, name):
        context = BUILD / "context"
        go = _run(str(ROOT / "scripts" / "bootstrap.sh"), "go").strip()
        make = [sys.executable, str(IMAGE / "context.py"), str(context), "--python", python]
        make += ["--machine", platform.machine(), "--package", distribution]
        _run(*make, LATTICE_GO=go)
        arguments = ("--build-arg", f"BASE={base}", "--build-arg", f"COMMAND={command}")
        arguments += ("--build-arg", f"TITLE={distribution}", "--tag", name)
        file = str(IMAGE / "Containerfile")
        build_offline(podman, *arguments, "--file", file, str(context))
        shutil.rmtree(context)
        _forget_older(podman, name)
    return name


def _agent(podman: Podman, base: str, python: str) -> str:
    sources = [ROOT / "requirements.lock", AGENT, Path(__file__)]
    name = f"localhost/lattice-test-agent:{_key([base, *_contents(sources)])}"
    if _there(podman, name):
        return name
    sys.path.insert(0, str(IMAGE))
    try:
        import context
        import install
    finally:
        sys.path.remove(str(IMAGE))
    directory = BUILD / "agent"
    shutil.rmtree(directory, ignore_errors=True)
    wheels, library = directory / "wheels", directory / "library"
    wheels.mkdir(parents=True)
    library.mkdir()
    wanted = context.needed(["langgraph", "httpx"], python, platform.machine())
    context.download(wanted, wheels, python, platform.machine())
    for wheel in wheels.iterdir():
        install.unpack(wheel, library)
    shutil.copy(AGENT, directory / "agent.py")
    (directory / "Containerfile").write_text(
        f"FROM {base}\n"
        f"COPY library /usr/local/lib/python{python}/dist-packages\n"
        "COPY agent.py /agent.py\n"
        "ENV PYTHONUNBUFFERED=1\n"
        'ENTRYPOINT ["/usr/bin/python3", "/agent.py"]\n'
    )
    build_offline(podman, "--tag", name, str(directory))
    shutil.rmtree(directory)
    _forget_older(podman, name)
    return name


def build_offline(podman: Podman, *arguments: str) -> None:
    """``podman build`` whose steps have no network, not even loopback.

    With this isolation podman takes no ``--network=none``: they have podman's own.
    """
    podman("build", "--isolation=chroot", "--pull=never", "--quiet", *arguments, offline=True)


def _there(podman: Podman, name: str) -> bool:
    return bool(podman("images", "--quiet", name).strip())


def _forget_older(podman: Podman, name: str) -> None:
    """Remove what was built of other sources under the same name."""
    repository = name.rpartition(":")[0]
    form = "{{.Repository}}:{{.Tag}}"
    for other in podman("images", "--format", form, repository).split():
        if other != name:
            podman("rmi", other)
    podman("image", "prune", "--force")


def _contents(files: Iterable[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(set(files))
        if path.is_file()
    ]


def _key(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{command[0]} failed: {done.stderr[-3000:]}")
    return done.stdout

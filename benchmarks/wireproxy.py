"""wireproxy, a program of others that does the data plane alone, to stand beside.

It is built in a folder of its own from the Go module proxy and never committed. Its own command
needs a module that is not to be had everywhere, so it is its library with a ``main`` of ten lines.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from lattice_sdk import LatticeAgent

ROOT = Path(__file__).parent.parent
MODULE, VERSION = "github.com/pufferffish/wireproxy", "v1.0.9"
MAIN = """package main

import (
	"log"
	"os"

	"github.com/pufferffish/wireproxy"
	"golang.zx2c4.com/wireguard/device"
)

func main() {
	config, err := wireproxy.ParseConfig(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	tunnel, err := wireproxy.StartWireguard(config.Device, device.LogLevelError)
	if err != nil {
		log.Fatal(err)
	}
	for _, routine := range config.Routines {
		go routine.SpawnRoutine(tunnel)
	}
	select {}
}
"""


def build() -> Path | None:
    """The program, built once for the clone; ``None`` where its modules cannot be had."""
    folder = ROOT / ".build" / "wireproxy"
    program = folder / "wireproxy"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    go = subprocess.run(
        [str(ROOT / "scripts" / "bootstrap.sh"), "go"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / "main.go").write_text(MAIN)
    for name in ("go.mod", "go.sum"):
        (folder / name).unlink(missing_ok=True)
    for arguments in (
        ["mod", "init", "benchmark/wireproxy"],
        ["mod", "edit", "-require", f"{MODULE}@{VERSION}"],
        ["build", "-mod=mod", "-o", str(program), "."],
    ):
        done = subprocess.run([go, *arguments], cwd=folder, capture_output=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(folder)
            return None
    return program


@contextlib.contextmanager
def running(program: Path, config: str) -> Iterator[tuple[str, int]]:
    """wireproxy with a WireGuard config; its HTTP proxy's URL, once that is there, and its pid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "wireproxy.conf"
        file.touch(0o600)
        file.write_text(f"{config}\n[http]\nBindAddress = 127.0.0.1:{port}\n")
        with subprocess.Popen([str(program), str(file)], stderr=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + 10
                while True:
                    with contextlib.suppress(OSError):
                        socket.create_connection(("127.0.0.1", port), 1).close()
                        break
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("wireproxy did not start")
                    time.sleep(0.001)
                yield f"http://127.0.0.1:{port}", process.pid
            finally:
                process.kill()


def join(program: Path, settings: dict[str, Any], url: str) -> float:
    """Seconds from its start with a ready config to the first byte of a service."""
    with LatticeAgent(**{**settings, "backend": "none"}) as agent:
        config = agent.wireguard_config
        assert config is not None
        address = agent.services[0].address
        target = str(httpx.URL(url).copy_with(host=address))
        started = time.perf_counter()
        with (
            running(program, config.get_secret_value()) as (proxy, _),
            httpx.Client(proxy=proxy, timeout=20) as http,
            http.stream("GET", target) as answer,
        ):
            next(answer.iter_raw())
            return time.perf_counter() - started

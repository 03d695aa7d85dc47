"""wireguard-go as it is, of the version that the engine has: no policy, nothing of ours."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

ROOT = Path(__file__).parent.parent
CONTROL = Path("/run/wireguard")


def key_pair() -> tuple[str, str]:
    """A private and a public key as ``wg`` prints them."""
    key = X25519PrivateKey.generate()
    raw = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    return base64.b64encode(raw[0]).decode(), base64.b64encode(raw[1]).decode()


def build() -> Path | None:
    """The program, built once for the clone; ``None`` where its modules cannot be had."""
    program = ROOT / ".build" / "wireguard-go"
    if program.exists():
        return program
    go = subprocess.run(
        [str(ROOT / "scripts" / "bootstrap.sh"), "go"], capture_output=True, text=True, check=True
    ).stdout.strip()
    done = subprocess.run(
        [go, "build", "-o", str(program), "golang.zx2c4.com/wireguard"],
        cwd=ROOT / "packages" / "engine",
        capture_output=True,
        check=False,
    )
    return program if done.returncode == 0 else None


@contextlib.contextmanager
def running(
    program: Path, name: str, address: str, *, within: tuple[str, ...] = ()
) -> Iterator[int]:
    """A device that is up, with an address and its network's route; its process id.

    Args:
        program: of :func:`build`.
        name: of its interface.
        address: with the prefix of its network.
        within: what comes before a command that runs in its network namespace.
    """
    quiet = {**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "silent"}
    with subprocess.Popen(
        [*within, str(program), "--foreground", name], env=quiet, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 10
            while not (CONTROL / f"{name}.sock").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("wireguard-go did not start")
                time.sleep(0.01)
            for words in (
                ["address", "add", address, "dev", name],
                ["link", "set", name, "up", "mtu", "1420"],
            ):
                subprocess.run([*within, "ip", *words], check=True)
            yield process.pid
        finally:
            process.terminate()


def configure(name: str, private: str, port: int, peers: Mapping[str, tuple[str, str]]) -> None:
    """Give a device its key, port and peers.

    Args:
        name: of its interface.
        private: key.
        port: that it listens on, 0 for any.
        peers: by public key: allowed addresses, and the endpoint or nothing.
    """
    lines = ["set=1", f"private_key={_hex(private)}", f"listen_port={port}"]
    for public, (allowed, endpoint) in peers.items():
        lines += [f"public_key={_hex(public)}", "replace_allowed_ips=true"]
        lines += [f"allowed_ip={allowed}"]
        lines += [f"endpoint={endpoint}"] if endpoint else []
    _say(name, lines)


def _hex(key: str) -> str:
    return base64.b64decode(key).hex()


def _say(name: str, lines: list[str]) -> str:
    """By the protocol of https://www.wireguard.com/xplatform/."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(CONTROL / f"{name}.sock"))
        control.sendall(("\n".join(lines) + "\n\n").encode())
        answer = b""
        while not answer.endswith(b"\n\n"):
            more = control.recv(65536)
            if not more:
                break
            answer += more
    text = answer.decode()
    if "errno=0" not in text.split():
        raise RuntimeError(f"wireguard-go refuses its configuration: {text.strip()}")
    return text

"""Ports for what comes back to them."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from lattice_server import ports


@pytest.fixture
def handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel says that it hands out."""
    file = tmp_path / "range"
    monkeypatch.setattr(ports, "HANDED_OUT", file)
    return file


@pytest.mark.parametrize(
    ("handed", "kept"),
    [
        ("32768\t60999", {*range(10_000, 32_768), *range(61_000, 65_536)}),
        ("10003\t65535", {10_000, 10_001, 10_002}),
        ("1024\t65535", set(range(10_000, 65_536))),
    ],
)
def test_port_is_one_that_the_kernel_hands_to_nobody(
    handed_out: Path, handed: str, kept: set[int]
) -> None:
    handed_out.write_text(handed)
    assert {ports.free_port() for _ in range(50)} <= kept


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_taken_port_is_not_given(
    handed_out: Path, monkeypatch: pytest.MonkeyPatch, kind: socket.SocketKind
) -> None:
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        number = taken.getsockname()[1]
        handed_out.write_text("10000 65535")
        monkeypatch.setattr(ports._random, "sample", lambda _, count: [number])
        with pytest.raises(OSError, match="is free") as failure:
            ports.free_port()
    assert failure.value.errno == errno.EADDRINUSE


def test_address_of_another_machine_is_told(handed_out: Path) -> None:
    handed_out.write_text("32768 60999")
    with pytest.raises(OSError, match="assign requested address"):
        ports.free_port("203.0.113.1")

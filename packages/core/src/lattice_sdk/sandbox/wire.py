"""What the launcher and a sandbox's first process say to each other, by two pipes."""

import os

STARTED, STOPPED, CONTINUED, ENDED, FAILED = b"s", b"t", b"c", b"e", b"f"
_HEAD = 1 + 4 + 4 + 4


def send(pipe: int, kind: bytes, value: int = 0, number: int = 0, text: str = "") -> None:
    """Tell the launcher.

    Args:
        pipe: to the launcher.
        kind: ``STARTED``; ``STOPPED`` by the signal ``value``; ``CONTINUED``; ``ENDED`` with the
            wait status ``value``; ``FAILED`` with the exit status ``value``.
        value: see there.
        number: the system's error number of a failure.
        text: the sentence of a failure.
    """
    data = text.encode(errors="replace")[:2000]  # a pipe takes this much as a whole
    words = [value.to_bytes(4, "little") for value in (value, number, len(data))]
    try:
        os.write(pipe, kind + b"".join(words) + data)
    except OSError:
        return  # the launcher has been killed, and so will this be


def receive(pipe: int) -> list[tuple[bytes, int, int, str]] | None:
    """What has been told since; ``None`` when the first process has ended."""
    data = os.read(pipe, 65536)
    if not data:
        return None
    found = []
    while data:
        value, number, length = (
            int.from_bytes(data[start : start + 4], "little") for start in (1, 5, 9)
        )
        text = data[_HEAD : _HEAD + length].decode(errors="replace")
        found.append((data[:1], value, number, text))
        data = data[_HEAD + length :]
    return found

"""What the launcher and a sandbox's first process say to each other, by two pipes."""

import os
import select

STARTED, STOPPED, CONTINUED, ENDED, FAILED, OBEYED = b"s", b"t", b"c", b"e", b"f", b"o"
_HEAD = 1 + 4 + 4 + 4
_ORDER = 3


def send(pipe: int, kind: bytes, value: int = 0, number: int = 0, text: str = "") -> None:
    """Tell the launcher.

    Args:
        pipe: to the launcher.
        kind: ``STARTED``; ``STOPPED`` by the signal ``value``; ``CONTINUED``; ``ENDED`` with the
            wait status ``value``; ``FAILED`` with the exit status ``value``; ``OBEYED`` an order.
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


def order(pipe: int, number: int, *, by_parent: bool, stops: int) -> bool:
    """Have a signal passed on to the program.

    Args:
        pipe: to the first process.
        number: the signal.
        by_parent: whether the launcher's parent sent it, and not somebody else.
        stops: how many stops of the program had been told when it came.

    Returns:
        Whether there is somebody to obey.
    """
    try:
        os.write(pipe, bytes((number, by_parent, stops % 256)))
    except OSError:
        return False
    return True


def is_over(pipe: int) -> bool:
    """Whether the launcher has ended; orders that wait to be read do not say so."""
    ended = select.poll()
    ended.register(pipe, 0)  # POLLHUP comes unasked: poll(2)
    return bool(ended.poll(0))


def orders(pipe: int) -> list[tuple[int, bool, int]] | None:
    """The orders that came since; ``None`` when the launcher has ended."""
    data = os.read(pipe, 4096 * _ORDER)
    if not data:
        return None
    words = range(0, len(data), _ORDER)
    return [(data[at], bool(data[at + 1]), data[at + 2]) for at in words]

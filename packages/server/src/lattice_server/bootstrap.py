"""The first start: a data directory of one's own, and the first admin token in a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import func, insert, select

from lattice_server.clock import now_ms
from lattice_server.credentials import new_id, new_token, token_hash, token_kind
from lattice_server.store import schema
from lattice_server.store.database import Transaction

TOKEN_FILE = "admin.token"  # noqa: S105 - a file's name


class StartError(Exception):
    """The control plane cannot start; the text says what happened, why, and what to do."""


def prepare_directory(path: Path) -> None:
    """Make the data directory (0700) and see that it can be written.

    Raises:
        StartError: when it cannot.
    """
    probe = path / f".write-{os.getpid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise StartError(
            f"the data directory {path} cannot be written ({error.strerror}); make room or give "
            "write permission, or name another one with --data-dir"
        ) from error


@contextlib.contextmanager
def only_server_of(path: Path) -> Iterator[None]:
    """Hold the data directory for this process.

    Raises:
        StartError: when another server holds it.
    """
    try:
        descriptor = os.open(path / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(
            f"{path / 'server.lock'} cannot be opened ({error.strerror}); "
            "the data directory has to belong to the user that runs the server"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(
                f"another control plane uses the data directory {path}; stop it, "
                "or give this one another --data-dir"
            ) from error
        yield
    finally:
        os.close(descriptor)


async def ensure_admin_token(tx: Transaction, directory: Path) -> None:
    """On the first start, make the first admin token and write it to ``admin.token`` (0600).

    A file that is there already is taken: it is from a start that was cut short, or was put there
    on purpose.

    Raises:
        StartError: when the file cannot be written, or holds something else.
    """
    tokens = schema.tokens.c
    admins = await tx.connection.scalar(
        select(func.count()).select_from(schema.tokens).where(tokens.kind == "admin")
    )
    if admins:
        return
    path = directory / TOKEN_FILE
    try:
        token = _read(path) if path.exists() else _write_new(path)
    except OSError as error:
        raise StartError(
            f"the first admin token cannot be written to {path} ({error.strerror}); "
            "make room or give write permission, then start again"
        ) from error
    await tx.connection.execute(
        insert(schema.tokens).values(
            id=new_id("token"),
            kind="admin",
            hash=token_hash(token),
            allow_isolated=False,
            used=0,
            created_at=now_ms(),
        )
    )


def _read(path: Path) -> str:
    token = path.read_text("utf-8", "replace").strip()
    if token_kind(token) != "admin" or len(token) < len(new_token("admin")):
        raise StartError(
            f"{path} does not hold an admin token; move it away and start again, "
            "then a new one is written there"
        )
    return token


def _write_new(path: Path) -> str:
    token = new_token("admin")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError:
        # Half a token would be refused at the next start.
        path.unlink(missing_ok=True)
        raise
    return token

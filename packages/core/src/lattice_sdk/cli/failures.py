"""How failures are told: what, why, what to do; no traceback; a stable exit status."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from lattice_sdk.cli.output import Format

if TYPE_CHECKING:
    from lattice_sdk.errors import LatticeError

FORMAT_KEY = "lattice.output"  # in the click context's ``meta``, which all commands share
DEBUG = "LATTICE_DEBUG"
DEFECT = 70  # EX_SOFTWARE, sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells count
READER_GONE = 141  # 128 + SIGPIPE


class _Telling:
    """What a command and a group have in common: errors are told in one way."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from lattice_engine import EngineError
        from lattice_sdk.errors import EngineFailed, LatticeError

        try:
            result = super().invoke(ctx)  # type: ignore[misc]
            sys.stdout.flush()
        except LatticeError as error:
            raise typer.Exit(report(error, _format(ctx))) from None
        except EngineError as error:
            failure = EngineFailed(error.detail, code=error.code)
            raise typer.Exit(report(failure, _format(ctx))) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(READER_GONE) from None
        return result


class LatticeGroup(_Telling, TyperGroup):
    """The root of all commands, plugins' too."""


class LatticeCommand(_Telling, TyperCommand):
    """A command that is a program of its own."""


def report(error: LatticeError, fmt: Format) -> int:
    """Write an error to standard error; the exit status for it."""
    if debugging():
        traceback.print_exc()
    if fmt is Format.table:
        lines = [f"error: {error.message}"]
        if error.peer_id and error.peer_id not in error.message:
            lines[0] += f" [{error.peer_id}]"
        if error.hint:
            lines.append(f"  what to do: {error.hint}")
        typer.echo("\n".join(lines), err=True)
    else:
        typer.echo(json.dumps(problem_of(error)), err=True)
    return error.exit_code


def problem_of(error: LatticeError) -> dict[str, Any]:
    """The error as a problem document (RFC 9457), with ``hint``, ``peerId`` and ``exitCode``."""
    document = {
        "type": "about:blank",
        "title": (type(error).__doc__ or type(error).__name__).partition("\n")[0].rstrip("."),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "hint": error.hint,
        "peerId": error.peer_id,
        "exitCode": error.exit_code,
    }
    return {key: value for key, value in document.items() if value is not None}


def report_defect(error: Exception) -> int:
    """Tell of an error that nobody foresaw; the exit status for it."""
    if isinstance(error.__cause__, KeyboardInterrupt):  # until 3.12, from the body of a class
        return INTERRUPTED
    if debugging():
        traceback.print_exc()
    from lattice_sdk.errors import redact

    text = redact(f"{type(error).__name__}: {error}")
    typer.echo(
        f"error: this is a defect of lattice: {text}\n"
        f"  what to do: run it again with {DEBUG}=1 and report what that prints",
        err=True,
    )
    return DEFECT


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def _format(ctx: Any) -> Format:
    value = ctx.meta.get(FORMAT_KEY, Format.table)
    return value if isinstance(value, Format) else Format.table


def _drop_output() -> None:
    """Nobody reads: what is still buffered must not fail again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)

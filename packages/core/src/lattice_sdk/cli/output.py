"""What commands print: tables for people, JSON and YAML for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 1000  # columns; a table that goes to a program is never wrapped
Columns = Mapping[str, str]


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    yaml = "yaml"


def show_list(rows: Sequence[Mapping[str, Any]], columns: Columns, fmt: Format) -> None:
    """Print a list of things.

    Args:
        rows: as the API gives them.
        columns: titles by field name; the table has these, the other formats have all.
        fmt: table, or a document ``{"items": [...]}``.
    """
    if fmt is not Format.table:
        show_document({"items": list(rows)}, fmt)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in columns.values():
        # An id that is cut in two cannot be copied; the last column takes what is left.
        table.add_column(title, no_wrap=title != list(columns.values())[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(text_of(row.get(field))) for field in columns))
    console().print(table)


def show_one(thing: Mapping[str, Any], fmt: Format) -> None:
    """Print one thing with all its fields."""
    if fmt is not Format.table:
        show_document(thing, fmt)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for field, value in thing.items():
        table.add_row(Text(field, "bold"), Text(text_of(value)))
    console().print(table)


def show_document(value: Any, fmt: Format) -> None:
    """Print a value as JSON, or else as a YAML document."""
    if fmt is Format.json:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        return
    import yaml

    sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def text_of(value: Any) -> str:
    """A value in a cell. Control characters of elsewhere do not reach the terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        if "port" in value and "to" not in value:
            return f"{value['port']}/{value.get('protocol', 'tcp')}"
        return " ".join(f"{key}={text_of(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text_of, value)) or "-"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def console() -> Console:
    """The console of standard output."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    # Asked each time: tests and plugins exchange sys.stdout.
    return PipeConsole(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)

"""Statements of hot paths, compiled once: what is executed is a text and a list of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Dialect, Executable, Select

Values = Mapping[str, Any]


class Prepared:
    """A statement of a hot path, compiled once for each dialect. Its parameters have names."""

    def __init__(self, statement: Executable) -> None:
        self.statement = statement
        self._compiled: dict[str, Compiled] = {}

    def compiled(self, dialect: Dialect) -> Compiled:
        """The statement for the driver."""
        known = self._compiled.get(dialect.name)
        if known is None:
            known = self._compiled[dialect.name] = Compiled(self.statement, dialect)
        return known


class Compiled:
    """A statement's text, and how values go in and come out."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        binds = [compiled.binds[name] for name in compiled.positiontup or ()]
        self._constants = {bind.key: bind.value for bind in binds if not bind.required}
        self._into = [
            (bind.key, bind.type.dialect_impl(dialect).bind_processor(dialect)) for bind in binds
        ]
        types = (
            [c.type for c in statement.selected_columns] if isinstance(statement, Select) else []
        )
        out = [kind.dialect_impl(dialect).result_processor(dialect, None) for kind in types]
        self._out: list[tuple[int, Callable[[Any], Any]]] = [
            (place, read) for place, read in enumerate(out) if read is not None
        ]

    def parameters(self, values: Values) -> list[Any]:
        """The parameters in their order."""
        known = {**self._constants, **values} if self._constants else values
        return [known[name] if write is None else write(known[name]) for name, write in self._into]

    def row(self, found: Sequence[Any]) -> Sequence[Any]:
        """A row with its values as the program has them."""
        if not self._out:
            return found
        row = list(found)
        for place, read in self._out:
            row[place] = read(row[place])
        return row

"""Where in a YAML text its mappings, sequences and values stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import yaml
from yaml import events


class Shape(Enum):
    """How a node is written."""

    MAPPING = "block mapping"
    SEQUENCE = "block sequence"
    FLOW = "in brackets"
    VALUE = "value"
    ALIAS = "alias"


@dataclass
class Node:
    """One node of the text.

    Attributes:
        shape: how it is written.
        start: index of its first character; of the first key or dash in a block.
        end: index behind its last character, comments and empty lines behind it left out.
        column: of ``start`` in its line.
        members: of a block mapping, by key; each with the index of its key.
        items: of a block sequence.
    """

    shape: Shape
    start: int
    end: int
    column: int
    members: dict[str, tuple[int, Node]] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)


def read(text: str) -> Node | None:
    """The tree of a text with one document; ``None`` for an empty one.

    Raises:
        yaml.YAMLError: it is not YAML, or a key is there twice.
    """
    stream = iter(yaml.parse(text, Loader=yaml.SafeLoader))
    for event in stream:
        if isinstance(event, events.DocumentStartEvent):
            return _node(next(stream), stream, text)
    return None


def load(text: str) -> Any:
    """The data of a text with one document, as far as it is data: unknown tags are left out.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe one


class _Loader(yaml.SafeLoader):
    """Constructs plain data only, whatever the tags say."""


def _untagged(loader: _Loader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return getattr(node, "value", None)


_Loader.add_multi_constructor("", _untagged)


def _node(event: Any, stream: Iterator[Any], text: str) -> Node:
    start, column = event.start_mark.index, event.start_mark.column
    end = event.end_mark.index
    if isinstance(event, events.AliasEvent):
        return Node(Shape.ALIAS, start, end, column)
    if isinstance(event, events.ScalarEvent):
        return Node(Shape.VALUE, start, _trimmed(text, start, end), column)
    if event.flow_style:
        return Node(Shape.FLOW, start, _flow_end(stream), column)
    if isinstance(event, events.SequenceStartEvent):
        return _sequence(event, stream, text)
    return _mapping(event, stream, text)


def _sequence(event: Any, stream: Iterator[Any], text: str) -> Node:
    mark = event.start_mark
    # Properties (&anchor, !tag) come before the first dash.
    start = text.index("-", mark.index) if text[mark.index] != "-" else mark.index
    made = Node(Shape.SEQUENCE, start, start, start - _line_start(text, start))
    while not isinstance(event := next(stream), events.SequenceEndEvent):
        item = _node(event, stream, text)
        made.items.append(item)
        made.end = max(made.end, item.end)
    return made


def _mapping(event: Any, stream: Iterator[Any], text: str) -> Node:
    made = Node(Shape.MAPPING, event.start_mark.index, 0, event.start_mark.column)
    while not isinstance(key := next(stream), events.MappingEndEvent):
        if not made.members:
            made.start, made.column = key.start_mark.index, key.start_mark.column
        name = getattr(key, "value", None)
        place = key.start_mark.index
        _node(key, stream, text)
        value = _node(next(stream), stream, text)
        made.end = max(made.end, value.end)
        if name is None:
            continue
        if name in made.members and name != "<<":
            raise yaml.MarkedYAMLError(
                problem=f"the key {name!r} is there twice", problem_mark=key.start_mark
            )
        made.members[name] = (place, value)
    return made


def _flow_end(stream: Iterator[Any]) -> int:
    depth = 1
    while True:
        event = next(stream)
        depth += isinstance(event, events.CollectionStartEvent)
        depth -= isinstance(event, events.CollectionEndEvent)
        if depth == 0:
            return int(event.end_mark.index)


def _trimmed(text: str, start: int, end: int) -> int:
    """Without what follows the last line of a literal block."""
    while end > start and text[end - 1] in "\n ":
        end -= 1
    return end


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1

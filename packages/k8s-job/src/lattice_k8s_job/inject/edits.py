"""Changes a YAML text so that its data becomes other data; what is not concerned is not touched.

Comments, quotes, blank lines and indentation of what stays are kept by construction: the text is
edited where the data differ, and never written anew as a whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from lattice_k8s_job.inject.tree import Node, Shape

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/._@-]*(?::[A-Za-z0-9/._@-]+)*")
# What some reader of YAML takes for something else than a string.
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass
class Editor:
    """Collects the changes to one text.

    Args:
        text: the document; ends with a line feed.
        offset: by how much sequences are indented in it.
    """

    text: str
    offset: int
    changes: list[tuple[int, int, str]] = field(default_factory=list)

    def change(self, node: Node, old: Any, new: Any) -> None:
        """Note what makes ``old``, which stands at ``node``, ``new``."""
        if old == new or node.shape is Shape.ALIAS:
            return
        if node.shape is Shape.MAPPING and isinstance(new, dict):
            self._mapping(node, old, new)
        elif node.shape is Shape.SEQUENCE and new:
            self._sequence(node, old, new)
        elif node.shape is Shape.VALUE and not isinstance(new, (dict, list)):
            blank = " " if node.start == node.end else ""
            self.changes.append((node.start, node.end, blank + _scalar("value", new)))
        elif node.shape is Shape.FLOW and old:
            self.changes.append((node.start, node.end, json.dumps(new, ensure_ascii=False)))
        else:
            raise ValueError(f"{old!r} cannot become {new!r}")

    def result(self) -> str:
        """The text with the changes."""
        text = self.text
        numbered = [(start, end, n, put) for n, (start, end, put) in enumerate(self.changes)]
        for start, end, _, put in sorted(numbered, reverse=True):
            text = text[:start] + put + text[end:]
        return text

    def _mapping(self, node: Node, old: dict[str, Any], new: dict[str, Any]) -> None:
        at = self._above(node)
        for key, value in new.items():
            place = node.members.get(key)
            if place is not None:
                at = self._member(node, place, old[key], value)
            elif key not in old or old[key] != value:
                # Also what came by a merge (<<) and stands elsewhere, if it has another value here.
                self._insert(at, self._member_lines(key, value, node.column))

    def _member(self, node: Node, place: tuple[int, Node], old: Any, new: Any) -> int:
        """Change one value; where its last line ends."""
        key, value = place
        if old != new and not old and isinstance(new, (dict, list)) and value.shape in _EMPTY:
            # Nothing, or empty brackets: what comes instead stands below.
            self.changes.append((value.start, value.end, ""))
            lines = self._render(new, node.column, below_key=True)
            self._insert(self._line_end(max(value.end, key)), lines)
        elif old != new and not new and value.shape is Shape.SEQUENCE:
            self._cut(value)
            colon = self.text.index(":", key) + 1
            self.changes.append((colon, colon, " []"))
        else:
            self.change(value, old, new)
        return self._line_end(max(value.end, key))

    def _sequence(self, node: Node, old: list[Any], new: list[Any]) -> None:
        behind: int | None = None
        matcher = SequenceMatcher(None, _places(old), _places(new), False)
        for kind, i1, i2, j1, j2 in matcher.get_opcodes():
            if kind == "equal":
                for index, other in zip(range(i1, i2), range(j1, j2), strict=True):
                    self._item(node, node.items[index], old[index], new[other])
                    behind = self._line_end(node.items[index].end)
                continue
            for index in range(i1, i2):
                start, end = self._lines(node, node.items[index])
                self.changes.append((start, end, ""))
            at = behind if behind is not None else self._above(node)
            for item in new[j1:j2]:
                self._insert(at, self._item_lines(item, node.column))

    def _item(self, node: Node, item: Node, old: Any, new: Any) -> None:
        if old == new:
            return
        if _ours(new) or item.shape is Shape.VALUE:
            start, end = self._lines(node, item)
            self.changes.append((start, end, ""))
            self._insert(start, self._item_lines(new, node.column))
            return
        self.change(item, old, new)

    def _above(self, node: Node) -> int:
        """Where what is to be first goes: above comments on what is first so far."""
        start = self._line_start(node.start)
        while (above := self.text[: max(0, start - 1)].rfind("\n") + 1) < start:
            line = self.text[above:start].strip()
            if line and not line.startswith("#"):
                break
            start = above
        return start

    def _lines(self, node: Node, item: Node) -> tuple[int, int]:
        """From the start of an element's dash line to the end of its last."""
        start = self._line_start(item.start)
        while self.text[start : start + node.column + 1].strip() != "-":
            start = self._line_start(start - 1)
        return start, self._line_end(max(item.end, item.start))

    def _cut(self, node: Node) -> None:
        for item in node.items:
            start, end = self._lines(node, item)
            self.changes.append((start, end, ""))

    def _insert(self, at: int, lines: list[str]) -> None:
        self.changes.append((at, at, "".join(line + "\n" for line in lines)))

    def _line_start(self, index: int) -> int:
        return self.text.rfind("\n", 0, index) + 1

    def _line_end(self, index: int) -> int:
        return self.text.index("\n", index) + 1

    def _render(self, value: Any, column: int, *, below_key: bool) -> list[str]:
        """A collection as a block; below a key at ``column``."""
        if isinstance(value, dict):
            step = column + 2 if below_key else column
            return [
                line for key, one in value.items() for line in self._member_lines(key, one, step)
            ]
        dash = column + self.offset if below_key else column
        return [line for one in value for line in self._item_lines(one, dash)]

    def _member_lines(self, key: str, value: Any, column: int) -> list[str]:
        if isinstance(value, (dict, list)) and value:
            return [" " * column + f"{key}:", *self._render(value, column, below_key=True)]
        return [" " * column + f"{key}: {_scalar(key, value)}"]

    def _item_lines(self, item: Any, column: int) -> list[str]:
        if isinstance(item, (dict, list)) and item:
            lines = self._render(item, column + 2, below_key=False)
            return [" " * column + "- " + lines[0][column + 2 :], *lines[1:]]
        return [" " * column + f"- {_scalar('', item)}"]


_EMPTY = (Shape.VALUE, Shape.FLOW)


def _name(item: Any) -> str:
    return str(item.get("name", "")) if isinstance(item, dict) else ""


def _ours(item: Any) -> bool:
    return _name(item).startswith("lattice-")


def _places(items: list[Any]) -> list[tuple[str, str]]:
    """What elements are matched by: those of others by name; ours also by the other before them.

    So it is always ours that is moved: another's element is never written anew.
    """
    found, other = [], ""
    for item in items:
        name = _name(item)
        if _ours(item):
            found.append((name, other))
        else:
            other = name
            found.append((name, ""))
    return found


def _scalar(key: str, value: Any) -> str:
    """A value as every reader of YAML understands it. What is called ``value`` is a string."""
    if isinstance(value, str) and key != "value":
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        if re.fullmatch(r"\d+[a-zA-Z]+", value) and not re.fullmatch(r"\d+[eE]", value):
            return value  # a quantity: 10m, 96Mi
    return json.dumps(value, ensure_ascii=False)

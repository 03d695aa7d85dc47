"""Changes to the data of a manifest, in the order in which they shall stand in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Mapping = dict[str, Any]


def sequence(
    parent: Mapping, key: str, *, before: str = "", after: Sequence[str] = ()
) -> list[Any]:
    """The list of that key; a new one where there is none."""
    if key not in parent:
        insert(parent, key, [], before=before, after=after)
    elif parent[key] is None:
        parent[key] = []
    found: list[Any] = parent[key]
    return found


def insert(
    parent: Mapping, key: str, value: object, *, before: str = "", after: Sequence[str] = ()
) -> None:
    """A new key: behind the first of ``after`` that is there, else before ``before``, else last."""
    keys = list(parent)
    place = keys.index(before) if before in keys else len(keys)
    for name in after:
        if name in keys:
            place = keys.index(name) + 1
            break
    rest = [(name, parent.pop(name)) for name in keys[place:]]
    parent[key] = value
    parent.update(rest)


def put(held: list[Any], items: Sequence[Mapping], *, only_at: int | None = None) -> None:
    """Have elements in a list: those of a name that is there in its place, the others first.

    Args:
        held: elements with a ``name`` each.
        items: what shall be there.
        only_at: where they have to be: 0 for first, -1 for last.
    """
    wanted = [item["name"] for item in items]
    found = [one.get("name") for one in held]
    place = found[: len(wanted)] if only_at == 0 else found[-len(wanted) :]
    if only_at is not None and place != wanted:
        for name in wanted:
            remove(held, name)
    new = []
    for item in items:
        for index, one in enumerate(held):
            if one.get("name") == item["name"]:
                held[index] = item
                break
        else:
            new.append(item)
    start = len(held) if only_at == -1 else 0
    held[start:start] = new


def remove(held: list[Any], name: str) -> None:
    """Take the element of that name out, if it is there."""
    for index, one in enumerate(held):
        if one.get("name") == name:
            del held[index]
            return

"""Changes to YAML that was read with its comments, made where they disturb least."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

Node = MutableMapping[str, Any]

# Places of comments in ruamel.yaml's lists, see its comments.py.
_BEHIND_VALUE, _BEHIND_ELEMENT, _BEFORE_BLOCK = 2, 0, 3


def sequence(
    parent: Node, key: str, *, before: str = "", after: Sequence[str] = ()
) -> CommentedSeq:
    """The sequence of that key; a new one where there is none."""
    if parent.get(key) is None:
        if key in parent:
            parent[key] = CommentedSeq()
        else:
            insert(parent, key, CommentedSeq(), before=before, after=after)
    found: CommentedSeq = parent[key]
    if isinstance(parent, CommentedMap) and key in parent.ca.items:
        # The comments before the first element are noted twice; here they may be moved.
        parent.ca.items[key] = [*parent.ca.items[key][:_BEFORE_BLOCK], None]
    return found


def insert(
    parent: Node, key: str, value: object, *, before: str = "", after: Sequence[str] = ()
) -> None:
    """A new key: behind the first of ``after`` where no comment is parted from what it is about.

    Args:
        parent: where to.
        key: that is not there.
        value: of it.
        before: the key that it comes before, when none of ``after`` will do; else it is the last.
        after: keys in the order of preference.
    """
    keys = list(parent)
    position = keys.index(before) if before in keys else len(keys)
    for name in after:
        if name in keys and not _comment_follows(parent, name):
            position = keys.index(name) + 1
            break
    if isinstance(parent, CommentedMap):
        parent.insert(position, key, value)
    else:
        parent[key] = value


def put(held: CommentedSeq, items: Sequence[dict[str, Any]], *, only_at: int | None = None) -> None:
    """Have elements in a sequence: those of a name that is there in its place, the others first.

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
                if one != item:
                    held[index] = node(item)
                break
        else:
            new.append(node(item))
    if not new:
        return
    start = len(held) if only_at == -1 else 0
    comments = _take_comments_before(held) if held and not start else ""
    for offset, one in enumerate(new):
        held.insert(start + offset, one)
    if comments:
        _leave_behind(new[-1], comments)


def remove(held: list[Any], name: str) -> None:
    """Take the element of that name out, if it is there."""
    for index, one in enumerate(held):
        if one.get("name") == name:
            del held[index]
            return


def node(item: Any) -> Any:
    """Plain data as YAML nodes.

    What is called ``value`` is a string to Kubernetes, and quoted: some reader might else see a
    number or a yes in it.
    """
    if isinstance(item, dict):
        return CommentedMap(
            (key, DoubleQuotedScalarString(value) if key == "value" else node(value))
            for key, value in item.items()
        )
    if isinstance(item, list):
        return CommentedSeq(node(one) for one in item)
    return item


def _comment_follows(parent: Node, key: str) -> bool:
    """Whether a comment on lines of its own stands between this key and the next."""
    if not isinstance(parent, CommentedMap):
        return False
    tokens = [token for token in parent.ca.items.get(key) or [] if token is not None]
    return any("\n" in token.value.rstrip("\n") for token in tokens) or any(
        token.value.startswith("\n") for token in tokens
    )


def _take_comments_before(held: CommentedSeq) -> str:
    """Take away the comments between the sequence's key and its first element."""
    if not held.ca.comment or not held.ca.comment[1]:
        return ""
    tokens = held.ca.comment[1]
    held.ca.comment = None
    return "".join(" " * token.start_mark.column + token.value for token in tokens)


def _leave_behind(item: Any, text: str) -> None:
    """Put comments behind the last value in ``item``, as they stand between two elements."""
    while True:
        key: Any = list(item)[-1] if isinstance(item, dict) else len(item) - 1
        if not isinstance(item[key], (dict, list)) or not item[key]:
            break
        item = item[key]
    token = CommentToken("\n" + text, CommentMark(0), None)
    places: list[Any] = [None] * 4
    places[_BEHIND_VALUE if isinstance(item, dict) else _BEHIND_ELEMENT] = token
    item.ca.items[key] = places

"""How long an answer takes tells nothing of a secret: where two are compared, it is all of both."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lattice_server
from lattice_server import access

PACKAGE = Path(lattice_server.__file__).parent
SECRET = re.compile(r"(^|_)(secret|password|hash|hashed)$")
# Looks tokens up by their hash: in SQL, where `==` is a column's condition.
LOOKS_UP = PACKAGE / "store" / "statements.py"


def comparisons(text: str) -> Iterator[int]:
    """Lines in which Python compares what is called a secret or a hash, other than with None."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare) and any(
            isinstance(kind, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for kind in node.ops
        ):
            operands = [node.left, *node.comparators]
            members = [one for each in operands for one in getattr(each, "elts", [each])]
            if any(SECRET.search(_name(one)) for one in members):
                yield node.lineno


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def test_control_plane_compares_no_secret_but_in_constant_time() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path != LOOKS_UP]
    found = {path.name: list(comparisons(path.read_text())) for path in files}
    assert not {name: lines for name, lines in found.items() if lines}
    compared = [path.name for path in files if "same_secret(" in path.read_text()]
    assert "access.py" in compared, "nothing is compared where tokens are looked up"


@pytest.mark.parametrize(
    "text",
    [
        "peer.token_hash == principal.peer.token_hash",
        "hashed != current",
        "given in (own.secret, other)",
    ],
)
def test_a_comparison_that_stops_at_the_first_difference_would_be_found(text: str) -> None:
    assert list(comparisons(text)) == [1]


def test_secrets_are_compared_by_the_standard_librarys_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(
        access.hmac, "compare_digest", lambda one, other: asked.append((one, other)) or one == other
    )
    assert access.same_secret("alike", "alike")
    assert not access.same_secret("alike", "other")
    assert asked == [(b"alike", b"alike"), (b"alike", b"other")]

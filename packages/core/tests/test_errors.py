"""The one tree of errors."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from lattice_sdk import errors
from lattice_sdk.errors import LatticeError, Refused

LEAVES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, LatticeError) and kind is not LatticeError
]


def test_each_error_has_a_code_and_an_exit_code_of_its_own() -> None:
    assert len(LEAVES) >= 15
    assert len({kind.code for kind in LEAVES}) == len(LEAVES)
    exits = [kind.exit_code for kind in LEAVES]
    assert len(set(exits)) == len(exits)
    # 0 is success, 1 any other failure, 2 wrong usage, and from 64 on others have meanings.
    assert all(3 <= code < 64 for code in exits)


@pytest.mark.parametrize("kind", [kind for kind in LEAVES if kind is not Refused])
def test_errors_survive_pickle_and_copy(kind: type[LatticeError]) -> None:
    error = kind("what happened", hint="What to do", peer_id="peer-7")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.hint == "What to do"
        assert again.peer_id == "peer-7"
    assert "what happened" in str(error)
    assert "What to do" in str(error)
    assert "peer-7" in str(error)


@pytest.mark.parametrize("secret", ["lt-abcdefghijklmnop", "lt-workspace-token"])
def test_tokens_are_not_in_messages(secret: str) -> None:
    assert secret not in str(LatticeError(f"the server said: bad token {secret}"))

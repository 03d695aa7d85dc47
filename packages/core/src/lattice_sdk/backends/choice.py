"""Which backend serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lattice_sdk.backends.base import TunnelBackend
from lattice_sdk.errors import BackendUnavailable, ConfigurationError

# Whether programs must have a network namespace of their own, should have one where the machine
# can, or are to have the proxy alone.
Wanted = Literal["required", "preferred", "proxy"]
WANTED: tuple[Wanted, ...] = ("required", "preferred", "proxy")
USUAL: Wanted = "preferred"  # where nobody said
_DOCTOR = "`lattice doctor` says what to change"


@dataclass(frozen=True)
class Choice:
    """The backends to try, one after the other.

    Attributes:
        backends: in order; never empty.
        reasons: why others than these cannot serve.
        by_name: whether the one was asked for by its name.
    """

    backends: tuple[TunnelBackend, ...]
    reasons: tuple[str, ...] = ()
    by_name: bool = False

    def why(self) -> str:
        """Why the first of them."""
        if self.by_name:
            return "asked for by name"
        skipped = f", since {'; '.join(self.reasons)}" if self.reasons else ""
        return f"the first that can serve{skipped}"

    def without_first(self, error: BackendUnavailable) -> Choice:
        """What is left when the first cannot serve after all.

        Raises:
            BackendUnavailable: nothing.
        """
        if self.by_name:
            raise error
        failed, *others = self.backends
        reasons = (*self.reasons, f"{failed.name}: {error.message}")
        if not others:
            raise _none_left(reasons)
        return Choice(tuple(others), reasons)


def choose(offered: Sequence[TunnelBackend], name: str | None, wanted: Wanted = USUAL) -> Choice:
    """The backends to use, and why them.

    Args:
        offered: in the order of preference.
        name: the one that was asked for, if any.
        wanted: how the network of programs is to be bounded.

    Raises:
        BackendUnavailable: there is none of that name, or none can serve.
        ConfigurationError: the one of that name does not bound it so.
    """
    if name is not None:
        return _named(offered, name, wanted)
    found, reasons = [], []
    for backend in offered:
        if backend.by_name_only or not _suits(backend, wanted):
            continue
        why = backend.unavailable()
        if why is None:
            found.append(backend)
        elif not found:
            reasons.append(f"{backend.name}: {why}")
    if not found:
        raise _none_left(reasons)
    return Choice(tuple(found), tuple(reasons))


def _named(offered: Sequence[TunnelBackend], name: str, wanted: Wanted) -> Choice:
    for backend in offered:
        if backend.name != name:
            continue
        if not _suits(backend, wanted):
            raise ConfigurationError(
                f"the tunnel backend {name} does not go with isolation={wanted!r}: it bounds the "
                f"network of programs by {_MEANS[backend.isolation]}",
                hint="Leave one of the two out",
            )
        if (why := backend.unavailable()) is not None:
            raise BackendUnavailable(
                f"the tunnel backend {name} cannot serve here: {why}", hint=_DOCTOR
            )
        return Choice((backend,), by_name=True)
    known = ", ".join(sorted({backend.name for backend in offered}))
    raise BackendUnavailable(
        f"there is no tunnel backend named {name!r}", hint=f"Known here: {known}"
    )


_MEANS = {
    "namespace": "a network namespace",
    "interface": "nothing, as they share the one of this process",
    "proxy": "a proxy that they may go around",
    "none": "nothing",
}


def _suits(backend: TunnelBackend, wanted: Wanted) -> bool:
    if wanted == "required":
        return backend.isolation == "namespace"
    return wanted != "proxy" or backend.isolation == "proxy"


def _none_left(reasons: Sequence[str]) -> BackendUnavailable:
    return BackendUnavailable(
        f"no tunnel backend can serve here ({'; '.join(reasons) or 'none is installed'})",
        hint=f"{_DOCTOR}; isolation='proxy' asks for no network namespace, and backend='none' "
        "hands out the config alone",
    )

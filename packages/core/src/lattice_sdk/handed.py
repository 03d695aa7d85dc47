"""A beginning that was made before the SDK was loaded, for a lifecycle to go on with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import SecretStr

    from lattice_engine import EngineProcess
    from lattice_sdk.backends import TunnelBackend
    from lattice_sdk.problems import Answer


@dataclass(frozen=True)
class Enrolled:
    """An enrollment that was asked for.

    Attributes:
        private_key: whose public half was sent.
        answer: the control plane's, which counts as the first; ``None`` where none came.
        received: when it came, on the monotonic clock.
    """

    private_key: SecretStr = field(repr=False)
    answer: Answer | None = None
    received: float = 0.0


@dataclass(frozen=True)
class Handed:
    """What there is already.

    Attributes:
        engine: that runs.
        enrolled: the enrollment.
        backend: gives the tunnel that is up.
    """

    engine: EngineProcess | None = None
    enrolled: Enrolled | None = None
    backend: TunnelBackend | None = None

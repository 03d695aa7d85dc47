"""The adapter contract: what every adapter must hold, as tests against the real parts.

Describe the framework with an :class:`Adapter`, subclass
:class:`lattice_sdk.testing.contract.AdapterContract`, run pytest. See ``docs/adapters.md``.
"""

from lattice_sdk.testing.adapter import Adapter, Capability
from lattice_sdk.testing.world import World, start_world

__all__ = ["Adapter", "Capability", "World", "start_world"]

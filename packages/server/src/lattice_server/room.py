"""How many identities the gateway has room for."""

from __future__ import annotations

from lattice_server.hub import GatewayInfo
from lattice_server.problems import ApiProblem
from lattice_server.store import statements
from lattice_server.store.database import Transaction


class Room:
    """Refuses the identity that the gateway's engine would refuse.

    Without it a full gateway would not only refuse that one: the engine takes a change whole or not
    at all, so that others' changes would wait with it.

    The database is asked seldom: between two counts there are at most as many identities more as
    have been let in since, so that a gateway with room for n more is not asked about the next n.
    """

    def __init__(self) -> None:
        self._at_most: int | None = None

    async def enter(self, tx: Transaction, gateway: GatewayInfo) -> None:
        """Let one more identity in, in this transaction.

        Args:
            tx: that of the enrollment; transactions come one after another.
            gateway: where it is to live.

        Raises:
            ApiProblem: ``address_pool_exhausted``.
        """
        if self._at_most is None or self._at_most >= gateway.max_peers:
            rows = await tx.connection.fetch(statements.COUNT_ACTIVE_PEERS)
            self._at_most = int(rows[0][0])
        if self._at_most >= gateway.max_peers:
            raise ApiProblem(
                "address_pool_exhausted",
                f"the gateway {gateway.name} has {self._at_most} live identities, connectors "
                f"included, and its WireGuard takes {gateway.max_peers}, however large the overlay "
                "is; wait until identities end, or let a further control plane with a gateway of "
                "its own serve some of the workspaces",
                headers={"Retry-After": "30"},
            )
        self._at_most += 1

"""The control plane's parts, joined: settings, store, addresses, hub, events, background tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter

from sqlalchemy import delete, insert, select

from lattice_server import reconciler
from lattice_server.addresses import AddressPool
from lattice_server.bootstrap import StartError, ensure_admin_token
from lattice_server.clock import now_ms
from lattice_server.connectors import Connectors
from lattice_server.denials import Denials
from lattice_server.hub import GatewayInfo, Hub
from lattice_server.jwks import KeySets
from lattice_server.limits import Buckets, FailureGuard, Lanes
from lattice_server.metrics import Metrics
from lattice_server.problems import ApiProblem, gateway_unavailable
from lattice_server.quarantine import Quarantine
from lattice_server.room import Room
from lattice_server.settings import ServerSettings
from lattice_server.store import schema, statements
from lattice_server.store.database import Database, Transaction
from lattice_server.store.events import EventLog
from lattice_server.webhook import Webhook

log = logging.getLogger("lattice.control")

# Of a pool without limits for each, this last part is not for who holds half of it or more.
RESERVED_PART = 16
# Events of one identity about what it repeats, such as its renewals: so many, then one in a while.
RECORDED_AT_ONCE, RECORDED_SECONDS = 10, 10.0


class ControlPlane:
    """One running control plane; one for each database, as addresses and hub are in memory."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.events = EventLog()
        self.hub = Hub(self.metrics)
        self.connectors = Connectors()
        self.database = Database(settings.database_url)
        self.addresses = AddressPool(settings.overlay)
        self.room = Room()
        self._held: Counter[str] = Counter()  # addresses of each workspace, resting ones too
        self.failures = FailureGuard(settings.auth_failures_per_minute)
        self.lanes = Lanes()
        self.repeated = Buckets(RECORDED_AT_ONCE, 1 / RECORDED_SECONDS)
        self.key_sets = KeySets(settings.issuer_ca_file)
        self.denials = Denials(self.database, self.events)
        self.quarantine = Quarantine(self)
        self.closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Migrate, load, catch up with what expired meanwhile, start the background tasks.

        Raises:
            StartError: when the database belongs to another overlay, or a setting is wrong.
        """
        webhook = Webhook.of(self)
        await self.database.migrate()
        async with self.database.write() as tx:
            await self._check_overlay(tx)
            await ensure_admin_token(tx, self.settings.data_dir)
        await self.reload_addresses()
        await reconciler.reconcile(self, forget=False)
        self._tasks = [
            asyncio.create_task(reconciler.run(self), name="reconciler"),
            asyncio.create_task(self.denials.run(), name="denials"),
            asyncio.create_task(self.quarantine.run(), name="quarantine"),
        ]
        if webhook is not None:
            await webhook.prepare()
            self._tasks.append(asyncio.create_task(webhook.run(), name="webhook"))

    async def stop(self) -> None:
        """End streams and tasks, write what is pending, close the database."""
        self.close_streams()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        with contextlib.suppress(Exception):
            await self.denials.flush()
        await self.database.close()

    def close_streams(self) -> None:
        """Let streams that never end by themselves (events, gateway) end now."""
        self.closing.set()
        self.events.wake()
        self.hub.give_up()
        self.connectors.give_up()

    def gateway(self) -> GatewayInfo:
        """The connected gateway.

        Raises:
            ApiProblem: ``gateway_unavailable`` when there is none.
        """
        if self.hub.stream is None:
            raise gateway_unavailable(
                "no gateway is connected, so the identity would have no network; "
                "start `lattice gateway` or wait for it, then try again"
            )
        return self.hub.stream.info

    async def reload_addresses(self) -> None:
        """Build the pool anew from the database."""
        async with self.database.read() as connection:
            addresses = schema.addresses.c
            rows = await connection.execute(select(addresses.address, addresses.workspace_id))
            used = [(row.address, row.workspace_id) for row in rows]
        self.addresses = AddressPool(self.settings.overlay, (address for address, _ in used))
        self._held = Counter(workspace or "" for _, workspace in used)

    async def take_address(self, tx: Transaction, owner: str, workspace: str) -> str:
        """Reserve a free address in this transaction.

        The caller gives it back (:meth:`give_back`) if the transaction fails.

        Raises:
            ApiProblem: ``address_pool_exhausted``.
        """
        if not self._may_take(workspace):
            await self.release_rested(tx)
            if not self._may_take(workspace):
                raise self._exhausted(workspace)
        address = self.addresses.take()
        assert address is not None  # noqa: S101 - there is one
        row = {"address": address, "owner": owner, "free_at": None, "workspace_id": workspace}
        try:
            await tx.connection.run(statements.INSERT_ADDRESS, row)
        except BaseException:
            # Somebody else's row: it is not ours to give back; the next start knows it is taken.
            log.warning("address %s was taken by another process", address)
            raise
        self._held[workspace] += 1
        return address

    def give_back(self, workspace: str, address: str) -> None:
        """Free an address that was taken in a transaction that failed, or that has rested."""
        self.addresses.release(address)
        self._held[workspace] -= 1
        if self._held[workspace] <= 0:
            del self._held[workspace]

    def _may_take(self, workspace: str) -> bool:
        """Whether there is an address, and for this workspace."""
        free, held = len(self.addresses), self._held.get(workspace, 0)
        limit = self.settings.workspace_addresses
        if limit:
            return free > 0 and held < limit
        room = self.settings.overlay.num_addresses
        return free > (room // RESERVED_PART if held >= room // 2 else 0)

    def _exhausted(self, workspace: str) -> ApiProblem:
        if len(self.addresses):
            why = (
                f"the workspace {workspace} has {self._held[workspace]} overlay addresses in use "
                "or resting after use, which is the most that one workspace may; wait until "
                "identities end, or give the server another workspace_addresses"
            )
        else:
            why = (
                f"every address of the overlay {self.settings.overlay} is in use or rests after "
                "use; wait until identities end, or give the server a larger overlay"
            )
        return ApiProblem("address_pool_exhausted", why, headers={"Retry-After": "30"})

    async def release_rested(self, tx: Transaction) -> int:
        """Give addresses back whose quarantine is over; how many."""
        addresses = schema.addresses.c
        rested = (
            await tx.connection.execute(
                delete(schema.addresses)
                .where(addresses.free_at <= now_ms())
                .returning(addresses.address, addresses.workspace_id)
            )
        ).all()
        for row in rested:
            self.give_back(row.workspace_id or "", row.address)
        return len(rested)

    async def _check_overlay(self, tx: Transaction) -> None:
        facts = schema.facts
        known = await tx.connection.scalar(select(facts.c.value).where(facts.c.key == "overlay"))
        overlay = str(self.settings.overlay)
        if known is None:
            await tx.connection.execute(insert(facts).values(key="overlay", value=overlay))
        elif known != overlay:
            raise StartError(
                f"this database was made for the overlay {known} and the server is to use "
                f"{overlay}: identities would have addresses outside of it. Start with --overlay "
                f"{known}, or with another data directory"
            )

"""The control plane's parts, joined: settings, store, addresses, hub, events, background tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging

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
from lattice_server.settings import ServerSettings
from lattice_server.store import schema, statements
from lattice_server.store.database import Database, Transaction
from lattice_server.store.events import EventLog
from lattice_server.webhook import Webhook

log = logging.getLogger("lattice.control")

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
            used = await connection.scalars(select(schema.addresses.c.address))
            self.addresses = AddressPool(self.settings.overlay, used)

    async def take_address(self, tx: Transaction, owner: str) -> str:
        """Reserve a free address in this transaction.

        The caller gives it back to the pool (``addresses.release``) if the transaction fails.

        Raises:
            ApiProblem: ``address_pool_exhausted``.
        """
        address = self.addresses.take()
        if address is None:
            await self.release_rested(tx)
            address = self.addresses.take()
        if address is None:
            raise ApiProblem(
                "address_pool_exhausted",
                f"every address of the overlay {self.settings.overlay} is in use or rests after "
                "use; wait until identities end, or give the server a larger overlay",
                headers={"Retry-After": "30"},
            )
        try:
            await tx.connection.run(
                statements.INSERT_ADDRESS, {"address": address, "owner": owner, "free_at": None}
            )
        except BaseException:
            # Somebody else's row: it is not ours to give back; the next start knows it is taken.
            log.warning("address %s was taken by another process", address)
            raise
        return address

    async def release_rested(self, tx: Transaction) -> int:
        """Give addresses back whose quarantine is over; how many."""
        addresses = schema.addresses.c
        rested = list(
            await tx.connection.scalars(
                delete(schema.addresses)
                .where(addresses.free_at <= now_ms())
                .returning(addresses.address)
            )
        )
        for address in rested:
            self.addresses.release(address)
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

"""What a service or connector offers: changed while agents run, and checked against the others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from lattice_server.answers import service_answer
from lattice_server.clock import now_ms
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.database import Transaction
from lattice_server.store.events import event
from lattice_server.store.queries import (
    peer_by_id,
    peer_objects,
    ripple,
    service_by_name,
    services_of,
)
from lattice_server.store.records import NETWORK, SERVICE, ServiceRecord

if TYPE_CHECKING:
    from lattice_server.api.models import ServiceChange
    from lattice_server.control import ControlPlane


async def change_service(
    control: ControlPlane, workspace: str, name: str, change: ServiceChange
) -> dict[str, Any]:
    """Change what a service offers and to whom; running agents gain and lose it at once.

    Raises:
        ApiProblem: ``service_not_found``, ``conflict`` or ``invalid_request``.
    """
    async with control.database.write() as tx:
        before = await service_by_name(tx.connection, workspace, name)
        if before is None:
            raise ApiProblem("service_not_found", f"the workspace has no service {name}")
        service = replace(before, **change.fields())
        _check_kind(service)
        await check_networks(control, tx, service)
        await check_hostnames(tx, service)
        peer = await peer_by_id(tx.connection, service.peer_id)
        connected = bool(peer and peer.alive(now_ms()))
        if service == before:
            return service_answer(service, connected=connected)
        services = schema.services.c
        await tx.connection.execute(
            update(schema.services)
            .where(services.workspace_id == workspace, services.name == name)
            .values(**service.values())
        )
        told = event(
            "service.changed",
            now_ms(),
            workspace=workspace,
            peer_id=service.peer_id,
            name=name,
            **change.fields(),
        )
        await control.events.append(tx, [told])
        touched = await ripple(tx.connection, workspace, [before.rule(), service.rule()], now_ms())
        if peer is not None and connected and service.kind == NETWORK:
            touched += await peer_objects(tx.connection, workspace, [peer], now_ms())
        tx.after_commit.append(lambda: control.hub.publish(touched))
    if control.hub.stream is not None:
        await control.hub.wait(control.hub.revision, control.settings.delete_wait.total_seconds())
    return service_answer(service, connected=connected)


async def check_hostnames(tx: Transaction, wanted: ServiceRecord) -> None:
    """Refuse host names that another service of the workspace has.

    Raises:
        ApiProblem: ``conflict``.
    """
    for other in await services_of(tx.connection, wanted.workspace_id):
        taken = set(other.hostnames) & set(wanted.hostnames)
        if taken and other.name != wanted.name:
            raise ApiProblem(
                "conflict",
                f"the service {other.name} has the host name {min(taken)} already; "
                "choose other hostnames",
                errors=[{"field": "hostnames", "message": f"{min(taken)} is taken"}],
            )


async def check_networks(control: ControlPlane, tx: Transaction, wanted: ServiceRecord) -> None:
    """Refuse networks that are, wholly or in part, the overlay's or another connector's.

    The gateway has one routing table for all workspaces.

    Raises:
        ApiProblem: ``conflict``.
    """
    mine = [IPv4Network(network) for network in wanted.networks]
    others: list[tuple[str, IPv4Network]] = [("the overlay", control.settings.overlay)]
    if mine:
        services = schema.services
        rows = await tx.connection.execute(
            select(services.c.peer_id, services.c.networks).where(services.c.kind == NETWORK)
        )
        for row in rows:
            if row.peer_id != wanted.peer_id:
                others += [("another connector", IPv4Network(n)) for n in row.networks]
    for number, network in enumerate(mine):
        others_here = [*others, *(("this connector", other) for other in mine[:number])]
        for whose, other in others_here:
            if network.overlaps(other):
                raise ApiProblem(
                    "conflict",
                    f"{network} overlaps {other} of {whose}; advertise what nobody else does",
                    errors=[{"field": "networks", "message": f"overlaps {other}"}],
                )


def _check_kind(service: ServiceRecord) -> None:
    wrong = (service.kind == SERVICE) != bool(service.ports) or (service.kind == NETWORK) != bool(
        service.networks
    )
    if wrong or (service.kind != SERVICE and service.hostnames):
        raise ApiProblem(
            "invalid_request",
            f"{service.name} is of kind {service.kind}: a service has ports and hostnames, "
            "a network has networks, an egress connector has neither",
            errors=[{"field": "kind", "message": f"is {service.kind}"}],
        )

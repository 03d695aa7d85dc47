"""A workspace's own policy: one document, read and replaced as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from lattice_server.clock import now_ms
from lattice_server.hub import PeerObject
from lattice_server.presets import Presets, presets_of
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.database import Transaction
from lattice_server.store.events import event
from lattice_server.store.queries import live_agents, peer_objects, presets_of_workspace

if TYPE_CHECKING:
    from lattice_server.api.policy import PolicyBody
    from lattice_server.control import ControlPlane


async def policy_of(connection: AsyncConnection, workspace: str) -> dict[str, Any]:
    """The policy document of a workspace, complete.

    Raises:
        ApiProblem: ``unknown_workspace``.
    """
    workspaces = schema.workspaces.c
    row = (
        await connection.execute(select(workspaces.policy).where(workspaces.id == workspace))
    ).one_or_none()
    if row is None:
        raise ApiProblem("unknown_workspace", f"there is no workspace {workspace}")
    return complete(row.policy)


def complete(document: dict[str, Any] | None) -> dict[str, Any]:
    """A stored document with what is left out filled in."""
    return {"presets": {}, "privateTargets": [], **(document or {})}


async def check_presets(tx: Transaction, workspace: str, names: Iterable[str] | None) -> None:
    """Refuse presets that a workspace does not have.

    Raises:
        ApiProblem: ``invalid_request``.
    """
    known = await presets_of_workspace(tx.connection, workspace)
    if unknown := sorted(set(names or ()) - known.keys()):
        raise ApiProblem(
            "invalid_request",
            f"the workspace has no preset {unknown[0]}; it has {', '.join(known)}",
            errors=[{"field": "presets", "message": f"{unknown[0]} is unknown"}],
        )


async def replace_policy(control: ControlPlane, workspace: str, body: PolicyBody) -> dict[str, Any]:
    """Make this the policy of a workspace; running agents and connectors have it at once.

    Raises:
        ApiProblem: ``unknown_workspace``.
    """
    document = body.record()
    now = now_ms()
    async with control.database.write() as tx:
        before = await policy_of(tx.connection, workspace)
        await tx.connection.execute(
            update(schema.workspaces)
            .where(schema.workspaces.c.id == workspace)
            .values(policy=document)
        )
        if complete(document) != before:
            changed = event("policy.changed", now, workspace=workspace, policy=document)
            await control.events.append(tx, [changed])
            touched = await _touched(tx, workspace, presets_of(before), presets_of(document), now)

            def tell() -> None:
                control.hub.publish(touched)
                control.connectors.changed(workspace)

            tx.after_commit.append(tell)
    if control.hub.stream is not None:
        await control.hub.wait(control.hub.revision, control.settings.delete_wait.total_seconds())
    return {"workspaceId": workspace, **complete(document)}


async def _touched(
    tx: Transaction, workspace: str, before: Presets, after: Presets, now: int
) -> list[PeerObject]:
    """The agents that a change of the presets concerns, as they are to be now.

    Not only those of presets that differ: one that accepts agents no more is somebody's grant.
    """
    if before == after:
        return []
    agents = await live_agents(tx.connection, workspace, {*before, *after}, now)
    return await peer_objects(tx.connection, workspace, agents, now, presets=after)

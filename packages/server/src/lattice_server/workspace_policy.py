"""A workspace's own policy: one document, read and replaced as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from lattice_server.clock import now_ms
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.events import event

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
    return {"privateTargets": [], **(document or {})}


async def replace_policy(control: ControlPlane, workspace: str, body: PolicyBody) -> dict[str, Any]:
    """Make this the policy of a workspace; connectors hear of it at once.

    Raises:
        ApiProblem: ``unknown_workspace``.
    """
    document = body.record()
    async with control.database.write() as tx:
        before = await policy_of(tx.connection, workspace)
        await tx.connection.execute(
            update(schema.workspaces)
            .where(schema.workspaces.c.id == workspace)
            .values(policy=document)
        )
        if complete(document) != before:
            changed = event("policy.changed", now_ms(), workspace=workspace, policy=document)
            await control.events.append(tx, [changed])
            tx.after_commit.append(lambda: control.connectors.changed(workspace))
    return {"workspaceId": workspace, **complete(document)}

"""A workspace's own policy: one document, read and replaced as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from lattice_server import policy, policy_cases
from lattice_server.clock import now_ms
from lattice_server.hub import PeerObject
from lattice_server.presets import Presets, presets_of
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.connection import Connection
from lattice_server.store.database import Transaction
from lattice_server.store.events import event
from lattice_server.store.queries import (
    kin_of,
    live_agents,
    peer_objects,
    presets_of_workspace,
    services_of,
)
from lattice_server.store.records import EGRESS, PeerRecord, ServiceRecord

if TYPE_CHECKING:
    from lattice_server.api.policy import PolicyBody, PolicyTestBody
    from lattice_server.control import ControlPlane


async def policy_of(connection: Connection, workspace: str) -> dict[str, Any]:
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


async def try_cases(control: ControlPlane, workspace: str, body: PolicyTestBody) -> dict[str, Any]:
    """Decide cases on the workspace as it is, or as the body proposes it to be.

    Raises:
        ApiProblem: ``unknown_workspace``, or ``service_not_found`` for a proposal to change one
            that is not there.
    """
    async with control.database.read() as connection:
        document = await policy_of(connection, workspace)
        records = {s.name: s for s in await services_of(connection, workspace)}
        agents = await live_agents(connection, workspace, None, now_ms())
    if body.policy is not None:
        document = body.policy.record()
    for name, change in body.services.items():
        if name not in records:
            raise ApiProblem("service_not_found", f"the workspace has no service {name}")
        records[name] = replace(records[name], **change.fields())
    ground = _ground(records, agents, presets_of(document))
    results = []
    for case in body.cases:
        told = case.model_dump(by_alias=True, mode="json")
        verdict, why = None, ""
        try:
            verdict, why = policy_cases.decide(policy_cases.case_of(told), ground)
        except ValueError as error:
            why = str(error)
        results.append({**told, "verdict": verdict, "passed": verdict == case.expect, "why": why})
    failed = sum(not result["passed"] for result in results)
    return {"results": results, "passed": len(results) - failed, "failed": failed}


def _ground(
    records: dict[str, ServiceRecord], agents: list[PeerRecord], presets: Presets
) -> policy_cases.Ground:
    state = policy.Workspace(
        {name: record.rule() for name, record in records.items()},
        {agent.id: agent.rule() for agent in agents},
        presets,
    )
    return policy_cases.Ground(
        state,
        {agent.id: agent.name for agent in agents},
        kin_of(agents, policy.compile_workspace(state), state.presets),
        any(record.kind == EGRESS for record in records.values()),
    )


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

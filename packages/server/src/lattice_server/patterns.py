"""Host names of patterns: each gets its overlay address when an identity first uses it.

A pattern such as ``*.example.org`` in an allow list names hosts that nobody knows beforehand. The
agent's engine asks for one when a program wants it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert

from lattice_server import destinations, names
from lattice_server.access import Principal, check_alive, peer_not_found, same_secret
from lattice_server.clock import now_ms
from lattice_server.problems import ApiProblem, gateway_unavailable
from lattice_server.publication import store
from lattice_server.store import schema
from lattice_server.store.database import Transaction
from lattice_server.store.queries import connector_of, peer_by_id, peer_objects
from lattice_server.store.records import PeerRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane


async def serve_name(
    control: ControlPlane, peer_id: str, principal: Principal, text: str
) -> dict[str, Any]:
    """Have a name of a pattern served for an identity; answered once it is.

    It is the identity's alone. Those that a sub-agent descends from need not have it, as their
    patterns cover it (:class:`lattice_server.attenuation.Lines`): it uses up its own names.

    Raises:
        ApiProblem: ``destination_not_permitted``, ``egress_unavailable``, ``peer_not_found``, …
    """
    name = _name(text)
    if principal.peer is None or principal.peer.id != peer_id:
        raise peer_not_found(peer_id)
    revisions = {"gateway": 0, "connector": 0}
    async with control.database.write() as tx:
        peer = await peer_by_id(tx.connection, peer_id)
        if peer is None or not same_secret(peer.token_hash, principal.peer.token_hash):
            raise peer_not_found(peer_id)
        check_alive(peer, now_ms())
        if not (_entries(peer, name) or _rules(peer, name)):
            raise _not_permitted(name)
        connector = await connector_of(tx.connection, peer.workspace_id, now_ms())
        if connector is None or not control.connectors.connected(connector.id):
            raise names.unavailable(
                f"no egress connector of the workspace {peer.workspace_id} is connected, so "
                f"{name} cannot be reached; start `lattice egress` and try again"
            )
        if not _entries(peer, name):
            taken: list[str] = []
            try:
                peer = await _add(control, tx, peer, name, connector, taken, revisions)
            except BaseException:
                for address in taken:
                    control.give_back(peer.workspace_id, address)
                raise
        else:
            revisions = {
                "gateway": control.hub.revision,
                "connector": control.connectors.revision(peer.workspace_id),
            }
    await _wait(control, connector.id, name, revisions)
    entries = _entries(peer, name)
    ports = [{"port": entry["port"], "protocol": entry["protocol"]} for entry in entries]
    return {"name": name, "address": entries[0]["address"], "ports": ports}


async def _add(
    control: ControlPlane,
    tx: Transaction,
    peer: PeerRecord,
    name: str,
    connector: PeerRecord,
    taken: list[str],
    revisions: dict[str, int],
) -> PeerRecord:
    """Write the name into the identity's list; the identity as it is then."""
    if len({rule["to"] for rule in peer.allow if "address" in rule}) >= names.MOST_NAMES:
        raise ApiProblem(
            "destination_not_permitted",
            f"the identity {peer.id} has {names.MOST_NAMES} host names, which is the most; "
            "enroll anew for others",
        )
    found = await names.addresses_of(control, tx, peer.workspace_id, [name], connector.id, taken)
    more = [
        {**rule, "to": name, "address": found[name], "of": rule["to"]}
        for rule in _rules(peer, name)
    ]
    changed = replace(peer, allow=[*peer.allow, *more], version=peer.version + 1)
    await tx.connection.execute(insert(schema.name_uses), names.uses(peer, more))
    await store(tx, changed)
    touched = await peer_objects(tx.connection, peer.workspace_id, [changed, connector], now_ms())

    def tell() -> None:
        revisions["connector"] = control.connectors.changed(peer.workspace_id)
        revisions["gateway"] = control.hub.publish(touched)

    tx.after_commit.append(tell)
    return changed


async def _wait(
    control: ControlPlane, connector: str, name: str, revisions: dict[str, int]
) -> None:
    """Return once gateway and connector have it.

    What does not come in time is not undone: the name is this identity's, and it may ask again.
    """
    seconds = control.settings.gateway_wait.total_seconds()
    passed, served = await asyncio.gather(
        control.hub.wait(revisions["gateway"], seconds),
        control.connectors.wait(connector, revisions["connector"], seconds),
    )
    if not passed:
        raise gateway_unavailable(
            f"the gateway did not take up {name} within {seconds:g} s; try again"
        )
    if not served:
        raise names.unavailable(
            f"the egress connector did not take up {name} within {seconds:g} s; try again"
        )


def _name(text: str) -> str:
    try:
        to = destinations.parse(text)
    except ValueError as error:
        raise ApiProblem(
            "invalid_request",
            f"name is {error}",
            errors=[{"field": "name", "message": str(error)}],
        ) from None
    if to.kind != "name":
        raise ApiProblem(
            "invalid_request",
            f"{to.text} is no host name",
            errors=[{"field": "name", "message": "not a host name"}],
        )
    return to.text


def _entries(peer: PeerRecord, name: str) -> list[dict[str, Any]]:
    return [rule for rule in peer.allow if rule["to"] == name and "address" in rule]


def _rules(peer: PeerRecord, name: str) -> list[dict[str, Any]]:
    """The patterns of an allow list that cover a name."""
    to = destinations.Destination("name", name)
    return [
        rule
        for rule in peer.allow
        if rule["to"].startswith("*.")
        and destinations.Permit(rule["to"]).covers(to, rule["port"], rule["protocol"])
    ]


def _not_permitted(name: str) -> ApiProblem:
    return ApiProblem(
        "destination_not_permitted",
        f"no pattern of the identity's allow list covers {name}; enroll with one that does",
        errors=[{"field": "name", "message": "not covered"}],
    )

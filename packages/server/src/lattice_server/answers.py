"""What the API shows of records. Plain dictionaries: this is the hot path."""

from __future__ import annotations

from typing import Any

from lattice_server import destinations, policy
from lattice_server.clock import now_ms, rfc3339
from lattice_server.credentials import render_wireguard_config
from lattice_server.hub import GatewayInfo, PeerObject
from lattice_server.settings import ServerSettings
from lattice_server.store.records import PeerRecord, ServiceRecord


def identity_answer(
    settings: ServerSettings,
    gateway: GatewayInfo,
    peer: PeerRecord,
    enrollment_token: str,
    private_key: str | None,
    programmed: PeerObject | None,
    services: list[ServiceRecord],
    ingress: list[str],
) -> dict[str, Any]:
    """The body of an enrollment or a renewal: the published five fields first."""
    now = now_ms()
    return {
        "peerId": peer.id,
        "overlayIP": f"{peer.address}/32",
        "enrollmentToken": enrollment_token,
        "wireguardConfig": render_wireguard_config(
            address=peer.address,
            gateway_public_key=gateway.public_key,
            endpoint=gateway.endpoint,
            routes=[settings.overlay_text, *beyond(settings, peer)],
            private_key=private_key,
        ),
        "expiresAt": rfc3339(peer.expires_at),
        "workspaceId": peer.workspace_id,
        "policyPreset": peer.preset,
        "renewAfter": rfc3339(now + max(0, peer.expires_at - now) // 2),
        "maxExpiresAt": None if peer.max_expires_at is None else rfc3339(peer.max_expires_at),
        "gatewayIP": settings.gateway_address,
        **reach_answer(peer, programmed.grants if programmed else (), services, ingress),
    }


def reach_answer(
    peer: PeerRecord,
    grants: tuple[policy.Grant, ...],
    services: list[ServiceRecord],
    ingress: list[str],
) -> dict[str, Any]:
    """What an agent reaches under which names, and who may come to it."""
    return {
        "services": reachable_services(grants, services) + reachable_names(grants, peer),
        "ingress": ["agents"] if peer.kind == "service" else ingress,
    }


def beyond(settings: ServerSettings, peer: PeerRecord) -> list[str]:
    """The networks outside the overlay that an allow list names, for the way into the tunnel."""
    found = set()
    for rule in peer.allow:
        to = destinations.parse(rule["to"])
        if to.kind in ("address", "network") and not to.network.overlaps(settings.overlay):
            found.add(str(to.network))
    return sorted(found)


def reachable_services(
    grants: tuple[policy.Grant, ...], services: list[ServiceRecord]
) -> list[dict[str, Any]]:
    """The services that these grants reach, with the ports that they reach."""
    granted = {(grant.to, grant.protocol, grant.port) for grant in grants}
    answer = []
    for service in services:
        ports = [p for p in service.ports if (service.address, p["protocol"], p["port"]) in granted]
        if ports:
            answer.append(
                {
                    "name": service.name,
                    "hostnames": service.hostnames,
                    "address": service.address,
                    "ports": ports,
                }
            )
    return answer


def reachable_names(grants: tuple[policy.Grant, ...], peer: PeerRecord) -> list[dict[str, Any]]:
    """The host names of an allow list that its grants reach, in the form of services."""
    granted = {(grant.to, grant.protocol, grant.port) for grant in grants}
    answer: dict[str, dict[str, Any]] = {}
    for rule in peer.allow:
        address = rule.get("address")
        if address and (address, rule["protocol"], rule["port"]) in granted:
            name = rule["to"]
            entry = {"name": name, "hostnames": [name], "address": address, "ports": []}
            ports = answer.setdefault(name, entry)["ports"]
            ports.append({"port": rule["port"], "protocol": rule["protocol"]})
    return list(answer.values())


def peer_answer(peer: PeerRecord) -> dict[str, Any]:
    """A peer as the API shows it. Holds no secret."""
    return {
        "peerId": peer.id,
        "name": peer.name,
        "kind": peer.kind,
        "agentType": peer.agent_type,
        "workspaceId": peer.workspace_id,
        "policyPreset": peer.preset,
        "overlayIP": f"{peer.address}/32",
        "publicKey": peer.public_key,
        "createdAt": rfc3339(peer.created_at),
        "expiresAt": rfc3339(peer.expires_at),
        "maxExpiresAt": None if peer.max_expires_at is None else rfc3339(peer.max_expires_at),
        "renewals": peer.renewals,
        "allow": peer.asked(),
        "subject": peer.subject,
        "parentRef": peer.parent_id,
        "delegationDepth": peer.delegation_depth,
    }


def peer_reference(peer: PeerRecord) -> dict[str, Any]:
    """A peer of a line of delegations, in short."""
    return {
        "peerId": peer.id,
        "name": peer.name,
        "policyPreset": peer.preset,
        "expiresAt": rfc3339(peer.expires_at),
    }


def service_answer(service: ServiceRecord, *, connected: bool) -> dict[str, Any]:
    """A tool service as the management API shows it."""
    return {
        "name": service.name,
        "workspaceId": service.workspace_id,
        "address": service.address,
        "hostnames": service.hostnames,
        "ports": service.ports,
        "designated": service.designated,
        "kind": service.kind,
        "networks": service.networks,
        "peerId": service.peer_id,
        "connected": connected,
        "createdAt": rfc3339(service.created_at),
    }


def lattice_peer(peer: PeerRecord) -> dict[str, Any]:
    """A peer as the Kubernetes-style resource ``LatticePeer``."""
    return {
        "apiVersion": "alattice.io/v1alpha1",
        "kind": "LatticePeer",
        "metadata": {
            "name": peer.id,
            "namespace": peer.workspace_id,
            "uid": peer.id,
            "resourceVersion": str(peer.version),
            "creationTimestamp": rfc3339(peer.created_at),
            "labels": {
                "lattice.io/agent-type": _label(peer.agent_type),
                "lattice.io/agent-managed": "true" if peer.kind == "agent" else "false",
            },
            "annotations": {"lattice.io/agent-expires-at": rfc3339(peer.expires_at)},
            **({"ownerReferences": [_owner(peer.parent_id)]} if peer.parent_id else {}),
        },
        "spec": {
            "peerName": peer.name,
            "kind": peer.kind,
            "agentType": peer.agent_type,
            "policyPreset": peer.preset,
            "publicKey": peer.public_key,
            "allow": peer.asked(),
            **({"parentRef": peer.parent_id} if peer.parent_id else {}),
        },
        "status": {
            "phase": "Active",
            "overlayIP": f"{peer.address}/32",
            "expiresAt": rfc3339(peer.expires_at),
            "maxExpiresAt": None if peer.max_expires_at is None else rfc3339(peer.max_expires_at),
            "renewals": peer.renewals,
        },
    }


def _owner(parent: str) -> dict[str, str]:
    # https://kubernetes.io/docs/concepts/overview/working-with-objects/owners-dependents/
    return {
        "apiVersion": "alattice.io/v1alpha1",
        "kind": "LatticePeer",
        "name": parent,
        "uid": parent,
    }


def _label(text: str) -> str:
    # https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
    return text[:63].strip("-_.")

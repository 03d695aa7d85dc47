"""What an agent hands to a sub-agent: a token for one enrollment, and what goes with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from lattice_sdk.errors import NotPermitted
from lattice_sdk.terms import reading
from lattice_sdk.wire import DelegateRequest

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from pydantic import SecretStr

    from lattice_sdk.lifecycle import Lifecycle
    from lattice_sdk.wire import AllowRule


@dataclass(frozen=True)
class Delegation:
    """A sub-agent that may enroll, once. The token is not in its ``repr``.

    Attributes:
        agent_name: what the sub-agent is called; it enrolls under this name alone.
        token: what it enrolls with.
        policy_preset: what it will be held to.
        expires_at: the end of the token, and of the sub-agent's life as things are. In UTC.
        parent_ref: peer id of the agent that delegated.
        server: URL of the control plane.
        workspace_id: the workspace of both.
        ca_file: certificate authorities of the control plane.
    """

    agent_name: str
    token: SecretStr = field(repr=False)
    policy_preset: str
    expires_at: datetime
    parent_ref: str
    server: str
    workspace_id: str | None = None
    ca_file: Path | None = None

    def settings(self) -> dict[str, Any]:
        """Arguments for the sub-agent: ``LatticeAgent(**delegation.settings())``. Holds a secret.

        For a sub-agent in another process ``token``, ``server`` and ``agent_name`` are enough.
        """
        return {
            "server": self.server,
            "token": self.token,
            "agent_name": self.agent_name,
            "policy_preset": self.policy_preset,
            "workspace_id": self.workspace_id,
            "verify": self.ca_file,
        }


class DelegationTerms(TypedDict, total=False):
    """What a sub-agent is to have; each may be left out.

    Attributes:
        policy_preset: no wider than the parent's; the control plane chooses when left out.
        ttl: life until the next renewal, ``"10m"`` or a timedelta; the parent's when left out.
        agent_type: kind of agent.
        max_lifetime: longest life with renewals.
        allow: for ``isolated``, the destinations that it may have, of those of its parent.
        depth: how many generations it may delegate to in turn.
    """

    policy_preset: str | None
    ttl: str | timedelta | None
    agent_type: str | None
    max_lifetime: str | timedelta | None
    allow: Iterable[AllowRule | Mapping[str, Any]] | None
    depth: int | None


def make_request(agent_name: str, terms: DelegationTerms) -> DelegateRequest:
    """The body of a delegation.

    Raises:
        InvalidRequest: a name, a duration or a rule has a wrong form; it was not sent.
    """
    allow = terms.get("allow")
    return reading(
        DelegateRequest,
        {
            "sub_agent_name": agent_name,
            "agent_type": terms.get("agent_type"),
            "ttl": terms.get("ttl"),
            "policy_preset": terms.get("policy_preset"),
            "max_lifetime": terms.get("max_lifetime"),
            "allow": None if allow is None else list(allow),
            "delegation_depth": terms.get("depth"),
        },
    )


async def delegate(life: Lifecycle, request: DelegateRequest) -> Delegation:
    """Ask the control plane for a sub-agent's token. In the background loop.

    Raises:
        LatticeError: as the control plane refuses.
    """
    identity, client = life.living(), life.client
    if client.second_dialect:
        raise NotPermitted(
            f"the control plane at {client.server} knows no delegation",
            code="delegation_not_permitted",
            peer_id=identity.peer_id,
            hint="Enroll the sub-agent with a workspace token",
        )
    answer = await client.delegate(identity.peer_id, identity.enrollment_token, request)
    return Delegation(
        agent_name=request.sub_agent_name,
        token=answer.enrollment_token,
        policy_preset=answer.policy_preset or request.policy_preset or identity.policy_preset,
        expires_at=answer.expires_at,
        parent_ref=answer.parent_ref,
        server=client.server,
        workspace_id=answer.workspace_id or identity.workspace_id,
        ca_file=life.terms.ca_file,
    )

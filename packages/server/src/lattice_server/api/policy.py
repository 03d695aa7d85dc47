"""The policy of a workspace. Bearer: an admin token."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, Field

from lattice_sdk.wire import Port, Protocol, RequestModel, WireModel
from lattice_server import destinations, presets, workspace_policy
from lattice_server.access import authenticate
from lattice_server.api.common import Authorization, Control, problems
from lattice_server.api.models import ServiceChange

router = APIRouter(tags=["management"])

WorkspacePath = Annotated[str, Path(max_length=128)]


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError("not a network such as 10.1.0.0/16") from None


Network = Annotated[str, Field(max_length=64), AfterValidator(_network)]


def _words(direction: str) -> AfterValidator:
    return AfterValidator(lambda words: presets.check_words(words, direction))


Word = Annotated[str, Field(max_length=80)]


class PresetBody(RequestModel):
    """A preset: where its agents may go, and who may come to them.

    Egress words are ``services``, ``service:NAME``, ``agents`` and ``allow``, ingress words
    ``agents``.
    """

    egress: Annotated[list[Word], Field(max_length=100), _words("egress")] = Field(
        default_factory=list
    )
    ingress: Annotated[list[Word], Field(max_length=100), _words("ingress")] = Field(
        default_factory=list
    )


PresetName = Annotated[str, Field(max_length=32), AfterValidator(presets.check_name)]


class PolicyBody(RequestModel):
    """Body of ``PUT /api/v1/workspaces/{id}/policy``; what is left out is as if never set.

    ``presets`` are the workspace's own, beside those that every workspace has.
    ``privateTargets`` are networks that host names may resolve to although they are private,
    loopback, link-local or otherwise none of the Internet.
    """

    presets: Annotated[dict[PresetName, PresetBody], Field(max_length=100)] = Field(
        default_factory=dict
    )
    private_targets: Annotated[list[Network], Field(max_length=100)] = Field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """As the store keeps it."""
        return self.model_dump(by_alias=True)


def _destination(value: str) -> str:
    destinations.parse(value)
    return value


class CaseRule(RequestModel):
    """A rule of an allow list."""

    to: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_destination)]
    port: Port
    protocol: Protocol = "tcp"


Party = Annotated[str, Field(min_length=1, max_length=300)]


class CaseBody(RequestModel):
    """A case: who reaches what.

    ``from`` is a preset, or an agent by id or name; ``to`` is a service, a preset, an agent, a
    host name, an address or a network. ``service:``, ``preset:`` and ``agent:`` before a name say
    which. ``allow`` is what an agent of the preset would bring along.
    """

    from_: Annotated[Party, Field(alias="from")]
    to: Party
    port: Port
    protocol: Protocol = "tcp"
    expect: Literal["allow", "deny"]
    allow: Annotated[list[CaseRule], Field(max_length=100)] = Field(default_factory=list)


class PolicyTestBody(RequestModel):
    """Body of ``POST /api/v1/workspaces/{id}/policy/test``.

    ``policy`` left out is the policy as it is; ``services`` are changes of services, by name, that
    are proposed with it.
    """

    cases: Annotated[list[CaseBody], Field(max_length=1000)]
    policy: PolicyBody | None = None
    services: Annotated[dict[str, ServiceChange], Field(max_length=1000)] = Field(
        default_factory=dict
    )


class CaseResult(CaseBody):
    """A case and what the compiler says; without a verdict it speaks of what is not there."""

    verdict: Literal["allow", "deny"] | None
    passed: bool
    why: str


class PolicyTest(WireModel):
    """What became of the cases."""

    results: list[CaseResult]
    passed: int
    failed: int


class Policy(PolicyBody):
    """The policy of a workspace."""

    workspace_id: str


@router.get(
    "/api/v1/workspaces/{workspace_id}/policy",
    response_model=None,
    summary="Look at a workspace's policy",
    responses={200: {"model": Policy}, **problems(401, 403, 404)},
)
async def get_policy(
    control: Control, workspace_id: WorkspacePath, authorization: Authorization = None
) -> Response:
    """The workspace's own policy, complete."""
    await authenticate(control, authorization, "admin")
    async with control.database.read() as connection:
        document = await workspace_policy.policy_of(connection, workspace_id)
    return JSONResponse({"workspaceId": workspace_id, **document})


@router.put(
    "/api/v1/workspaces/{workspace_id}/policy",
    response_model=None,
    summary="Replace a workspace's policy",
    responses={200: {"model": Policy}, **problems(400, 401, 403, 404, 413, 422)},
)
async def put_policy(
    control: Control,
    workspace_id: WorkspacePath,
    body: PolicyBody,
    authorization: Authorization = None,
) -> Response:
    """Replace the policy as a whole. Running agents and connectors have it within a second."""
    await authenticate(control, authorization, "admin")
    return JSONResponse(await workspace_policy.replace_policy(control, workspace_id, body))


@router.post(
    "/api/v1/workspaces/{workspace_id}/policy/test",
    response_model=None,
    summary="Try cases on a policy",
    responses={200: {"model": PolicyTest}, **problems(400, 401, 403, 404, 413, 422)},
)
async def try_policy(
    control: Control,
    workspace_id: WorkspacePath,
    body: PolicyTestBody,
    authorization: Authorization = None,
) -> Response:
    """Decide who reaches what, by the compiler itself. Changes nothing."""
    await authenticate(control, authorization, "admin")
    return JSONResponse(await workspace_policy.try_cases(control, workspace_id, body))

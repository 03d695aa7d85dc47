"""What a request gets, as far as its token permits: preset, allow list, life. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lattice_sdk.durations import format_duration
from lattice_sdk.wire import AllowRule, Duration, EnrollRequest, Name, PublicKey, RequestModel
from lattice_server import attenuation, destinations
from lattice_server.clock import to_ms
from lattice_server.presets import Preset, Presets
from lattice_server.problems import ApiProblem
from lattice_server.settings import ServerSettings
from lattice_server.store.records import PeerRecord, TokenRecord

# A shorter life would be over before its answer is read and its first renewal sent.
SHORTEST_TTL_MS = 1000


class Connect(RequestModel):
    """Body of ``POST /api/v1/services/{name}/connect``."""

    public_key: PublicKey | None = None
    workspace_id: Name | None = None
    ttl: Duration | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What an enrollment gets. Durations are in ms."""

    workspace: str
    agent_type: str
    preset: str
    allow: list[dict[str, Any]]
    ttl: int
    max_ttl: int
    max_lifetime: int


def for_agent(
    settings: ServerSettings, token: TokenRecord, request: EnrollRequest, presets: Presets
) -> Terms:
    """Decide an enrollment, with the presets that the token's workspace has.

    Raises:
        ApiProblem: ``workspace_mismatch``, ``unknown_preset``, ``preset_not_permitted``,
            ``agent_type_not_permitted``, ``invalid_ttl``, ``ttl_not_permitted``,
            ``invalid_request`` or ``forbidden``.
    """
    workspace = token.workspace_id or ""
    if request.workspace_id not in (None, workspace):
        raise ApiProblem(
            "workspace_mismatch",
            "the token does not belong to this workspaceId; leave workspaceId out, "
            "or use a token of that workspace",
            errors=[{"field": "workspaceId", "message": "not the token's workspace"}],
        )
    preset = preset_of(token, request)
    if preset not in presets:
        raise ApiProblem(
            "unknown_preset",
            f"there is no preset of this name; choose {', '.join(presets)}",
            errors=[{"field": "policyPreset", "message": f"one of {', '.join(presets)}"}],
        )
    permitted = permitted_presets(token)
    if preset not in permitted:
        raise ApiProblem(
            "preset_not_permitted",
            f"the token permits {', '.join(sorted(permitted)) or 'no preset'}, not {preset}; "
            "choose one of these or ask for a token that permits it",
            errors=[{"field": "policyPreset", "message": "not permitted by the token"}],
        )
    _check_agent_type(token, agent_type(token, request))
    ttl, max_ttl = lifetime(settings, token, request.ttl)
    allow = _allow(settings, token, presets[preset], preset, request.allow)
    if token.delegated is not None:
        allow = _as_delegated(token.delegated, request, presets[preset], allow)
    return Terms(
        workspace=workspace,
        agent_type=agent_type(token, request),
        preset=preset,
        allow=allow,
        ttl=ttl,
        max_ttl=max_ttl,
        max_lifetime=_max_lifetime(settings, token),
    )


def preset_of(token: TokenRecord, request: EnrollRequest) -> str:
    """The preset: what it says, else the only one that the token names, else ``sandboxed``."""
    named = token.presets or ()
    return request.policy_preset or (named[0] if len(named) == 1 else "sandboxed")


def agent_type(token: TokenRecord, request: EnrollRequest) -> str:
    """The kind of agent: what it says, else what it was delegated as, else its name."""
    delegated = (token.delegated or {}).get("agentType")
    return request.agent_type or delegated or request.agent_name


def _check_agent_type(token: TokenRecord, kind: str) -> None:
    if token.agent_types is None or any(matches(kind, p) for p in token.agent_types):
        return
    raise ApiProblem(
        "agent_type_not_permitted",
        f"the token permits agents of the types {', '.join(token.agent_types)}, not {kind}; "
        "say which of these it is in agentType, or ask for a token that permits it",
        errors=[{"field": "agentType", "message": "not permitted by the token"}],
    )


def matches(text: str, pattern: str) -> bool:
    """Whether a text is of a pattern, in which each ``*`` stands for any characters."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    if not text.startswith(first) or len(text) < len(first) + len(last):
        return False
    place, end = len(first), len(text) - len(last)
    # The leftmost place for each part leaves the most room for those that follow.
    for part in middle:
        found = text.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return text.endswith(last)


def permitted_presets(token: TokenRecord) -> frozenset[str]:
    """The presets a workspace token permits.

    Unless it names some, ``sandboxed`` and ``coordinator``: what a workspace defines for itself may
    reach further. An allow list that is permitted permits ``isolated``, which is for it.
    """
    named = frozenset(("sandboxed", "coordinator") if token.presets is None else token.presets)
    return named | {"isolated"} if permits_allow(token) else named


def permits_allow(token: TokenRecord) -> bool:
    """Whether identities of this token may bring an allow list."""
    return token.allow_isolated or token.allow is not None


def lifetime(
    settings: ServerSettings, token: TokenRecord, asked: timedelta | None
) -> tuple[int, int]:
    """The life granted and the longest one permitted, in ms.

    Raises:
        ApiProblem: ``invalid_ttl`` or ``ttl_not_permitted``.
    """
    longest = _max_lifetime(settings, token)
    max_ttl = min(longest, token.max_ttl or longest)
    if asked is None:
        return min(to_ms(settings.default_ttl), max_ttl), max_ttl
    return _checked(asked, max_ttl), max_ttl


def renewal(peer: PeerRecord, asked: timedelta | None) -> int:
    """The life that a renewal gets, in ms: what is asked, or what the identity had.

    Raises:
        ApiProblem: ``invalid_ttl`` or ``ttl_not_permitted``.
    """
    return peer.ttl if asked is None else _checked(asked, peer.max_ttl)


def _max_lifetime(settings: ServerSettings, token: TokenRecord) -> int:
    return token.max_lifetime or to_ms(settings.default_lifetime)


def _checked(asked: timedelta, max_ttl: int) -> int:
    ttl = to_ms(asked)
    if ttl < SHORTEST_TTL_MS:
        raise ApiProblem(
            "invalid_ttl",
            "the ttl is too short: it has to be at least 1s",
            errors=[{"field": "ttl", "message": "at least 1s"}],
        )
    if ttl > max_ttl:
        longest = format_duration(timedelta(milliseconds=max_ttl))
        raise ApiProblem(
            "ttl_not_permitted",
            f"the token permits a ttl of at most {longest}; ask for that and renew in time",
            errors=[{"field": "ttl", "message": f"at most {longest}"}],
        )
    return ttl


def _allow(
    settings: ServerSettings,
    token: TokenRecord,
    words: Preset,
    preset: str,
    rules: list[AllowRule],
) -> list[dict[str, Any]]:
    if not rules:
        return []
    if not words.own_list:
        raise ApiProblem(
            "invalid_request",
            f"allow belongs to presets with the word allow, such as isolated, and this is "
            f"{preset}; leave allow out or ask for another preset",
            errors=[{"field": "allow", "message": "only with a preset that takes it"}],
        )
    if not permits_allow(token):
        raise ApiProblem(
            "forbidden",
            "the token does not permit an allow list; ask for one made with allowIsolated",
            errors=[{"field": "allow", "message": "not permitted by the token"}],
        )
    checked = {
        (_destination(settings, token, rule, number), rule.protocol, rule.port)
        for number, rule in enumerate(rules)
    }
    return [{"to": to, "protocol": what, "port": port} for to, what, port in sorted(checked)]


def _as_delegated(
    delegated: dict[str, Any], request: EnrollRequest, preset: Preset, allow: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The allow list of a sub-agent, which is to be what it was delegated as."""
    for field, name, asked in (
        ("agentName", delegated["name"], request.agent_name),
        ("agentType", delegated.get("agentType"), request.agent_type),
    ):
        if name is not None and asked not in (None, name):
            raise ApiProblem(
                "forbidden",
                f"the token was delegated for the {field} {name} alone; enroll as that",
                errors=[{"field": field, "message": f"has to be {name}"}],
            )
    ceiling = delegated.get("allow")
    if ceiling is None or not preset.own_list:
        return allow
    if not allow:
        return list(ceiling)
    if not attenuation.allow_within(allow, ceiling):
        raise ApiProblem(
            "forbidden",
            "allow names more than the token was delegated with; leave it out",
            errors=[{"field": "allow", "message": "not within what was delegated"}],
        )
    return allow


def _destination(settings: ServerSettings, token: TokenRecord, rule: AllowRule, number: int) -> str:
    """The destination of a rule in one spelling, if it can be and the token permits it."""
    field = f"allow.{number}.to"
    try:
        to = destinations.parse(rule.to)
    except ValueError as error:
        raise ApiProblem(
            "invalid_request",
            f"allow takes addresses in the overlay {settings.overlay} and host names, and "
            f"{rule.to} is {error}",
            errors=[{"field": field, "message": str(error)}],
        ) from None
    inside = to.kind in ("address", "network") and to.network.overlaps(settings.overlay)
    if inside and not _of_peer(settings, to):
        raise ApiProblem(
            "invalid_request",
            f"allow takes addresses of peers in the overlay {settings.overlay}, addresses and "
            f"networks that a connector advertises, host names and patterns of them; {to.text} is "
            "none of these",
            errors=[{"field": field, "message": f"not a peer address in {settings.overlay}"}],
        )
    if not _permitted(settings, token, to, rule):
        raise not_permitted(f"{to.text}:{rule.port}/{rule.protocol}", field)
    return to.text


def not_permitted(what: str, field: str = "allow") -> ApiProblem:
    """The 403 of a destination that the token does not permit."""
    return ApiProblem(
        "destination_not_permitted",
        f"the token does not permit {what} in allow; leave it out or ask for a token that "
        "permits it",
        errors=[{"field": field, "message": "not permitted by the token"}],
    )


def _of_peer(settings: ServerSettings, to: destinations.Destination) -> bool:
    if to.kind != "address":
        return False
    overlay, address = settings.overlay, to.network.network_address
    reserved = (overlay.network_address, overlay.network_address + 1, overlay.broadcast_address)
    return address in overlay and address not in reserved


def _permitted(
    settings: ServerSettings, token: TokenRecord, to: destinations.Destination, rule: AllowRule
) -> bool:
    """Without a list of its own a token permits peers of the workspace, and nothing beyond.

    Whether a name is one of the workspace's is for :mod:`lattice_server.names` to see. What was
    delegated is compared with the parent's own list instead.
    """
    if token.allow is None:
        return to.kind == "name" or _of_peer(settings, to) or token.kind == "delegation"
    permits = destinations.permits_of(token.allow)
    return any(permit.covers(to, rule.port, rule.protocol) for permit in permits)

"""The second stage: the SDK goes on with what the first has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lattice_sdk import runtime
from lattice_sdk.agent import LatticeAgent
from lattice_sdk.backends import Proxy, Tunnel, TunnelSpec
from lattice_sdk.backends.netns import NamespaceTunnel, Netns
from lattice_sdk.handed import Enrolled, Handed

if TYPE_CHECKING:
    from lattice_sdk.enginehost import EngineHost
    from lattice_sdk.execution.options import Options
    from lattice_sdk.execution.quick import Found


def make_agent(options: Options, found: Found | None) -> LatticeAgent:
    """The agent of a command line, which goes on with what was found when it is opened.

    Raises:
        LatticeError: a setting is missing or wrong.
    """
    from lattice_sdk import config

    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("server", "token", "token_file", "workspace", "backend", "isolation")
    }
    settings = config.load(**given, ca_file=options.ca_file)
    if options.token_file is not None and options.token is None:
        # An argument wins over the environment, also where they are two ways to say one thing.
        settings = settings.model_copy(update={"token": None})
    agent = LatticeAgent(
        server=settings.server,
        token=settings.secret(),
        agent_name=options.agent_name,
        agent_type=options.agent_type,
        policy_preset=options.policy_preset,
        workspace_id=settings.workspace,
        ttl=options.ttl,
        allow=options.allow,
        forwards=options.forward,
        backend=settings.backend,
        isolation=settings.isolation,
        verify=settings.ca_file,
        timeout=settings.timeout,
    )
    if found is not None:
        agent._life.handed = handed(found)
    return agent


def handed(found: Found) -> Handed:
    """What was found, as the lifecycle takes it."""
    import httpx
    from pydantic import SecretStr

    from lattice_sdk.problems import Answer

    answer = None
    if found.answer is not None:
        status, headers, body = found.answer
        answer = Answer(status, httpx.Headers(headers), body)
    enrolled = Enrolled(SecretStr(found.private_key), answer, found.received)
    backend = _Standing(found) if found.home is not None else None
    return Handed(found.engine, enrolled, backend)


class _Standing(Netns):
    """The backend whose first tunnel is up already."""

    def __init__(self, found: Found) -> None:
        super().__init__()
        self._found: Found | None = found

    async def _open(self, engine: EngineHost, spec: TunnelSpec, wanted: Proxy) -> Tunnel:
        found, self._found = self._found, None
        if found is None or found.tunnel is None:
            return await super()._open(engine, spec, wanted)
        from pydantic import SecretStr

        made = found.tunnel["proxy"]
        peer, password = spec.identity.peer_id, SecretStr(found.proxy_password)
        proxy = Proxy(made["host"], int(made["port"]), peer, password)
        tunnel = NamespaceTunnel(engine, peer, proxy, found.tunnel)
        await runtime.current().call(tunnel.settle, spec, found.home)
        return tunnel
